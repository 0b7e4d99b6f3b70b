//! What follows from the catalogue's tables and would take a walk through them to find: kept beside them,
//! never written.

use super::{Catalog, Table};
use crate::model::account::AccountId;
use crate::model::ids::{ImageId, InstanceId, SnapshotId, TemplateId, VolumeId};
use crate::model::image::Image;
use crate::model::instance::Volume;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Images by the snapshots that they use. No set is empty.
pub(super) type Users = Table<SnapshotId, BTreeSet<ImageId>>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Derived {
    /// Registered images by owner and name.
    pub names: Table<AccountId, BTreeMap<String, ImageId>>,
    /// Registered images by their snapshots.
    pub users: Users,
    /// Images in the bin by their snapshots.
    pub binned_users: Users,
    /// Images, in the bin or not, and live instances on a template. No count is 0.
    pub template_uses: Table<TemplateId, u64>,
    /// Volumes made from a snapshot. No count is 0.
    pub volumes_on: Table<SnapshotId, u64>,
    /// Volumes by the instance that they are attached to. No set is empty.
    pub attached: Table<InstanceId, BTreeSet<VolumeId>>,
}

impl Derived {
    /// From the tables.
    pub fn of(catalog: &Catalog) -> Self {
        let mut derived = Self::default();
        for image in catalog.images.values() {
            derived.add_image(image);
            image.template.into_iter().for_each(|template| derived.use_template(template));
        }
        for binned in catalog.binned_images.values() {
            derived.bin_image(&binned.item);
            binned.item.template.into_iter().for_each(|template| derived.use_template(template));
        }
        for instance in catalog.instances.values().filter(|instance| instance.is_live()) {
            instance.template_ids().for_each(|template| derived.use_template(template));
        }
        catalog.volumes.values().for_each(|volume| derived.add_volume(volume));
        derived
    }

    pub fn add_image(&mut self, image: &Image) {
        let names = Arc::make_mut(&mut self.names).entry(image.owner).or_default();
        names.insert(image.name.clone(), image.id);
        add_user(&mut self.users, image);
    }

    pub fn remove_image(&mut self, image: &Image) {
        remove_from(&mut self.names, image.owner, |names| {
            names.remove(&image.name);
            names.is_empty()
        });
        remove_user(&mut self.users, image);
    }

    pub fn bin_image(&mut self, image: &Image) {
        add_user(&mut self.binned_users, image);
    }

    pub fn unbin_image(&mut self, image: &Image) {
        remove_user(&mut self.binned_users, image);
    }

    pub fn use_template(&mut self, id: TemplateId) {
        *Arc::make_mut(&mut self.template_uses).entry(id).or_default() += 1;
    }

    /// Whether that was the last use.
    pub fn release_template(&mut self, id: TemplateId) -> bool {
        count_down(&mut self.template_uses, id);
        !self.template_uses.contains_key(&id)
    }

    pub fn add_volume(&mut self, volume: &Volume) {
        if let Some(snapshot) = volume.snapshot_id {
            *Arc::make_mut(&mut self.volumes_on).entry(snapshot).or_default() += 1;
        }
        if let Some(at) = &volume.attachment {
            Arc::make_mut(&mut self.attached).entry(at.instance_id).or_default().insert(volume.id);
        }
    }

    pub fn remove_volume(&mut self, volume: &Volume) {
        if let Some(snapshot) = volume.snapshot_id {
            count_down(&mut self.volumes_on, snapshot);
        }
        if let Some(at) = &volume.attachment {
            remove_from(&mut self.attached, at.instance_id, |volumes| {
                volumes.remove(&volume.id);
                volumes.is_empty()
            });
        }
    }
}

fn add_user(users: &mut Users, image: &Image) {
    for snapshot in image.snapshot_ids() {
        Arc::make_mut(users).entry(snapshot).or_default().insert(image.id);
    }
}

fn remove_user(users: &mut Users, image: &Image) {
    for snapshot in image.snapshot_ids() {
        remove_from(users, snapshot, |images| {
            images.remove(&image.id);
            images.is_empty()
        });
    }
}

fn count_down<K: Ord + Clone>(counts: &mut Table<K, u64>, key: K) {
    remove_from(counts, key, |count| {
        *count = count.saturating_sub(1);
        *count == 0
    });
}

/// Changes an entry, and drops it if it has become empty.
fn remove_from<K: Ord + Clone, V: Clone>(
    table: &mut Table<K, V>,
    key: K,
    becomes_empty: impl FnOnce(&mut V) -> bool,
) {
    let table = Arc::make_mut(table);
    if table.get_mut(&key).is_some_and(becomes_empty) {
        table.remove(&key);
    }
}
