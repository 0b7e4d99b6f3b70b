//! Operations on instances and volumes.

use super::{Catalog, Rejection, insert_new, modify, remove};
use crate::model::ids::{InstanceId, VolumeId};
use crate::model::image::is_same_device;
use crate::model::instance::{Instance, Volume};
use crate::model::op::{InstanceChange, VolumeChange};
use crate::model::units::TimeMs;
use crate::model::words::InstanceState;

impl Catalog {
    /// The volumes that are attached to an instance, in the order of their device names.
    pub fn volumes_of(&self, id: InstanceId) -> Vec<&Volume> {
        let attached = self.derived.attached.get(&id).into_iter().flatten();
        let mut volumes: Vec<_> = attached.filter_map(|volume| self.volumes.get(volume)).collect();
        volumes.sort_by_key(|volume| volume.attachment.as_ref().map(|at| &at.device_name));
        volumes
    }

    pub(super) fn run_instance(&mut self, instance: &Instance, volumes: &[Volume]) -> Result<(), Rejection> {
        if !instance.is_live() {
            return Err(Rejection::State(format!("{} is terminated", instance.id)));
        }
        for template in instance.template_ids() {
            if !self.templates.contains_key(&template) {
                return Err(Rejection::Missing(template.to_string()));
            }
            self.derived.use_template(template);
        }
        insert_new(&mut self.instances, instance.id, instance.clone())?;
        volumes.iter().try_for_each(|volume| self.create_volume(volume))
    }

    pub(super) fn create_volume(&mut self, volume: &Volume) -> Result<(), Rejection> {
        if let Some(snapshot) = volume.snapshot_id
            && !self.snapshots.contains_key(&snapshot)
        {
            return Err(Rejection::Missing(snapshot.to_string()));
        }
        self.check_attachment(volume)?;
        self.derived.add_volume(volume);
        insert_new(&mut self.volumes, volume.id, volume.clone())
    }

    pub(super) fn delete_volume(&mut self, id: VolumeId) -> Result<(), Rejection> {
        let volume = remove(&mut self.volumes, id)?;
        self.derived.remove_volume(&volume);
        if let Some(snapshot) = volume.snapshot_id
            && !self.is_under_volume(snapshot)
            && self.retained_snapshots.contains_key(&snapshot)
        {
            remove(&mut self.retained_snapshots, snapshot)?;
        }
        Ok(())
    }

    pub(super) fn modify_volume(&mut self, id: VolumeId, change: &VolumeChange) -> Result<(), Rejection> {
        let before = self.volumes.get(&id).ok_or_else(|| Rejection::Missing(id.to_string()))?.clone();
        match change {
            VolumeChange::Attachment(attachment) => {
                let after = Volume { attachment: attachment.clone(), ..before.clone() };
                if before.attachment.is_some() && after.attachment.is_some() {
                    return Err(Rejection::State(format!("{id} is attached already")));
                }
                self.check_attachment(&after)?;
                self.derived.remove_volume(&before);
                self.derived.add_volume(&after);
                *modify(&mut self.volumes, id)? = after;
            }
            VolumeChange::Tags(tags) => modify(&mut self.volumes, id)?.tags.clone_from(tags),
        }
        Ok(())
    }

    pub(super) fn modify_instance(
        &mut self,
        id: InstanceId,
        change: &InstanceChange,
    ) -> Result<(), Rejection> {
        let instance = modify(&mut self.instances, id)?;
        let changes_state = !matches!(change, InstanceChange::Tags(_));
        if changes_state && !instance.is_live() {
            return Err(Rejection::State(format!("{id} is terminated")));
        }
        match change {
            InstanceChange::Start => instance.state = InstanceState::Running,
            InstanceChange::Stop => instance.state = InstanceState::Stopped,
            InstanceChange::Tags(tags) => instance.tags.clone_from(tags),
        }
        Ok(())
    }

    pub(super) fn terminate_instance(&mut self, id: InstanceId, at_ms: TimeMs) -> Result<(), Rejection> {
        let instance = modify(&mut self.instances, id)?;
        if !instance.is_live() {
            return Err(Rejection::State(format!("{id} is terminated")));
        }
        instance.state = InstanceState::Terminated;
        instance.terminated_ms = Some(at_ms);
        let templates: Vec<_> = instance.template_ids().collect();
        templates.into_iter().try_for_each(|template| self.release_template(template))?;
        let attached = |volume: &Volume| volume.attachment.as_ref().map(|at| at.delete_on_termination);
        let volumes: Vec<_> = self.volumes_of(id).into_iter().map(|v| (v.id, attached(v))).collect();
        for (volume, delete) in volumes {
            match delete {
                Some(true) => self.delete_volume(volume)?,
                _ => self.modify_volume(volume, &VolumeChange::Attachment(None))?,
            }
        }
        Ok(())
    }

    pub(super) fn forget_instance(&mut self, id: InstanceId) -> Result<(), Rejection> {
        if self.instances.get(&id).is_some_and(Instance::is_live) {
            return Err(Rejection::State(format!("{id} is not terminated")));
        }
        remove(&mut self.instances, id).map(drop)
    }

    /// An instance that lives has each device name once.
    fn check_attachment(&self, volume: &Volume) -> Result<(), Rejection> {
        let Some(at) = &volume.attachment else { return Ok(()) };
        let missing = || Rejection::Missing(at.instance_id.to_string());
        let instance = self.instances.get(&at.instance_id).filter(|instance| instance.is_live());
        let instance = instance.ok_or_else(missing)?;
        let same = |name: &str| is_same_device(name, &at.device_name);
        let attached = self.volumes_of(at.instance_id);
        let by_volume =
            attached.iter().filter_map(|other| other.attachment.as_ref()).any(|at| same(&at.device_name));
        if by_volume || instance.local_disks.iter().any(|disk| same(&disk.device_name)) {
            return Err(Rejection::Exists(format!("{} of {}", at.device_name, at.instance_id)));
        }
        Ok(())
    }
}
