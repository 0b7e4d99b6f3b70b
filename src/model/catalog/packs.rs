//! The life of packs and segments: live, condemned, swept, gone.

use super::{Catalog, Pack, Rejection, insert_new, modify, remove};
use crate::model::objects::{ManifestName, ManifestRecord, PackName, PackRecord, PackState, SegmentRecord};
use crate::model::units::TimeMs;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

impl Catalog {
    pub(super) fn register_pack(&mut self, record: &PackRecord) -> Result<(), Rejection> {
        for base in &record.bases {
            self.use_pack(*base)?;
        }
        let pack = Pack { record: record.clone(), state: PackState::Live };
        insert_new(&mut self.packs, record.name, pack)
    }

    pub(super) fn register_segment(&mut self, record: &SegmentRecord) -> Result<(), Rejection> {
        for replaced in &record.replaces {
            remove(&mut self.segments, *replaced)?;
        }
        insert_new(&mut self.segments, record.name, record.clone())
    }

    /// A use makes a condemned pack live again, and with it the packs of its bases; one that is being swept or
    /// that is damaged cannot be used.
    pub(super) fn use_pack(&mut self, name: PackName) -> Result<(), Rejection> {
        let mut used = vec![name];
        while let Some(name) = used.pop() {
            let state = self.packs.get(&name).ok_or(Rejection::PackUnavailable(name))?.state;
            match state {
                PackState::Live => {}
                PackState::Condemned { .. } => {
                    let pack = modify(&mut self.packs, name)?;
                    pack.state = PackState::Live;
                    used.extend(&pack.record.bases);
                }
                PackState::Sweeping | PackState::Quarantined { .. } => {
                    return Err(Rejection::PackUnavailable(name));
                }
            }
        }
        Ok(())
    }

    /// Which of the packs that hold the content of a new snapshot or template its record has to name, if it follows this
    /// very state: those that a use must rescue. The others are live, and still are when it applies, since no record
    /// comes between. Rejects what naming all of them would.
    pub fn packs_to_name(&self, packs: &[PackName]) -> Result<Vec<PackName>, Rejection> {
        let state = |name: &PackName| self.packs.get(name).map(|pack| pack.state);
        let to_name: Vec<PackName> =
            packs.iter().filter(|name| state(name) != Some(PackState::Live)).copied().collect();
        let (mut used, mut seen) = (to_name.clone(), BTreeSet::new());
        while let Some(name) = used.pop() {
            match self.packs.get(&name) {
                Some(pack) if pack.state == PackState::Live => {}
                Some(pack) if matches!(pack.state, PackState::Condemned { .. }) => {
                    if seen.insert(name) {
                        used.extend(&pack.record.bases);
                    }
                }
                _ => return Err(Rejection::PackUnavailable(name)),
            }
        }
        Ok(to_name)
    }

    /// Whether [`Catalog::use_pack`] would have it.
    pub fn can_be_used(&self, name: PackName) -> bool {
        self.packs_to_name(&[name]).is_ok()
    }

    /// The condemned packs for which [`Catalog::can_be_used`] is false, all at once. Where no pack is damaged there are none: what a
    /// condemned pack has bases in is not swept before it.
    pub fn unusable_condemned(&self) -> HashSet<PackName> {
        let state = |name: &PackName| self.packs.get(name).map(|pack| pack.state);
        let is_condemned = |state| matches!(state, Some(PackState::Condemned { .. }));
        let mut unusable = HashSet::new();
        if !self.packs.values().any(|pack| matches!(pack.state, PackState::Quarantined { .. })) {
            return unusable;
        }
        let (mut found, mut based_on) = (Vec::new(), HashMap::<PackName, Vec<PackName>>::new());
        for (name, pack) in self.packs.iter().filter(|(_, pack)| is_condemned(Some(pack.state))) {
            for base in &pack.record.bases {
                match state(base) {
                    Some(PackState::Live) => {}
                    condemned if is_condemned(condemned) => based_on.entry(*base).or_default().push(*name),
                    _ => found.push(*name),
                }
            }
        }
        while let Some(name) = found.pop() {
            if unusable.insert(name) {
                found.extend(based_on.get(&name).into_iter().flatten());
            }
        }
        unusable
    }

    /// As [`Catalog::can_be_used`], with what [`Catalog::unusable_condemned`] gave.
    pub fn is_usable(&self, name: PackName, unusable: &HashSet<PackName>) -> bool {
        self.packs.get(&name).is_some_and(|pack| match pack.state {
            PackState::Live => true,
            PackState::Condemned { .. } => !unusable.contains(&name),
            PackState::Quarantined { .. } | PackState::Sweeping => false,
        })
    }

    /// Live packs that are on record with bases in damaged packs.
    pub fn on_damaged_bases(&self) -> impl Iterator<Item = PackName> {
        let is_damaged = |state| matches!(state, PackState::Quarantined { .. });
        // Mostly none. What a live pack has bases in is not swept, so that there are no others.
        let damaged = self.packs.iter().filter(|(_, pack)| is_damaged(pack.state));
        let damaged: HashSet<PackName> = damaged.map(|(name, _)| *name).collect();
        let live = self.packs.iter().filter(|(_, pack)| pack.state == PackState::Live);
        live.filter(move |(_, pack)| {
            !damaged.is_empty() && pack.record.bases.iter().any(|base| damaged.contains(base))
        })
        .map(|(name, _)| *name)
    }

    /// Those of some packs, and the packs that are on record as holding bases of these, and so on.
    pub fn with_bases(&self, packs: impl IntoIterator<Item = PackName>) -> BTreeSet<PackName> {
        let mut all = BTreeSet::new();
        let mut found: Vec<PackName> = packs.into_iter().collect();
        while let Some(name) = found.pop() {
            if all.insert(name)
                && let Some(pack) = self.packs.get(&name)
            {
                found.extend(&pack.record.bases);
            }
        }
        all
    }

    /// Only live packs are condemned, and none that a live pack has bases in.
    pub(super) fn condemn_packs(&mut self, packs: &[PackName], at_ms: TimeMs) -> Result<(), Rejection> {
        self.move_packs(packs, PackState::Condemned { since_ms: at_ms }, |state| state == PackState::Live)?;
        self.check_bases(packs, |state| state == PackState::Live)
    }

    /// None is swept that a pack which is not swept itself has bases in.
    pub(super) fn sweep_packs(&mut self, packs: &[PackName]) -> Result<(), Rejection> {
        self.move_packs(packs, PackState::Sweeping, |state| {
            matches!(state, PackState::Condemned { .. } | PackState::Quarantined { .. })
        })?;
        self.check_bases(packs, |state| state != PackState::Sweeping)
    }

    pub(super) fn forget_packs(&mut self, packs: &[PackName]) -> Result<(), Rejection> {
        for name in packs {
            match self.packs.get(name).map(|pack| pack.state) {
                Some(PackState::Sweeping) => drop(remove(&mut self.packs, *name)?),
                Some(_) => return Err(Rejection::State(format!("{name} is not being removed"))),
                None => return Err(Rejection::Missing(name.to_string())),
            }
        }
        Ok(())
    }

    pub(super) fn quarantine_packs(&mut self, packs: &[PackName], at_ms: TimeMs) -> Result<(), Rejection> {
        self.move_packs(packs, PackState::Quarantined { since_ms: at_ms }, |state| {
            matches!(state, PackState::Live | PackState::Condemned { .. })
        })
    }

    /// A live pack names other packs that hold the bases of its deltas. That they do is for the writer to prove.
    pub(super) fn rebase_pack(&mut self, name: PackName, bases: &[PackName]) -> Result<(), Rejection> {
        if bases.contains(&name) {
            return Err(Rejection::State(format!("{name} is not its own base")));
        }
        for base in bases {
            self.use_pack(*base)?;
        }
        let pack = modify(&mut self.packs, name)?;
        if pack.state != PackState::Live {
            return Err(Rejection::State(format!("{name} is {}", pack.state.as_str())));
        }
        pack.record.bases = bases.to_vec();
        Ok(())
    }

    fn move_packs(
        &mut self,
        packs: &[PackName],
        to: PackState,
        from: impl Fn(PackState) -> bool,
    ) -> Result<(), Rejection> {
        for name in packs {
            let pack = modify(&mut self.packs, *name)?;
            if !from(pack.state) {
                return Err(Rejection::State(format!("{name} is {}", pack.state.as_str())));
            }
            pack.state = to;
        }
        Ok(())
    }

    /// No pack in a state that `keeps` its bases has one in `moved`.
    fn check_bases(&self, moved: &[PackName], keeps: impl Fn(PackState) -> bool) -> Result<(), Rejection> {
        let moved: BTreeSet<&PackName> = moved.iter().collect();
        let keeping = self.packs.values().filter(|pack| keeps(pack.state));
        match keeping.flat_map(|pack| &pack.record.bases).find(|base| moved.contains(base)) {
            Some(base) => Err(Rejection::State(format!("{base} holds bases of other packs"))),
            None => Ok(()),
        }
    }

    pub(super) fn replace_manifest(
        &mut self,
        lost: ManifestName,
        by: &ManifestRecord,
    ) -> Result<(), Rejection> {
        let same = |old: &ManifestRecord| (old.len, old.hash, old.chunks) == (by.len, by.hash, by.chunks);
        let of_lost = || self.roots().map(|root| root.manifest).filter(|old| old.name == lost);
        if of_lost().next().is_none() {
            return Err(Rejection::Missing(lost.to_string()));
        }
        if !of_lost().all(same) {
            return Err(Rejection::State(format!("{} is not what {lost} was", by.name)));
        }
        let put = |manifest: &mut ManifestRecord| {
            if manifest.name == lost {
                *manifest = by.clone();
            }
        };
        Arc::make_mut(&mut self.snapshots).values_mut().for_each(|s| put(&mut s.manifest));
        Arc::make_mut(&mut self.binned_snapshots).values_mut().for_each(|b| put(&mut b.item.manifest));
        Arc::make_mut(&mut self.retained_snapshots).values_mut().for_each(|s| put(&mut s.manifest));
        Arc::make_mut(&mut self.templates).values_mut().for_each(|t| put(&mut t.manifest));
        Ok(())
    }
}
