//! What of a region is still referred to, and the steps by which the rest goes: condemn, sweep, delete, forget.
//!
//! Safety does not hang on clocks or locks. A *mark* is made of one state of the log; a pack is condemned only if the
//! mark still holds, or was made to hold, at the tail where the record is appended. A commit that uses a condemned pack rescues it. The
//! record that says that packs are swept comes before their bytes go, and after it no commit may use them.

use super::Region;
use super::doubles::Double;
use super::error::RegionError;
use super::gathered::{Gathered, settle};
use super::losses::{Losses, Lost, lost_map, quarantined};
use crate::format::entry::Entry;
use crate::format::pack::around_bytes;
use crate::model::account::AccountId;
use crate::model::catalog::{Catalog, Pack};
use crate::model::ids::SessionId;
use crate::model::objects::{ManifestName, PackName, PackRecord, PackState};
use crate::model::op::Op;
use crate::model::units::TimeMs;
use crate::pack::index::{Index, Location};
use crate::pack::places::{Group, Places};
use crate::pack::trailer::{read_effort, read_trailer};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Chunks whose places are gone through between two looks at whether to go on.
const WATCH_CHUNKS: u64 = 1 << 16;
/// Objects that are deleted before it is looked again whether the region is still in its place.
pub(super) const DELETED_AT_ONCE: usize = 256;

/// What of a pack is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frames that are.
    pub frames: u64,
    /// Their bytes, with their headers.
    pub bytes: u64,
}

/// What is needed at one state of the log: of every chunk that something refers to, one place.
pub struct Mark {
    /// The state.
    pub catalog: Catalog,
    /// Its condemned packs that can be used no more.
    unusable: HashSet<PackName>,
    index: Arc<Index>,
    /// The leading eight bytes of every chunk that is referred to, ascending. Two chunks that share them keep each
    /// other, which costs space once in a very long time.
    live: Vec<u64>,
    /// The manifests that were read.
    pub(super) manifests: BTreeSet<ManifestName>,
    /// Packs that are to be emptied.
    avoided: HashSet<PackName>,
    /// The leading bytes of every chunk that a delta in a kept pack has as its base, ascending.
    bases: Vec<u64>,
    /// Packs with a place that is kept, and what of them.
    usage: BTreeMap<PackName, Usage>,
    /// How many deltas each pack has.
    deltas: BTreeMap<PackName, u64>,
    /// For each of these that has deltas, the other packs with the kept places of their bases.
    based_on: BTreeMap<PackName, BTreeSet<PackName>>,
    /// Those with a delta whose base is nowhere as a plain frame: where it is on record may be the only place that ever has it.
    baseless: BTreeSet<PackName>,
    /// Chunks that are in several packs.
    pub(super) doubles: Vec<Double>,
    /// What of all that is lost.
    pub(super) lost: Lost,
    /// Packs in quarantine that hold what is needed and is nowhere else, though no index says so.
    unsaved: BTreeSet<PackName>,
}

/// What was removed.
#[derive(Debug, Default)]
pub struct Removed {
    /// How many objects.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why some were not.
    pub failure: Option<RegionError>,
}

impl Mark {
    /// What of a pack is needed by its content.
    pub fn usage(&self, pack: &PackName) -> Usage {
        self.usage.get(pack).copied().unwrap_or_default()
    }

    /// How many percent of a pack's frames are needed, by their bytes.
    pub fn needed_percent(&self, pack: &PackRecord) -> u64 {
        self.usage(&pack.name).bytes.saturating_mul(100) / self.frames_bytes(pack)
    }

    /// Bytes of all frames of a pack, one at least.
    pub fn frames_bytes(&self, pack: &PackRecord) -> u64 {
        let deltas = self.deltas.get(&pack.name).copied().unwrap_or(0);
        pack.len.saturating_sub(around_bytes(u64::from(pack.frames), deltas)).max(1)
    }

    /// Packs that stay until a repair has moved what packs in quarantine alone hold.
    pub const fn unsaved(&self) -> &BTreeSet<PackName> {
        &self.unsaved
    }

    /// Packs that must stay: those with a place that is kept, the bases of deltas in these packs among them.
    pub fn kept_packs(&self) -> BTreeSet<PackName> {
        let mut kept = self.stuck();
        if self.has_losses() {
            // What is damaged may be mended, and needs then what it is on record with.
            let all = self.usage.keys().copied().chain(quarantined(&self.catalog));
            kept.extend(self.catalog.with_bases(all));
        }
        kept.extend(self.usage.keys());
        kept
    }

    /// Whether a pack has a place that is kept.
    pub(super) fn is_used(&self, pack: &PackName) -> bool {
        self.usage.contains_key(pack)
    }

    /// Whether the index of that state lists all that a pack holds.
    pub(super) fn lists(&self, pack: &PackName) -> bool {
        self.index.lists(pack)
    }

    /// Packs that stay, however little of them is needed: [`Mark::unsaved`], and all that packs are on record with which cannot be
    /// put on others, as long as some of those are damaged.
    pub fn stuck(&self) -> BTreeSet<PackName> {
        let is_stuck = |(_, bases): &(&PackName, &BTreeSet<PackName>)| !self.can_be_based_on(bases);
        let packs =
            self.based_on.iter().filter(is_stuck).filter_map(|(pack, _)| self.catalog.packs.get(pack));
        let on = packs.flat_map(|pack| pack.record.bases.iter().copied());
        let mut stuck = self.catalog.with_bases(on.chain(self.baseless.iter().copied()));
        stuck.extend(&self.unsaved);
        stuck
    }

    fn can_be_based_on(&self, bases: &BTreeSet<PackName>) -> bool {
        bases.iter().all(|base| self.catalog.is_usable(*base, &self.unusable))
    }

    /// Whether something refers to a chunk whose id begins so, or is stored against it.
    pub(super) fn is_needed(&self, leading: u64) -> bool {
        self.live.binary_search(&leading).is_ok() || self.is_base(leading)
    }

    /// Whether a chunk whose id begins so is the base of a delta in a pack that is kept.
    pub fn is_base(&self, leading: u64) -> bool {
        self.bases.binary_search(&leading).is_ok()
    }

    /// What [`Region::rebase`] would put on record now.
    pub fn rebased(&self, kept: &BTreeSet<PackName>) -> BTreeMap<PackName, Vec<PackName>> {
        self.to_rebase(&self.catalog, kept)
    }

    /// Live packs that are on record with bases in packs that nothing keeps or that are damaged, and where those are, too.
    fn to_rebase(&self, catalog: &Catalog, kept: &BTreeSet<PackName>) -> BTreeMap<PackName, Vec<PackName>> {
        let mut rebased = BTreeMap::new();
        for (&pack, bases) in &self.based_on {
            let Some(known) = catalog.packs.get(&pack).filter(|known| known.state == PackState::Live) else {
                continue;
            };
            let stays =
                |base: &PackName| kept.contains(base) && self.catalog.is_usable(*base, &self.unusable);
            let can_be = !self.baseless.contains(&pack) && self.can_be_based_on(bases);
            if !known.record.bases.iter().all(stays) && can_be {
                rebased.insert(pack, bases.iter().copied().collect());
            }
        }
        rebased
    }

    /// Whether all that is needed in a later state is what is needed in this one, and still there.
    fn holds(&self, catalog: &Catalog, kept: &BTreeSet<PackName>) -> bool {
        let state = |catalog: &Catalog, pack| catalog.packs.get(pack).map(|pack| pack.state);
        catalog.sequence == self.catalog.sequence
            || (catalog.roots().all(|root| self.manifests.contains(&root.manifest.name))
                && kept.iter().all(|pack| {
                    let now = state(catalog, pack);
                    now == Some(PackState::Live) || now == state(&self.catalog, pack)
                }))
    }
}

impl Region {
    /// Finds out what is needed now. Anything that cannot be read, and a chunk that is nowhere, is an error: then
    /// nobody knows, and nothing may be removed. `watch` is asked now and then whether to go on. Memory: 8 to 16
    /// bytes for each chunk that is referred to, 24 for each delta, and some 150 for each chunk that is in several packs,
    /// as what was rewritten is until the old packs are gone. Of several places one in `avoided` packs is kept last.
    pub fn mark<E: From<RegionError>>(
        &self,
        avoided: &HashSet<PackName>,
        watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Mark, E> {
        self.mark_despite(Losses::Refused, avoided, watch)
    }

    /// As [`Region::mark`]; with [`Losses::Accepted`] also if chunks are nowhere, where that is no wonder.
    pub fn mark_despite<E: From<RegionError>>(
        &self,
        losses: Losses,
        avoided: &HashSet<PackName>,
        watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Mark, E> {
        self.mark_after(&|_| Vec::new(), losses, avoided, watch)
    }

    /// The same, as if the operations that a state asks for were on record, too: for a preview.
    pub fn mark_after<E: From<RegionError>>(
        &self,
        ops: &dyn Fn(&Catalog) -> Vec<Op>,
        losses: Losses,
        avoided: &HashSet<PackName>,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Mark, E> {
        let catalog = self.catalog()?;
        let catalog = catalog.after(&ops(&catalog)).map_err(RegionError::Rejected)?;
        let index = self.index_of(&catalog);
        if let Some(pack) = index.unreadable().first() {
            let (count, cure) = (index.unreadable().len(), pack.error.way_out());
            let why = format!("packs cannot be read: {count} ({}){cure}", pack.error);
            return Err(RegionError::Uncollectable { why }.into());
        }
        let mut gathered = Gathered::new();
        let mut manifests = BTreeSet::new();
        for root in catalog.roots() {
            watch()?;
            if !manifests.insert(root.manifest.name) {
                continue;
            }
            let map = self.load_root(&root).map_err(|error| lost_map(&root, &catalog, error))?;
            gathered.add(map.chunks().iter().map(|chunk| chunk.id.leading()));
        }
        let live = gathered.into_settled();
        let mut mark = Mark {
            unusable: catalog.unusable_condemned(),
            catalog,
            index,
            live,
            manifests,
            avoided: avoided.clone(),
            bases: Vec::new(),
            usage: BTreeMap::new(),
            deltas: BTreeMap::new(),
            based_on: BTreeMap::new(),
            baseless: BTreeSet::new(),
            doubles: Vec::new(),
            lost: Lost::default(),
            unsaved: BTreeSet::new(),
        };
        // Which packs stay says which bases do, and the other way round: until no pack comes to it.
        let (mut named, mut scanned, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        loop {
            let is_incomplete = mark.settle_usage(&named, &scanned, &mut watch)?;
            let more: Vec<PackName> = mark
                .usage
                .keys()
                .copied()
                .filter(|p| mark.deltas.contains_key(p) && seen.insert(*p))
                .collect();
            if more.is_empty() {
                mark.lost = self.find_lost(&mark, losses, is_incomplete, &mut watch)?;
                mark.unsaved = self.find_unsaved(&mark, &mark.index, watch)?;
                return Ok(mark);
            }
            for pack in more {
                watch()?;
                let number = u32::try_from(scanned.len()).unwrap_or(u32::MAX);
                scanned.push(pack);
                // What is damaged there, was stored elsewhere.
                if mark.index.rank(&pack) > 1 {
                    continue;
                }
                let Some(known) = mark.catalog.packs.get(&pack) else { continue };
                let trailer = read_trailer(&*self.0.storage, self.0.header.id, &known.record)
                    .map_err(|error| E::from(error.into()))?;
                named.extend(trailer.deltas().map(|(_, base)| (base, number)));
            }
            named.par_sort_unstable();
            mark.bases = named.iter().map(|(base, _)| *base).collect();
            mark.bases.dedup();
        }
    }

    /// Puts on record where the bases are of deltas in packs that stay, if they were elsewhere, too, and the mark still
    /// holds; whether it did, if there was such a pack.
    pub fn rebase(
        &self,
        mark: &Mark,
        kept: &BTreeSet<PackName>,
        account: AccountId,
    ) -> Result<bool, RegionError> {
        self.commit(account, |catalog| {
            let rebased = mark.to_rebase(catalog, kept).into_iter();
            let ops: Vec<Op> = rebased.map(|(pack, bases)| Op::RebasePack { pack, bases }).collect();
            // Else whoever acts on the mark asks.
            let holds = ops.is_empty() || mark.holds(catalog, kept);
            Ok((if holds { ops } else { vec![] }, holds))
        })
    }

    /// Whether all that a mark keeps is still there, and nothing more is needed.
    pub fn still_holds(&self, mark: &Mark, kept: &BTreeSet<PackName>) -> Result<bool, RegionError> {
        Ok(mark.holds(&self.catalog()?, kept))
    }

    /// Condemns packs that a mark says nothing needs, if that still holds; whether it did.
    pub fn condemn(
        &self,
        mark: &Mark,
        kept: &BTreeSet<PackName>,
        packs: &[PackName],
        account: AccountId,
        at_ms: TimeMs,
    ) -> Result<bool, RegionError> {
        let going: HashSet<&PackName> = packs.iter().collect();
        self.commit(account, |catalog| {
            let is_live =
                |pack: &PackName| catalog.packs.get(pack).is_some_and(|p| p.state == PackState::Live);
            // Somebody may have stored deltas against one of them meanwhile.
            let is_base_of = |pack: &Pack| {
                pack.state == PackState::Live
                    && !going.contains(&pack.record.name)
                    && pack.record.bases.iter().any(|base| going.contains(base))
            };
            if !mark.holds(catalog, kept)
                || !packs.iter().all(is_live)
                || catalog.packs.values().any(is_base_of)
            {
                return Ok((vec![], false));
            }
            let packs = packs.to_vec();
            Ok((vec![Op::CondemnPacks { packs, at_ms }], true))
        })
    }

    /// Puts condemned and damaged packs that are `due` and not kept on record as being swept, if the mark still holds:
    /// a pack that is kept may have been found damaged meanwhile, and one that goes be all that is left. Gives those
    /// that now are being swept.
    pub fn sweep(
        &self,
        mark: &Mark,
        kept: &BTreeSet<PackName>,
        account: AccountId,
        due: impl Fn(&PackName, PackState) -> bool,
    ) -> Result<Vec<PackName>, RegionError> {
        self.commit(account, |catalog| {
            if !mark.holds(catalog, kept) {
                return Ok((vec![], vec![]));
            }
            let closed = |state| matches!(state, PackState::Condemned { .. } | PackState::Quarantined { .. });
            let packs = sweepable(catalog, &BTreeMap::new(), |name, state| {
                let was = mark.catalog.packs.get(name).map(|pack| pack.state);
                // What came into quarantine after the mark, nobody has looked into yet.
                let is_new = matches!(state, PackState::Quarantined { .. }) && was != Some(state);
                closed(state) && due(name, state) && !kept.contains(name) && !is_new
            });
            let packs = Vec::from_iter(packs);
            let ops = if packs.is_empty() { vec![] } else { vec![Op::SweepPacks { packs: packs.clone() }] };
            Ok((ops, packs))
        })
    }

    /// Removes the bytes of every pack that is on record as being swept, and then the packs themselves from the
    /// record. One that cannot be removed stays on record, and does not keep the others.
    pub fn remove_swept<E: From<RegionError>>(
        &self,
        account: AccountId,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Removed, E> {
        // Without operations a commit makes durable what it saw: bytes go only by a record that stays.
        let catalog = self.commit(account, |catalog| Ok::<_, RegionError>((vec![], catalog.clone())))?;
        let swept = catalog.packs.values().filter(|pack| pack.state == PackState::Sweeping);
        let (mut removed, mut done) = (BTreeSet::new(), Removed::default());
        for (number, pack) in swept.enumerate() {
            watch()?;
            if number % DELETED_AT_ONCE == 0 {
                self.head().check_place(&*self.0.storage).map_err(E::from)?;
            }
            match self.0.storage.delete(&pack.record.name.to_string()) {
                Ok(()) => {
                    removed.insert(pack.record.name);
                }
                Err(error) => done.failure = Some(error.into()),
            }
        }
        let forgotten = self.commit(account, |catalog| {
            // Another collector may have been here, too, and counts them.
            let is_swept = |pack: &&PackName| {
                catalog.packs.get(*pack).is_some_and(|pack| pack.state == PackState::Sweeping)
            };
            let packs: Vec<PackName> = removed.iter().filter(is_swept).copied().collect();
            let ops = if packs.is_empty() { vec![] } else { vec![Op::ForgetPacks { packs: packs.clone() }] };
            Ok::<_, RegionError>((ops, packs))
        });
        for pack in forgotten?.iter().filter_map(|name| catalog.packs.get(name)) {
            done.count += 1;
            done.bytes += pack.record.len;
        }
        Ok(done)
    }

    /// Looks whether every pack that a mark keeps is there: the index lists what was lost, too, and a second copy must
    /// not go for it.
    pub fn check_kept<E: From<RegionError>>(
        &self,
        mark: &Mark,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        for name in mark.usage.keys() {
            watch()?;
            let len = mark.catalog.packs.get(name).map(|pack| pack.record.len);
            let found = self.0.storage.open(&name.to_string()).map(|object| object.len());
            // What is lost with it, the mark knows.
            if mark.has_losses() && quarantined(&mark.catalog).any(|lost| lost == *name) {
                continue;
            }
            if found.as_ref().ok().copied() != len {
                let why = found.map_or_else(|e| e.to_string(), |len| format!("{name} has {len} bytes"));
                return Err(RegionError::Uncollectable { why }.into());
            }
        }
        Ok(())
    }

    /// Sessions of others that wrote packs and may still be at work.
    pub fn others_at_work(&self, catalog: &Catalog) -> Result<BTreeSet<SessionId>, RegionError> {
        let mut sessions: BTreeSet<SessionId> = catalog.packs.keys().map(|pack| pack.session).collect();
        sessions.remove(&self.0.session);
        let mut at_work = BTreeSet::new();
        for session in sessions {
            if !self.0.storage.is_writer_gone(&session.to_string())? {
                at_work.insert(session);
            }
        }
        Ok(at_work)
    }

    /// Whether this handle wrote a pack.
    pub fn is_own(&self, pack: &PackName) -> bool {
        pack.session == self.0.session
    }

    /// What effort went into a pack, as it says itself: see [`crate::format::pack::Trailer::effort`].
    pub fn effort_of(&self, pack: &PackRecord) -> Result<u8, RegionError> {
        Ok(read_effort(&*self.0.storage, pack)?)
    }

    /// See [`crate::io::storage::Storage::admit_collector`]: whether the storage is nearly full.
    pub fn admit_collector(&self) -> Result<bool, RegionError> {
        Ok(self.0.storage.admit_collector()?)
    }
}

/// The packs that are `due`, without those that hold bases of packs which stay: those on record, or what some packs are `rebased` on.
pub fn sweepable(
    catalog: &Catalog,
    rebased: &BTreeMap<PackName, Vec<PackName>>,
    due: impl Fn(&PackName, PackState) -> bool,
) -> BTreeSet<PackName> {
    let mut packs: BTreeSet<PackName> =
        catalog.packs.iter().filter(|(name, pack)| due(name, pack.state)).map(|(name, _)| *name).collect();
    loop {
        let stays = |name: &PackName, state| state != PackState::Sweeping && !packs.contains(name);
        let staying = catalog.packs.iter().filter(|(name, pack)| stays(name, pack.state));
        let bases: BTreeSet<PackName> = staying
            .flat_map(|(name, pack)| rebased.get(name).unwrap_or(&pack.record.bases))
            .copied()
            .collect();
        let before = packs.len();
        packs.retain(|pack| !bases.contains(pack));
        if packs.len() == before {
            return packs;
        }
    }
}

impl Mark {
    /// Makes out which places are kept, and what that means for packs. `named` are the bases that are known, ascending,
    /// each with the pack of a delta on it by its number in `scanned`. Whether some of what is needed is in no pack.
    fn settle_usage<E: From<RegionError>>(
        &mut self,
        named: &[(u64, u32)],
        scanned: &[PackName],
        watch: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut usage: BTreeMap<PackName, Usage> = BTreeMap::new();
        let mut based_on: BTreeMap<PackName, BTreeSet<PackName>> = BTreeMap::new();
        let mut with_deltas: BTreeMap<PackName, u64> = BTreeMap::new();
        let (mut doubles, mut named) = (Vec::new(), named);
        let (mut baseless, mut last_base) = (BTreeSet::new(), None);
        let found = self.each_kept(watch, |kept, group| {
            let deltas = group.places.iter().filter(|(entry, _)| !entry.codec.is_plain());
            deltas.for_each(|(_, pack)| *with_deltas.entry(*pack).or_default() += 1);
            let Some((entry, pack)) = kept else { return };
            let others = group.places.iter().map(|(_, other)| *other).filter(|other| *other != pack);
            let others: Vec<PackName> = others.collect();
            if !others.is_empty() {
                doubles.push(Double { entry, pack, others });
            }
            let usage = usage.entry(pack).or_default();
            usage.frames += 1;
            usage.bytes += Location::new(&entry, pack).frame_bytes();
            let key = entry.id.leading();
            let (passed, rest) = named.split_at(named.partition_point(|(base, _)| *base < key));
            baseless.extend(
                passed.iter().filter(|(base, _)| last_base != Some(*base)).map(|(_, number)| *number),
            );
            named = rest;
            if !entry.codec.is_plain() {
                return;
            }
            last_base = Some(key);
            for (_, number) in named.iter().take_while(|(base, _)| *base == key) {
                let with_delta = scanned[*number as usize];
                let on = based_on.entry(with_delta).or_default();
                if with_delta != pack {
                    on.insert(pack);
                }
            }
        })?;
        let bases = self.bases.iter().filter(|base| self.live.binary_search(base).is_err()).count();
        baseless.extend(named.iter().filter(|(base, _)| last_base != Some(*base)).map(|(_, number)| *number));
        let of_number = |number: u32| scanned.get(number as usize).copied();
        self.baseless =
            baseless.into_iter().filter_map(of_number).filter(|pack| usage.contains_key(pack)).collect();
        based_on.retain(|pack, _| usage.contains_key(pack));
        (self.usage, self.based_on, self.doubles) = (usage, based_on, doubles);
        self.deltas = with_deltas;
        Ok(found < self.live.len() + bases)
    }

    /// The leading bytes of the chunks that are needed and have no place but in packs that are `gone`, ascending.
    pub(super) fn lost_chunks<E: From<RegionError>>(
        &self,
        gone: &BTreeSet<PackName>,
        watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<u64>, E> {
        let mut found = Vec::with_capacity(self.live.len());
        self.each_kept(watch, |kept, _| {
            if let Some((entry, _)) = kept.filter(|(_, pack)| !gone.contains(pack)) {
                found.push(entry.id.leading());
            }
        })?;
        let needed = self.live.iter().chain(&self.bases).copied();
        let mut lost: Vec<u64> = needed.filter(|key| found.binary_search(key).is_err()).collect();
        settle(&mut lost);
        Ok(lost)
    }

    /// Goes through all chunks in their order, with the place that is kept of each that is live or a base. Gives the
    /// number of those (by their leading bytes).
    pub(super) fn each_kept<E: From<RegionError>>(
        &self,
        mut watch: impl FnMut() -> Result<(), E>,
        mut take: impl FnMut(Option<(Entry, PackName)>, &Group),
    ) -> Result<usize, E> {
        let failed = |error| E::from(RegionError::from(error));
        let mut places = Places::new(&self.index, self.index.segments(), true).map_err(failed)?;
        let (mut group, mut live, mut bases) = (Group::default(), &self.live[..], &self.bases[..]);
        let (mut found, mut seen, mut last) = (0, 0_u64, None);
        while places.next_into(&mut group).map_err(failed)? {
            seen += 1;
            if seen.is_multiple_of(WATCH_CHUNKS) {
                watch()?;
            }
            let Some((first, _)) = group.places.first() else { continue };
            let key = first.id.leading();
            live = &live[live.partition_point(|live| *live < key)..];
            bases = &bases[bases.partition_point(|base| *base < key)..];
            let (is_live, is_base) = (live.first() == Some(&key), bases.first() == Some(&key));
            // A chunk that only shares the leading bytes of a base may have no plain frame, and need not have one.
            let base = is_base.then(|| self.best(&group, true)).flatten();
            let kept = base.or_else(|| is_live.then(|| self.best(&group, false)).flatten());
            if kept.is_some() {
                found += usize::from(last != Some(key));
                last = Some(key);
            }
            take(kept, &group);
        }
        Ok(found)
    }

    /// The place to keep: in a live pack if there is one, not stored against what may be damaged, which new content does not
    /// count on either, not in one that is to be emptied, as a plain frame, and in the pack that comes first by name, so that
    /// everybody who asks keeps the same.
    fn best(&self, group: &Group, only_plain: bool) -> Option<(Entry, PackName)> {
        let rank = |(entry, pack): &(Entry, PackName)| {
            let is_baseless = self.index.is_baseless(&Location::new(entry, *pack));
            (self.index.rank(pack), is_baseless, self.avoided.contains(pack), !entry.codec.is_plain(), *pack)
        };
        let places = group.places.iter().copied();
        places.filter(|(entry, _)| !only_plain || entry.codec.is_plain()).min_by_key(rank)
    }
}
