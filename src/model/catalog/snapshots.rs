//! Operations on snapshots and templates.

use super::{Binned, Catalog, Rejection, insert_new, modify, remove};
use crate::model::ids::{ImageId, SnapshotId, TemplateId};
use crate::model::objects::PackName;
use crate::model::op::{BinStay, SnapshotChange};
use crate::model::snapshot::{Snapshot, Template};

impl Catalog {
    /// The first registered image that uses a snapshot, or else the first one in the bin.
    pub fn image_using(&self, snapshot: SnapshotId) -> Option<ImageId> {
        let first = |users: &super::derived::Users| users.get(&snapshot)?.first().copied();
        first(&self.derived.users).or_else(|| first(&self.derived.binned_users))
    }

    /// The registered images that use a snapshot.
    pub fn images_using(&self, snapshot: SnapshotId) -> impl Iterator<Item = ImageId> + '_ {
        self.derived.users.get(&snapshot).into_iter().flatten().copied()
    }

    /// The images in the bin that use a snapshot.
    pub fn binned_images_using(&self, snapshot: SnapshotId) -> impl Iterator<Item = ImageId> + '_ {
        self.derived.binned_users.get(&snapshot).into_iter().flatten().copied()
    }

    /// Whether a volume stands on a snapshot, whether or not that still exists.
    pub fn is_under_volume(&self, snapshot: SnapshotId) -> bool {
        self.derived.volumes_on.contains_key(&snapshot)
    }

    /// Whether an instance that was not terminated has a disk that is a copy of the template.
    pub fn is_under_instance(&self, template: TemplateId) -> bool {
        self.instances.values().any(|i| i.is_live() && i.template_ids().any(|id| id == template))
    }

    pub(super) fn create_snapshot(
        &mut self,
        snapshot: &Snapshot,
        packs: &[PackName],
    ) -> Result<(), Rejection> {
        for pack in packs {
            self.use_pack(*pack)?;
        }
        let id = snapshot.id;
        if self.retained_snapshots.contains_key(&id) || self.binned_snapshots.contains_key(&id) {
            return Err(Rejection::Exists(id.to_string()));
        }
        insert_new(&mut self.snapshots, id, snapshot.clone())
    }

    /// Images in the bin do not keep a snapshot from following them there, for at least as long.
    pub(super) fn delete_snapshot(&mut self, id: SnapshotId, bin: Option<BinStay>) -> Result<(), Rejection> {
        if let Some(image) = self.images_using(id).next() {
            return Err(Rejection::SnapshotInUse(id, image));
        }
        let stays_too_short = |image: &ImageId| {
            let until_ms = self.binned_images.get(image).map_or(0, |binned| binned.stay.until_ms);
            bin.is_none_or(|bin| bin.until_ms < until_ms)
        };
        if let Some(image) = self.binned_images_using(id).find(stays_too_short) {
            return Err(Rejection::SnapshotInUse(id, image));
        }
        let snapshot = remove(&mut self.snapshots, id)?;
        match bin {
            Some(stay) => insert_new(&mut self.binned_snapshots, id, Binned { item: snapshot, stay }),
            None => self.drop_snapshot(snapshot),
        }
    }

    pub(super) fn restore_snapshot(&mut self, id: SnapshotId) -> Result<(), Rejection> {
        let binned = remove(&mut self.binned_snapshots, id)?;
        insert_new(&mut self.snapshots, id, binned.item)
    }

    pub(super) fn expire_snapshot(&mut self, id: SnapshotId) -> Result<(), Rejection> {
        if let Some(image) = self.binned_images_using(id).next() {
            return Err(Rejection::SnapshotInUse(id, image));
        }
        let binned = remove(&mut self.binned_snapshots, id)?;
        self.drop_snapshot(binned.item)
    }

    /// A snapshot is gone; its content stays under volumes.
    fn drop_snapshot(&mut self, snapshot: Snapshot) -> Result<(), Rejection> {
        if self.is_under_volume(snapshot.id) {
            return insert_new(&mut self.retained_snapshots, snapshot.id, snapshot);
        }
        Ok(())
    }

    pub(super) fn modify_snapshot(
        &mut self,
        id: SnapshotId,
        change: &SnapshotChange,
    ) -> Result<(), Rejection> {
        let snapshot = modify(&mut self.snapshots, id)?;
        match change {
            SnapshotChange::CreateVolumePermissions(permissions) => {
                snapshot.create_volume_permissions = permissions.clone();
            }
            SnapshotChange::Tags(tags) => snapshot.tags = tags.clone(),
        }
        Ok(())
    }

    pub(super) fn create_template(
        &mut self,
        template: &Template,
        packs: &[PackName],
    ) -> Result<(), Rejection> {
        for pack in packs {
            self.use_pack(*pack)?;
        }
        insert_new(&mut self.templates, template.id, template.clone())
    }

    /// One use of a template has ended; with the last one it is gone.
    pub(super) fn release_template(&mut self, id: TemplateId) -> Result<(), Rejection> {
        if self.derived.release_template(id) {
            remove(&mut self.templates, id)?;
        }
        Ok(())
    }
}
