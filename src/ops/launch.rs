//! Launch: instances of an image, each with its disks as files. Rules: EC2's RunInstances.

use super::context::Context;
use super::devices::{DeviceSpec, Purpose, check_count, check_specs, lay_over};
use super::error::{Code, OpsError};
use super::find::{backing, check_available, check_contents, check_tags, image as find_image};
use super::instance::is_shown;
use super::launch_disks::{Content, Written, write_instance};
use super::token::{client_token, durable, made_before, output_folder};
use crate::disk::DiskError;
use crate::disk::open::{NewDirs, check_folder, utf8};
use crate::model::account::{ClientToken, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, ReservationId};
use crate::model::image::{Image, is_same_device};
use crate::model::instance::{Instance, Volume};
use crate::model::op::Op;
use crate::region::Region;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is said of a launch.
#[derive(Debug, Clone, Serialize)]
pub struct LaunchOptions {
    /// At least so many instances: fewer are not worth it. 1 to `count_max`.
    pub count_min: u32,
    /// So many instances, or as many of them as there is space for. Disks that share their blocks take it once.
    pub count_max: u32,
    /// The folder in which each instance gets a folder of its own.
    pub output: PathBuf,
    /// Changes of the mapping.
    pub devices: Vec<DeviceSpec>,
    /// Size of ephemeral disks in bytes.
    pub ephemeral_bytes: u64,
    /// Tags of the instances.
    pub tags: Vec<Tag>,
    /// The same request again gives the same instances.
    pub client_token: Option<String>,
}

impl LaunchOptions {
    /// One instance, as the image says.
    pub fn one(output: &Path) -> Self {
        Self {
            count_min: 1,
            count_max: 1,
            output: output.to_owned(),
            devices: Vec::new(),
            ephemeral_bytes: EPHEMERAL_BYTES_DEFAULT,
            tags: Vec::new(),
            client_token: None,
        }
    }
}

/// An instance that was launched.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The instance.
    pub instance: Instance,
    /// Its volumes, in the order of the mapping.
    pub volumes: Vec<Volume>,
}

/// Most instances that one launch makes.
pub const INSTANCES_MAX: u32 = 1000;

/// Size of ephemeral disks where nothing else is said. They are sparse files.
pub const EPHEMERAL_BYTES_DEFAULT: u64 = 8 << 30;

/// Launches instances: the disks of all are written whole, then all are put on record at once. What was
/// written for a launch that does not come about is removed.
pub fn launch(
    region: &Region,
    id: ImageId,
    options: &LaunchOptions,
    context: &Context<'_>,
) -> Result<Vec<Launched>, OpsError> {
    check(options)?;
    let output = output_folder(&options.output)?;
    // The folder is part of the request, however it is spelled.
    let request = LaunchOptions { output: output.clone(), ..options.clone() };
    let token = client_token(options.client_token.as_ref(), &(id, &request))?;
    let made = durable(region, context, |catalog| made_instances(catalog, token.as_ref(), context))?;
    if !made.is_empty() {
        context.end_dry_run()?;
        return Ok(made);
    }
    let catalog = region.catalog()?;
    let image = find_image(&catalog, context.account, id)?;
    let contents = plan(region, &catalog, image, options, context)?;
    check_folder(&output)?;
    context.end_dry_run_in(region)?;

    let _made = NewDirs::make(&output)?;
    let bytes = contents.iter().map(Content::restored_bytes).fold(0, u64::saturating_add);
    context.progress.begin("launch", bytes.saturating_mul(u64::from(options.count_max)));
    let launch = Launch { region, image, contents: &contents, output: &output, options, context };
    let mut written = Written::default();
    let result = launch.run(token.as_ref(), &mut written);
    // Where nobody knows whether the record exists, the disks stay: the record may need them.
    match &result {
        Err(OpsError::Region(error)) if error.is_unknown_outcome() => {
            context.progress.warn(&format!(
                "what was written to {} stays, since it may be on record: what `imgstore instances` does not show there is not",
                output.display()
            ));
        }
        Ok(launched) => written.remove_all_but(launched),
        Err(_) => written.remove_all_but(&[]),
    }
    result
}

fn check(options: &LaunchOptions) -> Result<(), OpsError> {
    let (min, max) = (options.count_min, options.count_max);
    if min > max {
        let why = format!("count is {min} to {max}: the first is the least, the second the most");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    if min == 0 || max > INSTANCES_MAX {
        let count = if min == max { min.to_string() } else { format!("{min} to {max}") };
        let why = format!("count is {count}; 1 to {INSTANCES_MAX} instances can be launched at once");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    if options.ephemeral_bytes == 0 || options.ephemeral_bytes > crate::model::units::VOLUME_BYTES_MAX {
        return Err(OpsError::rule(Code::InvalidParameterValue, "an ephemeral disk has 1 byte to 64 TiB"));
    }
    // What cannot be put on record is not begun.
    utf8(&options.output)?;
    check_tags(&options.tags)?;
    check_specs(&options.devices)
}

/// The disks of an instance, with overrides.
fn plan(
    region: &Region,
    catalog: &Catalog,
    image: &Image,
    options: &LaunchOptions,
    context: &Context<'_>,
) -> Result<Vec<Content>, OpsError> {
    check_available(image)?;
    check_contents(catalog, context.account, &options.devices)?;
    // Who may launch the image may have its content: no snapshot permission is needed.
    let size_of = |id| backing(catalog, id).map(|snapshot| snapshot.volume_bytes);
    let root = &image.root_device_name;
    if image.template.is_some()
        && options.devices.iter().any(|device| is_same_device(&device.device_name, root))
    {
        let why = format!("the root device {root} is the instance's own disk, as large as its template");
        return Err(OpsError::rule(Code::BlockDeviceMapping, why));
    }
    let devices = lay_over(&image.devices, &options.devices, root, Purpose::New, size_of)?;
    let mut contents = Vec::new();
    if let Some(template) = super::find::template(catalog, image) {
        contents.push(Content::of_template(region, root, template)?);
    }
    for device in &devices {
        let bytes = options.ephemeral_bytes;
        contents.push(Content::of_device(region, catalog, image, device, bytes, context.account)?);
    }
    check_count(contents.len())?;
    Ok(contents)
}

/// The instances that an earlier request with the token made.
fn made_instances(
    catalog: &Catalog,
    token: Option<&ClientToken>,
    context: &Context<'_>,
) -> Result<Vec<Launched>, OpsError> {
    let own = catalog.instances.values().filter(|instance| instance.owner == context.account);
    let own = own.filter(|instance| is_shown(instance, context.now_ms));
    let mut made = made_before(token, own, |instance| instance.client_token.as_ref())?;
    made.sort_by_key(|instance| instance.launch_index);
    let launched = |instance: &Instance| Launched {
        instance: instance.clone(),
        volumes: catalog.volumes_of(instance.id).into_iter().cloned().collect(),
    };
    Ok(made.into_iter().map(launched).collect())
}

/// One launch.
struct Launch<'a> {
    region: &'a Region,
    image: &'a Image,
    contents: &'a [Content],
    output: &'a Path,
    options: &'a LaunchOptions,
    context: &'a Context<'a>,
}

impl Launch<'_> {
    /// Writes all disks, then puts all instances on record at once.
    fn run(&self, token: Option<&ClientToken>, written: &mut Written) -> Result<Vec<Launched>, OpsError> {
        let reservation_id = ReservationId::from_random(self.region.random_id()?);
        let (mut launched, mut before) = (Vec::new(), Vec::new());
        while launched.len() < self.options.count_max as usize {
            let Self { region, contents, output, image, context, .. } = *self;
            match write_instance(region, contents, output, image, &mut before, context, written) {
                Ok(one) => launched.push(one),
                // As many as there is space for, if they are enough.
                Err(OpsError::Disk(DiskError::NoSpace { path, .. }))
                    if launched.len() >= self.options.count_min as usize =>
                {
                    let count = launched.len();
                    self.context
                        .progress
                        .note(&format!("no space for more than {count}: {}", path.display()));
                    written.remove_last();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        for (at, made) in launched.iter_mut().enumerate() {
            made.instance.reservation_id = reservation_id;
            made.instance.launch_index = u32::try_from(at).unwrap_or(u32::MAX);
            made.instance.tags.clone_from(&self.options.tags);
            made.instance.client_token = token.cloned();
        }
        self.context.check_cancelled()?;
        self.context.commit(self.region, |catalog| {
            // The same request may have been faster, from another process.
            let made = made_instances(catalog, token, self.context)?;
            if !made.is_empty() {
                return Ok((vec![], made));
            }
            let image = find_image(catalog, self.context.account, self.image.id)?;
            check_available(image)?;
            check_contents(catalog, self.context.account, &self.options.devices)?;
            self.contents
                .iter()
                .try_for_each(|content| content.check(catalog, image, self.context.account))?;
            let mut launched = launched.clone();
            // They may have been added while the disks were written.
            launched.iter_mut().for_each(|one| one.instance.product_codes.clone_from(&image.product_codes));
            let run = |made: &Launched| Op::RunInstance {
                instance: Box::new(made.instance.clone()),
                volumes: made.volumes.clone(),
            };
            Ok((launched.iter().map(run).collect(), launched))
        })
    }
}
