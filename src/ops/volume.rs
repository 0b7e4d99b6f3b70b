//! Volumes of their own: create, delete, attach, detach. Rules: EC2's CreateVolume, DeleteVolume, AttachVolume,
//! DetachVolume.

use super::context::Context;
use super::delete::make_room;
use super::devices::{DEVICES_MAX, check_iops, too_small};
use super::error::{Code, OpsError};
use super::export::load;
use super::find::{
    check_completed, check_tags, instance as find_instance, snapshot as find_snapshot, volume as find_volume,
};
use super::instance::{remove_disk, remove_emptied};
use super::restore::restore;
use super::token::{client_token, durable, made_before, output_folder};
use crate::disk::open::{NewDirs, TargetOptions, check_folder, open_target, remove_made_file, utf8};
use crate::model::account::{ClientToken, Tag};
use crate::model::catalog::{Catalog, Root};
use crate::model::ids::{InstanceId, SnapshotId, VolumeId};
use crate::model::image::{is_device_name, is_same_device};
use crate::model::instance::{Attachment, Volume};
use crate::model::op::{Op, VolumeChange};
use crate::model::snapshot::Snapshot;
use crate::model::units::VOLUME_BYTES_MAX;
use crate::model::words::{InstanceState, VolumeState, VolumeType};
use crate::region::Region;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is said of a new volume.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeOptions {
    /// Its content; none for an empty volume.
    pub snapshot_id: Option<SnapshotId>,
    /// Its size in bytes; none for the snapshot's.
    pub volume_bytes: Option<u64>,
    /// Its kind.
    pub volume_type: VolumeType,
    /// Provisioned operations a second.
    pub iops: Option<u32>,
    /// The folder for its disk file.
    pub output: PathBuf,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// The same request again gives the same volume.
    pub client_token: Option<String>,
}

/// Makes a volume: its disk file is written whole, then it is put on record.
pub fn create_volume(
    region: &Region,
    options: &VolumeOptions,
    context: &Context<'_>,
) -> Result<Volume, OpsError> {
    check_tags(&options.tags)?;
    check_iops(options.volume_type, options.iops)?;
    let output = output_folder(&options.output)?;
    // The folder is part of the request, however it is spelled.
    let request = VolumeOptions { output: output.clone(), ..options.clone() };
    let token = client_token(options.client_token.as_ref(), &request)?;
    let made = durable(region, context, |catalog| made_volume(catalog, token.as_ref(), context))?;
    if let Some(made) = made {
        context.end_dry_run()?;
        return Ok(made);
    }
    let catalog = region.catalog()?;
    let snapshot = options.snapshot_id.map(|id| find_snapshot(&catalog, context.account, id)).transpose()?;
    let volume_bytes = volume_bytes(options, snapshot)?;
    // What cannot be put on record is not begun.
    utf8(&output)?;
    check_folder(&output)?;
    context.end_dry_run_in(region)?;
    let id = VolumeId::from_random(region.random_id()?);
    let _made = NewDirs::make(&output)?;
    let path = output.join(format!("{id}.raw"));
    let volume = Volume {
        id,
        owner: context.account,
        volume_bytes,
        volume_type: options.volume_type,
        iops: options.iops,
        snapshot_id: options.snapshot_id,
        created_ms: context.now_ms,
        attachment: None,
        path: utf8(&region.path_to_record(&path))?,
        tags: options.tags.clone(),
        client_token: token.clone(),
    };
    if let Err(error) = write(region, snapshot, volume_bytes, &path, context) {
        drop(remove_made_file(&path));
        return Err(error);
    }
    let result = context.commit(region, |catalog| {
        if let Some(made) = made_volume(catalog, token.as_ref(), context)? {
            return Ok((vec![], made));
        }
        options.snapshot_id.map_or(Ok(()), |id| find_snapshot(catalog, context.account, id).map(drop))?;
        Ok((vec![Op::CreateVolume(Box::new(volume.clone()))], volume.clone()))
    });
    match &result {
        Ok(made) if made.id == id => {}
        // Where nobody knows whether the record exists, the disk stays: the record may need it.
        Err(OpsError::Region(error)) if error.is_unknown_outcome() => {
            context.progress.warn(&format!(
                "{} stays, since it may be on record: if `imgstore volumes` does not show it, remove it",
                path.display()
            ));
        }
        _ => drop(remove_made_file(&path)),
    }
    result
}

fn volume_bytes(options: &VolumeOptions, snapshot: Option<&Snapshot>) -> Result<u64, OpsError> {
    if let Some(snapshot) = snapshot {
        check_completed(snapshot)?;
    }
    let least = snapshot.map_or(1, |snapshot| snapshot.volume_bytes);
    let Some(bytes) = options.volume_bytes.or(snapshot.map(|snapshot| snapshot.volume_bytes)) else {
        let why = "The request must contain the parameter size or snapshotId";
        return Err(OpsError::rule(Code::MissingParameter, why));
    };
    if bytes < least {
        return Err(OpsError::rule(
            Code::InvalidParameterValue,
            too_small(bytes, options.snapshot_id, least),
        ));
    }
    if bytes > VOLUME_BYTES_MAX {
        return Err(OpsError::rule(Code::InvalidParameterValue, "a volume has at most 64 TiB"));
    }
    Ok(bytes)
}

fn write(
    region: &Region,
    snapshot: Option<&Snapshot>,
    volume_bytes: u64,
    path: &Path,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let mut target = open_target(path, volume_bytes, TargetOptions::default())?;
    if let Some(snapshot) = snapshot {
        let root = Root::from(snapshot);
        let map = load(region, &root)?;
        context.progress.begin("create-volume", map.volume_bytes());
        restore(region, root.id, &map, None, &mut *target, context)?;
    }
    context.check_cancelled()?;
    Ok(target.finish()?)
}

fn made_volume(
    catalog: &Catalog,
    token: Option<&ClientToken>,
    context: &Context<'_>,
) -> Result<Option<Volume>, OpsError> {
    let own = catalog.volumes.values().filter(|volume| volume.owner == context.account);
    let by_itself = own.filter(|volume| volume.client_token.is_some());
    let made = made_before(token, by_itself, |volume| volume.client_token.as_ref())?;
    Ok(made.first().map(|volume| (*volume).clone()))
}

/// Deletes a volume that is attached to nothing, and its disk file.
///
/// Gives what stays of its disk and why, if that could not be removed.
pub fn delete_volume(
    region: &Region,
    id: VolumeId,
    context: &Context<'_>,
) -> Result<Option<String>, OpsError> {
    find_volume(&region.catalog()?, context.account, id)?;
    make_room(region, context)?;
    let mut path = String::new();
    let recorded = context.commit(region, |catalog| {
        let volume = find_volume(catalog, context.account, id)?;
        if let Some(at) = &volume.attachment {
            let why = format!("Volume {id} is currently attached to {}", at.instance_id);
            return Err(OpsError::rule(Code::VolumeInUse, why));
        }
        path.clone_from(&volume.path);
        Ok((vec![Op::DeleteVolume { id }], volume.path.clone()))
    });
    // Where nobody knows whether the record is gone, the disk stays: the record may need it.
    if let Err(OpsError::Region(error)) = &recorded
        && error.is_unknown_outcome()
    {
        let path = region.path_of_record(&path).map_or(path, |found| found.display().to_string());
        context.progress.warn(&format!(
            "{path} stays, since {id} may be on record: if `imgstore volumes` does not show it, remove that"
        ));
    }
    let recorded = recorded?;
    let left = remove_disk(region, &recorded);
    let folder = remove_emptied(region, &recorded);
    Ok(left.or(folder))
}

/// Attaches an available volume to an instance.
pub fn attach_volume(
    region: &Region,
    id: VolumeId,
    instance_id: InstanceId,
    device_name: &str,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    if !is_device_name(device_name) {
        let why = format!("Value ({device_name}) for parameter device is invalid; one looks like /dev/xvdf");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    context.commit(region, |catalog| {
        let volume = find_volume(catalog, context.account, id)?;
        let instance = find_instance(catalog, context, instance_id)?;
        if volume.state() != VolumeState::Available {
            return Err(OpsError::rule(Code::IncorrectState, format!("Volume '{id}' is not 'available'.")));
        }
        if !instance.is_live() {
            let why = format!("Instance '{instance_id}' is not 'running'.");
            return Err(OpsError::rule(Code::IncorrectState, why));
        }
        let attached = catalog.volumes_of(instance_id);
        if attached.len() + instance.local_disks.len() >= DEVICES_MAX {
            let why = format!("Instance '{instance_id}' has {DEVICES_MAX} devices, as many as an image of it can have");
            return Err(OpsError::rule(Code::AttachmentLimitExceeded, why));
        }
        let mut taken = attached.iter().filter_map(|volume| volume.attachment.as_ref()).map(|at| &at.device_name);
        let mut local = instance.local_disks.iter().map(|disk| &disk.device_name);
        let is_same = |name: &String| is_same_device(name, device_name);
        if taken.any(is_same) || local.any(is_same) {
            let why = format!(
                "Invalid value '{device_name}' for unixDevice. Attachment point {device_name} is already in use"
            );
            return Err(OpsError::rule(Code::InvalidParameterValue, why));
        }
        let attachment = Attachment {
            instance_id,
            device_name: device_name.to_owned(),
            delete_on_termination: false,
            attached_ms: context.now_ms,
        };
        let change = VolumeChange::Attachment(Some(attachment));
        Ok((vec![Op::ModifyVolume { id, change }], ()))
    })
}

/// Detaches a volume. The root volume of an instance that is not stopped stays.
pub fn detach_volume(region: &Region, id: VolumeId, context: &Context<'_>) -> Result<(), OpsError> {
    context.commit(region, |catalog| {
        let volume = find_volume(catalog, context.account, id)?;
        let Some(at) = &volume.attachment else {
            return Err(OpsError::rule(
                Code::IncorrectState,
                format!("Volume '{id}' is in the 'available' state."),
            ));
        };
        let instance = find_instance(catalog, context, at.instance_id)?;
        if is_same_device(&at.device_name, &instance.root_device_name)
            && instance.state != InstanceState::Stopped
        {
            let why = format!("Unable to detach root volume '{id}' from instance '{}'", at.instance_id);
            return Err(OpsError::rule(Code::OperationNotPermitted, why));
        }
        Ok((vec![Op::ModifyVolume { id, change: VolumeChange::Attachment(None) }], ()))
    })
}
