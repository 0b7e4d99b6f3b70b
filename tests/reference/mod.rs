//! The rules of images, snapshots, volumes and instances once more, as plainly as they can be said: maps in
//! memory, no log, no files. It knows nothing of the library but its ids. `tests/model.rs` compares the two.

use imgstore::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub type Account = usize;
/// What the library answers instead of doing it: EC2's code.
pub type Answer<T> = Result<T, &'static str>;
pub type Bytes = Arc<Vec<u8>>;

pub const HOUR: u64 = 3_600_000;
pub const DAY: u64 = 24 * HOUR;

/// Whom something is shared with; none for everybody.
pub type Whom = Option<Account>;

#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub owner: Account,
    pub shared: BTreeSet<Whom>,
    pub content: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Protection {
    Off,
    On,
    Cooldown,
    Until(u64),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    pub owner: Account,
    pub name: String,
    pub shared: BTreeSet<Whom>,
    pub snapshots: Vec<SnapshotId>,
    /// Devices whose volumes stay when an instance is terminated.
    pub kept: BTreeSet<String>,
    /// The content of an instance-store-backed image.
    pub template: Option<Bytes>,
    pub disabled: bool,
    pub deprecated: Option<u64>,
    pub protection: Protection,
    pub codes: bool,
    pub kept_tag: bool,
    pub predecessor: Option<ImageId>,
    pub source: Option<ImageId>,
    /// The client token and what was asked with it.
    pub token: Option<(String, String)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    pub owner: Account,
    pub content: Bytes,
    pub attached: Option<(InstanceId, String, bool)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    pub owner: Account,
    pub image: ImageId,
    pub running: bool,
    pub local: bool,
    pub codes: bool,
    pub terminated: Option<u64>,
    /// The client token and what was asked with it.
    pub token: Option<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    pub block_images: bool,
    pub block_snapshots: bool,
    /// Days that images and snapshots are kept, and whether only those with the tag.
    pub rules: Vec<(bool, u64, bool)>,
}

/// A region.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reference {
    pub snapshots: BTreeMap<SnapshotId, Snapshot>,
    pub images: BTreeMap<ImageId, Image>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    pub instances: BTreeMap<InstanceId, Instance>,
    pub settings: BTreeMap<Account, Settings>,
    pub binned_images: BTreeMap<ImageId, (Image, u64)>,
    pub binned_snapshots: BTreeMap<SnapshotId, (Snapshot, u64)>,
    pub deregistered: BTreeSet<(ImageId, Account)>,
}

fn admits(shared: &BTreeSet<Whom>, account: Account) -> bool {
    shared.contains(&None) || shared.contains(&Some(account))
}

fn demand(holds: bool, code: &'static str) -> Answer<()> {
    if holds { Ok(()) } else { Err(code) }
}

impl Reference {
    pub fn see_image(&self, account: Account, id: ImageId) -> Answer<&Image> {
        match self.images.get(&id) {
            Some(image) if image.owner == account || admits(&image.shared, account) => Ok(image),
            _ if self.deregistered.contains(&(id, account)) => Err("InvalidAMIID.Unavailable"),
            _ => Err("InvalidAMIID.NotFound"),
        }
    }

    pub fn own_image(&self, account: Account, id: ImageId) -> Answer<&Image> {
        let image = self.see_image(account, id)?;
        demand(image.owner == account, "AuthFailure").map(|()| image)
    }

    fn modifiable(&mut self, account: Account, id: ImageId) -> Answer<&mut Image> {
        let image = self.own_image(account, id)?;
        demand(!image.disabled, "InvalidAMIID.Unavailable")?;
        Ok(self.images.get_mut(&id).unwrap())
    }

    pub fn see_snapshot(&self, account: Account, id: SnapshotId) -> Answer<&Snapshot> {
        let visible = self.snapshots.get(&id).filter(|s| s.owner == account || admits(&s.shared, account));
        visible.ok_or("InvalidSnapshot.NotFound")
    }

    fn own_snapshot(&self, account: Account, id: SnapshotId) -> Answer<&Snapshot> {
        let snapshot = self.see_snapshot(account, id)?;
        demand(snapshot.owner == account, "AuthFailure").map(|()| snapshot)
    }

    pub fn see_volume(&self, account: Account, id: VolumeId) -> Answer<&Volume> {
        self.volumes.get(&id).filter(|v| v.owner == account).ok_or("InvalidVolume.NotFound")
    }

    pub fn see_instance(&self, account: Account, id: InstanceId, now: u64) -> Answer<&Instance> {
        let own = self.instances.get(&id).filter(|i| i.owner == account);
        let shown = own.filter(|i| i.terminated.is_none_or(|at| now < at + HOUR));
        shown.ok_or("InvalidInstanceID.NotFound")
    }

    pub fn name_free(&self, account: Account, name: &str) -> Answer<()> {
        let taken = self.images.values().any(|i| i.owner == account && i.name == name);
        demand(!taken, "InvalidAMIName.Duplicate")
    }

    pub fn settings(&self, account: Account) -> Settings {
        self.settings.get(&account).cloned().unwrap_or_default()
    }

    pub fn volumes_of(&self, id: InstanceId) -> BTreeMap<String, VolumeId> {
        let at = |volume: &Volume| volume.attached.clone().filter(|at| at.0 == id).map(|at| at.1);
        self.volumes.iter().filter_map(|(id, volume)| Some((at(volume)?, *id))).collect()
    }

    // What needs no new ids ---------------------------------------------------------------------------

    pub fn share_image(
        &mut self,
        account: Account,
        id: ImageId,
        add: bool,
        whom: Whom,
        with_snapshots: bool,
    ) -> Answer<()> {
        let settings = self.settings(account);
        let image = self.modifiable(account, id)?.clone();
        if add && whom.is_none() && !image.shared.contains(&None) {
            demand(!settings.block_images && !image.codes, "OperationNotPermitted")?;
        }
        let own: Vec<_> = image.snapshots.iter().filter(|s| self.snapshots[s].owner == account).collect();
        for snapshot in own.iter().filter(|_| with_snapshots) {
            let public = self.snapshots[snapshot].shared.contains(&None);
            let blocked = add && whom.is_none() && !public && settings.block_snapshots;
            demand(!blocked, "OperationNotPermitted")?;
        }
        let change =
            |shared: &mut BTreeSet<Whom>| if add { shared.insert(whom) } else { shared.remove(&whom) };
        change(&mut self.images.get_mut(&id).unwrap().shared);
        for snapshot in own.into_iter().filter(|_| with_snapshots) {
            change(&mut self.snapshots.get_mut(snapshot).unwrap().shared);
        }
        Ok(())
    }

    pub fn share_snapshot(&mut self, account: Account, id: SnapshotId, add: bool, whom: Whom) -> Answer<()> {
        let public = self.own_snapshot(account, id)?.shared.contains(&None);
        let blocked = add && whom.is_none() && !public && self.settings(account).block_snapshots;
        demand(!blocked, "OperationNotPermitted")?;
        let shared = &mut self.snapshots.get_mut(&id).unwrap().shared;
        if add {
            shared.insert(whom)
        } else {
            shared.remove(&whom)
        };
        Ok(())
    }

    pub fn tag_image(&mut self, account: Account, id: ImageId) -> Answer<()> {
        self.own_image(account, id)?;
        self.images.get_mut(&id).unwrap().kept_tag = true;
        Ok(())
    }

    pub fn deprecate(&mut self, account: Account, id: ImageId, at: Option<u64>) -> Answer<()> {
        self.modifiable(account, id)?.deprecated = at.map(|at| (at + 30_000) / 60_000 * 60_000);
        Ok(())
    }

    pub fn disable(&mut self, account: Account, id: ImageId) -> Answer<()> {
        let image = self.modifiable(account, id)?;
        image.disabled = true;
        image.shared.clear();
        Ok(())
    }

    pub fn enable(&mut self, account: Account, id: ImageId) -> Answer<()> {
        self.own_image(account, id)?;
        self.images.get_mut(&id).unwrap().disabled = false;
        Ok(())
    }

    pub fn protect(&mut self, account: Account, id: ImageId, wanted: Protection, now: u64) -> Answer<()> {
        let image = self.own_image(account, id)?;
        demand(wanted == Protection::Off || !image.disabled, "InvalidAMIID.Unavailable")?;
        let image = self.images.get_mut(&id).unwrap();
        image.protection = match (wanted, image.protection) {
            (Protection::Off, Protection::Cooldown) => Protection::Until(now + DAY),
            (Protection::Off, Protection::Until(until)) if now < until => Protection::Until(until),
            (Protection::On, Protection::Cooldown) => Protection::Cooldown,
            (Protection::On, Protection::Until(until)) if now < until => Protection::Cooldown,
            (wanted, _) => wanted,
        };
        Ok(())
    }

    pub fn add_code(&mut self, account: Account, id: ImageId) -> Answer<()> {
        let image = self.modifiable(account, id)?;
        demand(!image.shared.contains(&None), "OperationNotPermitted")?;
        image.codes = true;
        Ok(())
    }

    fn kept_until(&self, account: Account, of_images: bool, has_tag: bool, now: u64) -> Option<u64> {
        let settings = self.settings(account);
        let rules =
            settings.rules.iter().filter(|(i, _, only_tagged)| *i == of_images && (has_tag || !only_tagged));
        rules.map(|(_, days, _)| now + days * DAY).max()
    }

    /// Images in the bin keep their snapshots, as long as they can be restored.
    fn kept_by_bin(&self, snapshot: SnapshotId, now: u64) -> bool {
        self.binned_images.values().any(|(image, until)| image.snapshots.contains(&snapshot) && now < *until)
    }

    /// All that is overdue ends.
    pub fn expire_all(&mut self, now: u64) {
        self.binned_images.retain(|_, (_, until)| now < *until);
        let used: BTreeSet<_> =
            self.binned_images.values().flat_map(|(image, _)| image.snapshots.clone()).collect();
        self.binned_snapshots.retain(|id, (_, until)| now < *until || used.contains(id));
    }

    /// What is overdue ends: the account's own, and images of anybody's that use these snapshots.
    fn expire(&mut self, account: Account, snapshots: &[SnapshotId], now: u64) {
        self.binned_images.retain(|_, (image, until)| image.owner != account || now < *until);
        let used: BTreeSet<_> =
            self.binned_images.values().flat_map(|(image, _)| image.snapshots.clone()).collect();
        self.binned_snapshots
            .retain(|id, (snapshot, until)| snapshot.owner != account || now < *until || used.contains(id));
        let uses = |image: &Image| snapshots.iter().any(|id| image.snapshots.contains(id));
        self.binned_images.retain(|_, (image, until)| now < *until || !uses(image));
    }

    pub fn deregister(
        &mut self,
        account: Account,
        id: ImageId,
        delete_snapshots: bool,
        now: u64,
    ) -> Answer<Vec<&'static str>> {
        let image = self.own_image(account, id)?.clone();
        let protected = match image.protection {
            Protection::Off => false,
            Protection::On | Protection::Cooldown => true,
            Protection::Until(until) => now < until,
        };
        demand(!protected, "OperationNotPermitted")?;
        let until = self.kept_until(account, true, image.kept_tag, now);
        let distinct: BTreeSet<_> = image.snapshots.iter().copied().collect();
        let mut outcomes = Vec::new();
        for &snapshot in distinct.iter().filter(|_| delete_snapshots) {
            let by_others = self.images.iter().any(|(o, i)| *o != id && i.snapshots.contains(&snapshot));
            if self.snapshots[&snapshot].owner != account {
                outcomes.push("missing-permissions");
            } else if by_others || self.kept_by_bin(snapshot, now) {
                outcomes.push("skipped");
            } else {
                outcomes.push("success");
                let own = self.kept_until(account, false, false, now);
                let removed = self.snapshots.remove(&snapshot).unwrap();
                if let Some(until) = own.max(until) {
                    self.binned_snapshots.insert(snapshot, (removed, until));
                }
            }
        }
        self.expire(account, &image.snapshots, now);
        self.images.remove(&id);
        self.deregistered.insert((id, account));
        if let Some(until) = until {
            self.binned_images.insert(id, (image, until));
        }
        Ok(outcomes)
    }

    pub fn delete_snapshot(&mut self, account: Account, id: SnapshotId, now: u64) -> Answer<()> {
        self.own_snapshot(account, id)?;
        let used = self.images.values().any(|i| i.snapshots.contains(&id));
        demand(!used && !self.kept_by_bin(id, now), "InvalidSnapshot.InUse")?;
        self.expire(account, &[id], now);
        let snapshot = self.snapshots.remove(&id).unwrap();
        if let Some(until) = self.kept_until(account, false, false, now) {
            self.binned_snapshots.insert(id, (snapshot, until));
        }
        Ok(())
    }

    pub fn restore_image(&mut self, account: Account, id: ImageId, now: u64) -> Answer<()> {
        let kept = self.binned_images.get(&id).filter(|(i, until)| i.owner == account && now < *until);
        let Some((image, _)) = kept.cloned() else {
            self.own_image(account, id)?;
            return Err("IncorrectState");
        };
        self.name_free(account, &image.name)?;
        let settings = self.settings(account);
        demand(!(settings.block_images && image.shared.contains(&None)), "OperationNotPermitted")?;
        let public = |id: &SnapshotId| {
            self.binned_snapshots.get(id).is_some_and(|(snapshot, _)| snapshot.shared.contains(&None))
        };
        let publishes = image.snapshots.iter().any(public);
        demand(!(settings.block_snapshots && publishes), "OperationNotPermitted")?;
        for snapshot in &image.snapshots {
            if let Some((back, _)) = self.binned_snapshots.remove(snapshot) {
                self.snapshots.insert(*snapshot, back);
            }
        }
        self.binned_images.remove(&id);
        self.deregistered.remove(&(id, account));
        self.images.insert(id, image);
        Ok(())
    }

    pub fn restore_snapshot(&mut self, account: Account, id: SnapshotId, now: u64) -> Answer<()> {
        let kept = self.binned_snapshots.get(&id).filter(|(s, until)| s.owner == account && now < *until);
        if kept.is_none() {
            self.own_snapshot(account, id)?;
            return Err("IncorrectState");
        }
        let public = self.binned_snapshots[&id].0.shared.contains(&None);
        demand(!(public && self.settings(account).block_snapshots), "OperationNotPermitted")?;
        let (snapshot, _) = self.binned_snapshots.remove(&id).unwrap();
        self.snapshots.insert(id, snapshot);
        Ok(())
    }

    pub fn set_running(&mut self, account: Account, id: InstanceId, running: bool, now: u64) -> Answer<()> {
        let instance = self.see_instance(account, id, now)?;
        demand(instance.terminated.is_none(), "IncorrectInstanceState")?;
        demand(!instance.local, "UnsupportedOperation")?;
        if running {
            demand(self.volumes_of(id).contains_key("/dev/xvda"), "IncorrectState")?;
        }
        self.instances.get_mut(&id).unwrap().running = running;
        Ok(())
    }

    pub fn terminate(&mut self, account: Account, id: InstanceId, now: u64) -> Answer<()> {
        self.see_instance(account, id, now)?;
        let instance = self.instances.get_mut(&id).unwrap();
        if instance.terminated.is_none() {
            instance.terminated = Some(now);
            self.volumes
                .retain(|_, v| !v.attached.as_ref().is_some_and(|(i, _, delete)| *i == id && *delete));
            for volume in self.volumes.values_mut() {
                volume.attached = volume.attached.take().filter(|at| at.0 != id);
            }
        }
        Ok(())
    }

    pub fn delete_volume(&mut self, account: Account, id: VolumeId) -> Answer<()> {
        demand(self.see_volume(account, id)?.attached.is_none(), "VolumeInUse")?;
        self.volumes.remove(&id);
        Ok(())
    }

    pub fn attach(
        &mut self,
        account: Account,
        id: VolumeId,
        instance: InstanceId,
        device: &str,
        now: u64,
    ) -> Answer<()> {
        let free = self.see_volume(account, id)?.attached.is_none();
        let found = self.see_instance(account, instance, now)?;
        demand(free && found.terminated.is_none(), "IncorrectState")?;
        let taken = self.volumes_of(instance).contains_key(device) || (found.local && device == "/dev/xvda");
        demand(!taken, "InvalidParameterValue")?;
        self.volumes.get_mut(&id).unwrap().attached = Some((instance, device.to_owned(), false));
        Ok(())
    }

    pub fn detach(&mut self, account: Account, id: VolumeId) -> Answer<()> {
        let Some((instance, device, _)) = self.see_volume(account, id)?.attached.clone() else {
            return Err("IncorrectState");
        };
        let stays = device == "/dev/xvda" && self.instances[&instance].running;
        demand(!stays, "OperationNotPermitted")?;
        self.volumes.get_mut(&id).unwrap().attached = None;
        Ok(())
    }

    // What makes new ids: whether it may be done ------------------------------------------------------

    pub fn may_register(
        &self,
        account: Account,
        name: &str,
        root: SnapshotId,
        predecessor: Option<ImageId>,
    ) -> Answer<()> {
        self.name_free(account, name)?;
        predecessor.map_or(Ok(()), |id| self.own_image(account, id).map(drop))?;
        self.see_snapshot(account, root).map(drop)
    }

    pub fn may_copy_from(&self, account: Account, id: ImageId) -> Answer<&Image> {
        let image = self.see_image(account, id)?;
        demand(!image.disabled, "InvalidAMIID.Unavailable")?;
        demand(image.owner == account || !image.codes, "OperationNotPermitted")?;
        let readable = image.snapshots.iter().all(|s| self.see_snapshot(account, *s).is_ok());
        demand(readable && (image.template.is_none() || image.owner == account), "InvalidRequest")?;
        Ok(image)
    }

    pub fn may_launch(&self, account: Account, id: ImageId) -> Answer<&Image> {
        let image = self.see_image(account, id)?;
        demand(!image.disabled, "InvalidAMIID.Unavailable").map(|()| image)
    }

    pub fn may_image(&self, account: Account, id: InstanceId, name: &str, now: u64) -> Answer<()> {
        let instance = self.see_instance(account, id, now)?;
        demand(instance.terminated.is_none(), "IncorrectInstanceState")?;
        demand(!instance.local, "UnsupportedOperation")?;
        demand(self.volumes_of(id).contains_key("/dev/xvda"), "IncorrectState")?;
        self.name_free(account, name)
    }
}
