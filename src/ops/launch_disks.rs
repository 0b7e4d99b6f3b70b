//! The disks of instances: files in a folder for each, written and, if the launch fails, removed.

use super::context::Context;
use super::devices::check_device_name;
use super::error::OpsError;
use super::export::load;
use super::find::content;
use super::launch::Launched;
use super::restore::restore;
use crate::disk::open::{FinishedFile, TargetOptions, make_dirs, open_target, remove_dir_with, utf8};
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::{Catalog, Root, RootId};
use crate::model::ids::{InstanceId, ReservationId, TemplateId, VolumeId};
use crate::model::image::{BlockDeviceMapping, DeviceTarget, EbsBlockDevice, Image};
use crate::model::instance::{Attachment, Instance, LocalDisk, Volume};
use crate::model::snapshot::Template;
use crate::model::words::InstanceState;
use crate::region::Region;
use std::path::{Path, PathBuf};

/// What a disk is on record.
#[derive(Debug, Clone)]
enum Kind {
    Volume(EbsBlockDevice),
    Template(TemplateId),
    Ephemeral(u8),
}

/// A disk's content, loaded once for all instances.
pub(super) struct Content {
    device_name: String,
    volume_bytes: u64,
    kind: Kind,
    map: Option<(RootId, BlockMap)>,
}

impl Content {
    pub fn of_template(region: &Region, device_name: &str, template: &Template) -> Result<Self, OpsError> {
        check_device_name(device_name)?;
        let root = Root::from(template);
        Ok(Self {
            device_name: device_name.to_owned(),
            volume_bytes: template.volume_bytes,
            kind: Kind::Template(template.id),
            map: Some((root.id, load(region, &root)?)),
        })
    }

    pub fn of_device(
        region: &Region,
        catalog: &Catalog,
        image: &Image,
        device: &BlockDeviceMapping,
        ephemeral_bytes: u64,
        account: AccountId,
    ) -> Result<Self, OpsError> {
        let device_name = device.device_name.clone();
        // Whoever made the image may have used a program that let any through.
        check_device_name(&device_name)?;
        let ebs = match &device.target {
            DeviceTarget::Ebs(ebs) => ebs,
            DeviceTarget::Ephemeral(number) => {
                let kind = Kind::Ephemeral(*number);
                return Ok(Self { device_name, volume_bytes: ephemeral_bytes, kind, map: None });
            }
        };
        let map = match ebs.snapshot_id {
            Some(id) => {
                let root = Root::from(content(catalog, image, id, account)?);
                Some((root.id, load(region, &root)?))
            }
            None => None,
        };
        Ok(Self { device_name, volume_bytes: ebs.volume_bytes, kind: Kind::Volume(ebs.clone()), map })
    }

    /// Refuses content that the caller, by the image, may have no longer.
    pub fn check(&self, catalog: &Catalog, image: &Image, account: AccountId) -> Result<(), OpsError> {
        match self.map {
            Some((RootId::Snapshot(id), _)) => content(catalog, image, id, account).map(drop),
            _ => Ok(()),
        }
    }

    pub fn restored_bytes(&self) -> u64 {
        self.map.as_ref().map_or(0, |(_, map)| map.volume_bytes())
    }

    /// `xvda.raw` for `/dev/xvda`.
    fn file_name(&self) -> String {
        format!("{}.raw", self.device_name.strip_prefix("/dev/").unwrap_or(&self.device_name))
    }

    /// Writes it to a new file; or shares the blocks of the file that has it already, if there is one and the file system can.
    fn write(
        &self,
        region: &Region,
        path: &Path,
        same: Option<&FinishedFile>,
        context: &Context<'_>,
    ) -> Result<FinishedFile, OpsError> {
        let create = || open_target(path, self.volume_bytes, TargetOptions::default());
        let mut target = create()?;
        if let Some((root, map)) = &self.map {
            let is_shared = same.map_or(Ok(false), |same| same.share_with(&mut *target));
            let is_shared = is_shared.or_else(|error| {
                context.progress.note(&format!("{error}; {} is written whole", path.display()));
                // Whatever of it is shared by now is not taken.
                target = create()?;
                Ok::<_, OpsError>(false)
            })?;
            if is_shared {
                context.progress.advance(map.volume_bytes());
            } else {
                restore(region, *root, map, None, &mut *target, context)?;
            }
        }
        context.check_cancelled()?;
        target.finish()?;
        Ok(FinishedFile::new(path)?)
    }
}

/// Folders and files that a launch has written so far.
#[derive(Default)]
pub(super) struct Written(Vec<(PathBuf, Vec<PathBuf>)>);

impl Written {
    /// Removes what is not of these instances.
    pub fn remove_all_but(&self, launched: &[Launched]) {
        for (folder, files) in &self.0 {
            // They are called like their instances.
            let is_of = |made: &Launched| folder.ends_with(made.instance.id.to_string());
            if !launched.iter().any(is_of) {
                remove_dir_with(folder, files);
            }
        }
    }

    /// Removes the instance that was begun last.
    pub fn remove_last(&mut self) {
        if let Some((folder, files)) = self.0.pop() {
            remove_dir_with(&folder, &files);
        }
    }
}

/// Writes the disks of one instance. Those of the instance that was written before are in `before`, one for each of the contents,
/// or none; then these are.
pub(super) fn write_instance(
    region: &Region,
    contents: &[Content],
    output: &Path,
    image: &Image,
    before: &mut Vec<FinishedFile>,
    context: &Context<'_>,
    written: &mut Written,
) -> Result<Launched, OpsError> {
    let id = InstanceId::from_random(region.random_id()?);
    let folder = output.join(id.to_string());
    // Its name is new: whatever of it comes about is ours to remove.
    written.0.push((folder.clone(), Vec::new()));
    make_dirs(&folder)?;
    let mut made = Launched {
        instance: instance(id, image, &region.path_to_record(&folder), context)?,
        volumes: Vec::new(),
    };
    for (at, content) in contents.iter().enumerate() {
        let path = folder.join(content.file_name());
        if let Some((_, files)) = written.0.last_mut() {
            files.push(path.clone());
        }
        let file = content.write(region, &path, before.get(at), context)?;
        match before.get_mut(at) {
            Some(place) => *place = file,
            None => before.push(file),
        }
        put_on_record(region, content, &path, &mut made, context)?;
    }
    Ok(made)
}

/// An instance as it is launched: a machine may write to its disks from now on.
fn instance(
    id: InstanceId,
    image: &Image,
    folder: &Path,
    context: &Context<'_>,
) -> Result<Instance, OpsError> {
    Ok(Instance {
        id,
        owner: context.account,
        image_id: image.id,
        reservation_id: ReservationId::from_random(0),
        launch_index: 0,
        state: InstanceState::Running,
        launched_ms: context.now_ms,
        terminated_ms: None,
        machine: image.machine.clone(),
        product_codes: image.product_codes.clone(),
        root_device_name: image.root_device_name.clone(),
        local_disks: Vec::new(),
        path: utf8(folder)?,
        tags: Vec::new(),
        client_token: None,
    })
}

fn put_on_record(
    region: &Region,
    content: &Content,
    path: &Path,
    made: &mut Launched,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let (device_name, path) = (content.device_name.clone(), utf8(&region.path_to_record(path))?);
    let local = |template_id, ephemeral| LocalDisk {
        device_name: device_name.clone(),
        volume_bytes: content.volume_bytes,
        template_id,
        ephemeral,
        path: path.clone(),
    };
    let ebs = match &content.kind {
        Kind::Template(id) => {
            made.instance.local_disks.push(local(Some(*id), None));
            return Ok(());
        }
        Kind::Ephemeral(number) => {
            made.instance.local_disks.push(local(None, Some(*number)));
            return Ok(());
        }
        Kind::Volume(ebs) => ebs,
    };
    made.volumes.push(Volume {
        id: VolumeId::from_random(region.random_id()?),
        owner: context.account,
        volume_bytes: ebs.volume_bytes,
        volume_type: ebs.volume_type,
        iops: ebs.iops,
        snapshot_id: ebs.snapshot_id,
        created_ms: context.now_ms,
        attachment: Some(Attachment {
            instance_id: made.instance.id,
            device_name,
            delete_on_termination: ebs.delete_on_termination,
            attached_ms: context.now_ms,
        }),
        path,
        tags: Vec::new(),
        client_token: None,
    });
    Ok(())
}
