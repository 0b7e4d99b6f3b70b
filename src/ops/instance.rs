//! The life of an instance: stop, start, terminate. Rules: EC2's StopInstances, StartInstances,
//! TerminateInstances.
//!
//! The state is on record: *running* says that a machine may write to the disks, *stopped* that none does.

use super::context::Context;
use super::delete::make_room;
use super::error::{Code, OpsError};
use super::find::{check_instances_exist, instance as find_instance};
use crate::disk::open::{remove_instance_folder, remove_made_file};
use crate::model::catalog::Catalog;
use crate::model::ids::{InstanceId, VolumeId};
use crate::model::image::is_same_device;
use crate::model::instance::{Instance, Volume};
use crate::model::op::{InstanceChange, Op};
use crate::model::units::TimeMs;
use crate::model::words::{InstanceState, RootDeviceType};
use crate::region::Region;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A terminated instance is shown for an hour, as in EC2.
pub const TERMINATED_SHOWN_MS: TimeMs = 3_600_000;

/// What terminating an instance did.
#[derive(Debug, Clone)]
pub struct Terminated {
    /// The instance.
    pub id: InstanceId,
    /// Volumes that were deleted with it.
    pub deleted: Vec<VolumeId>,
    /// Volumes that stay, detached.
    pub kept: Vec<VolumeId>,
    /// Disk files that could not be removed: what they are, and why they stay.
    pub left: Vec<String>,
}

/// Marks instances as stopped: whoever ran their machines has shut them down. All or none.
pub fn stop(region: &Region, ids: &[InstanceId], context: &Context<'_>) -> Result<(), OpsError> {
    context.commit(region, |catalog| {
        let mut ops = Vec::new();
        check_instances_exist(catalog, context.account, context.now_ms, ids.iter().copied())?;
        for &id in ids {
            let instance = live(catalog, id, context)?;
            check_has_states(instance, "stopped")?;
            if instance.state != InstanceState::Stopped {
                ops.push(Op::ModifyInstance { id, change: InstanceChange::Stop });
            }
        }
        Ok((ops, ()))
    })
}

/// Marks instances as running. All or none.
pub fn start(region: &Region, ids: &[InstanceId], context: &Context<'_>) -> Result<(), OpsError> {
    context.commit(region, |catalog| {
        let mut ops = Vec::new();
        check_instances_exist(catalog, context.account, context.now_ms, ids.iter().copied())?;
        for &id in ids {
            let instance = live(catalog, id, context)?;
            check_has_states(instance, "started")?;
            check_has_root(instance, catalog)?;
            if instance.state != InstanceState::Running {
                ops.push(Op::ModifyInstance { id, change: InstanceChange::Start });
            }
        }
        Ok((ops, ()))
    })
}

/// Terminates instances, all or none: their own disks and the volumes that say so are deleted, the other
/// volumes are detached. One that is terminated already is left as it is, but disks of it that stayed are removed, or told of:
/// whoever terminated it may not have come to that.
pub fn terminate(
    region: &Region,
    ids: &[InstanceId],
    context: &Context<'_>,
) -> Result<Vec<Terminated>, OpsError> {
    check_instances_exist(&region.catalog()?, context.account, context.now_ms, ids.iter().copied())?;
    make_room(region, context)?;
    let (mut answers, files) = context.commit(region, |catalog| {
        let (mut ops, mut answers, mut files) = (Vec::new(), Vec::new(), Vec::new());
        check_instances_exist(catalog, context.account, context.now_ms, ids.iter().copied())?;
        for (at, &id) in ids.iter().enumerate() {
            let instance = find_instance(catalog, context, id)?;
            let (mut answer, mut of_it) =
                (Terminated { id, deleted: vec![], kept: vec![], left: vec![] }, Files::default());
            if instance.is_live() && !ids[..at].contains(&id) {
                ops.push(Op::TerminateInstance { id, at_ms: context.now_ms });
                for volume in catalog.volumes_of(id) {
                    let deletes = volume.attachment.as_ref().is_some_and(|at| at.delete_on_termination);
                    if deletes { &mut answer.deleted } else { &mut answer.kept }.push(volume.id);
                }
                of_it.add(catalog, instance, &answer.deleted);
            } else if !instance.is_live() {
                of_it.add_again(catalog, instance);
            }
            answers.push(answer);
            files.push(of_it);
        }
        ops.extend(forgettable(catalog, context).map(|id| Op::ForgetInstance { id }));
        Ok((ops, (answers, files)))
    })?;
    // Only what the log no longer knows is removed; what stays behind is told.
    for (answer, files) in answers.iter_mut().zip(files) {
        answer.left = files.remove(region);
    }
    Ok(answers)
}

/// How long removing the disks of an instance usually takes at most.
const OTHERS_AT_WORK: Duration = Duration::from_secs(1);

/// Files that are removed once their instances are gone.
#[derive(Debug, Default)]
struct Files {
    /// As they are on record.
    disks: Vec<String>,
    folders: Vec<String>,
    /// Of instances that were terminated before: what may have stayed, and folders in which nothing is on record.
    again: Vec<String>,
    again_folders: Vec<String>,
}

impl Files {
    fn add(&mut self, catalog: &Catalog, instance: &Instance, deleted: &[VolumeId]) {
        let disks = instance.local_disks.iter().map(|disk| &disk.path);
        let volumes = deleted.iter().filter_map(|id| catalog.volumes.get(id)).map(|volume| &volume.path);
        self.disks.extend(disks.chain(volumes).cloned());
        self.folders.push(instance.path.clone());
    }

    fn add_again(&mut self, catalog: &Catalog, instance: &Instance) {
        self.again.extend(instance.local_disks.iter().map(|disk| disk.path.clone()));
        let is_in = |volume: &Volume| Path::new(&volume.path).starts_with(&instance.path);
        if !catalog.volumes.values().any(is_in) {
            self.again_folders.push(instance.path.clone());
        }
    }

    /// Whoever terminated an instance a moment ago may be about to remove its disks.
    fn wait_for_others(&self, region: &Region) {
        let until = Instant::now() + OTHERS_AT_WORK;
        let folders: Vec<PathBuf> =
            self.again_folders.iter().filter_map(|folder| region.path_of_record(folder)).collect();
        while folders.iter().any(|folder| folder.is_dir()) && Instant::now() < until {
            std::thread::sleep(OTHERS_AT_WORK / 10);
        }
    }

    /// Removes them; what stays, and why.
    fn remove(&self, region: &Region) -> Vec<String> {
        let mut left: Vec<String> = self.disks.iter().filter_map(|disk| remove_disk(region, disk)).collect();
        self.wait_for_others(region);
        for path in self.again.iter().filter_map(|disk| region.path_of_record(disk)) {
            left.extend(remove_made_file(&path).err().map(|error| error.to_string()));
        }
        let of_record = |folders: &[String]| -> Vec<_> {
            folders.iter().filter_map(|folder| region.path_of_record(folder)).collect()
        };
        // They stay if a kept volume is in them.
        let stays = |folder: &PathBuf| remove_instance_folder(folder).err().map(|error| error.to_string());
        left.extend(of_record(&self.folders).iter().filter_map(stays));
        for folder in of_record(&self.again_folders) {
            // Why not, does not matter: it says itself what is to be done.
            let _ = remove_instance_folder(&folder);
            if folder.is_dir() {
                let why = "is still there, and nothing in it is on record; remove it yourself";
                left.push(format!("{}: {why}", folder.display()));
            }
        }
        left
    }
}

/// Removes the file of a disk that is no longer on record. If it cannot, what stays and why: that is no failure.
pub(super) fn remove_disk(region: &Region, recorded: &str) -> Option<String> {
    let Some(path) = region.path_of_record(recorded) else {
        return Some(format!("{recorded}: nobody knows where the region is that it is at this place of"));
    };
    match remove_made_file(&path) {
        Ok(true) => None,
        // It may be where the region was before that was moved by itself, or on a file system that is not mounted.
        Ok(false) => {
            Some(format!("{}: it is not there; if it was moved, remove it yourself", path.display()))
        }
        Err(error) => Some(error.to_string()),
    }
}

/// Removes the folder of an instance that is gone, if the disk that was removed was its last. What stays and why, if it cannot.
pub(super) fn remove_emptied(region: &Region, recorded: &str) -> Option<String> {
    let path = region.path_of_record(recorded)?;
    remove_instance_folder(path.parent()?).err().map(|error| error.to_string())
}

/// An instance that is started, or that an image is made of, has its root device.
pub(super) fn check_has_root(instance: &Instance, catalog: &Catalog) -> Result<(), OpsError> {
    let has_root = instance.root_device_type() == RootDeviceType::InstanceStore
        || catalog.volumes_of(instance.id).iter().any(|volume| is_root(volume, instance));
    if has_root {
        return Ok(());
    }
    let (id, root) = (instance.id, &instance.root_device_name);
    let why = format!(
        "Invalid value '{id}' for instanceId. Instance does not have a volume attached at root ({root})"
    );
    Err(OpsError::rule(Code::IncorrectState, why))
}

fn is_root(volume: &Volume, instance: &Instance) -> bool {
    volume.attachment.as_ref().is_some_and(|at| is_same_device(&at.device_name, &instance.root_device_name))
}

fn live<'a>(catalog: &'a Catalog, id: InstanceId, context: &Context<'_>) -> Result<&'a Instance, OpsError> {
    let instance = find_instance(catalog, context, id)?;
    if instance.is_live() {
        return Ok(instance);
    }
    let why = format!(
        "The instance '{id}' is not in a state from which it can be started or stopped: it is terminated"
    );
    Err(OpsError::rule(Code::IncorrectInstanceState, why))
}

fn check_has_states(instance: &Instance, target: &str) -> Result<(), OpsError> {
    if instance.root_device_type() == RootDeviceType::Ebs {
        return Ok(());
    }
    let id = instance.id;
    let why = format!("The instance '{id}' does not have an 'ebs' root device type and cannot be {target}.");
    Err(OpsError::rule(Code::UnsupportedOperation, why))
}

/// The caller's instances that were terminated long enough ago.
fn forgettable<'a>(catalog: &'a Catalog, context: &'a Context<'_>) -> impl Iterator<Item = InstanceId> + 'a {
    let own = catalog.instances.values().filter(|instance| instance.owner == context.account);
    own.filter(|instance| !is_shown(instance, context.now_ms)).map(|instance| instance.id)
}

/// Whether an instance lives, or was terminated not long ago.
pub(super) fn is_shown(instance: &Instance, now_ms: TimeMs) -> bool {
    instance.terminated_ms.is_none_or(|at| now_ms < at.saturating_add(TERMINATED_SHOWN_MS))
}
