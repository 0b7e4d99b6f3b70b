//! Collection in spite of content that is lost: what a damaged snapshot still has stays, and what nothing refers to goes.
//!
//! A chunk that is nowhere may be one that the index only does not find. So a collection goes on without it only if
//! it is on record that packs are damaged, and the trailer of one of these cannot be read: then it is in there, if
//! anywhere. As long as that is so, no pack in quarantine goes, for it may be mended, a collection moves nothing, and
//! whatever else goes is proved by its own trailer to hold nothing of what is missing. A pack with a good trailer and a
//! damaged frame is none of that: it is kept for what it holds, as any other, and a second copy goes only after a proof.
//! So does a pack in quarantine that does not say what it holds: it is looked into frame by frame.

use super::Region;
use super::collect::Mark;
use super::error::RegionError;
use super::fetch::Located;
use super::salvage::Salvaged;
use crate::model::catalog::{Catalog, Pack, Root, RootId};
use crate::model::ids::ChunkId;
use crate::model::objects::{PackName, PackState};
use crate::pack::error::PackError;
use crate::pack::index::{Index, Location};
use crate::pack::trailer::read_trailer;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Bases that are looked up between two looks at whether the collection is to go on.
const LOOKED_UP_AT_ONCE: usize = 4096;

/// Whether a mark may be made although something is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// No.
    Refused,
    /// If it is on record that packs are damaged.
    Accepted,
}

/// What of the content that is referred to is lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The leading bytes of the chunks, ascending.
    chunks: Vec<u64>,
    /// What refers to them.
    roots: Vec<RootId>,
}

impl Mark {
    /// The snapshots and templates some of whose content is in no pack that can be read.
    pub fn lost_roots(&self) -> &[RootId] {
        &self.lost.roots
    }

    /// Whether there are any.
    pub fn has_losses(&self) -> bool {
        !self.lost.roots.is_empty()
    }
}

/// What is known of packs that no mark looks into.
#[derive(Default)]
struct Doubted {
    /// Those that stay.
    unsaved: BTreeSet<PackName>,
    /// Those that may go.
    held: Vec<Held>,
    /// The packs that their deltas are on.
    based_on: BTreeSet<PackName>,
    /// The leading bytes of bases of their deltas; and those of them of which it was not asked yet where they are.
    bases: HashSet<u64>,
    open: Vec<u64>,
    /// Of packs that were asked, their deltas, each with its base's.
    deltas: HashMap<PackName, HashMap<ChunkId, u64>>,
    /// Bases that were found nowhere.
    lacking: HashSet<ChunkId>,
    /// Packs all of whose chunks are among `bases`.
    gone_through: BTreeSet<PackName>,
    /// Chunks that a pack which stays has, those of them that have to be plain frames told apart.
    intact: HashSet<(ChunkId, bool)>,
}

/// A pack, the chunks that it holds, and more of them.
struct Held {
    name: PackName,
    ids: Vec<ChunkId>,
    found: Salvaged,
}

impl Doubted {
    fn note_unsaved(&mut self, held: Held) {
        self.unsaved.insert(held.name);
        self.note_bases(held.found);
    }

    fn note_bases(&mut self, found: Salvaged) {
        self.based_on.extend(found.based_on);
        found.deltas.iter().for_each(|base| self.note_base(base.leading()));
    }

    fn note_base(&mut self, leading: u64) {
        if self.bases.insert(leading) {
            self.open.push(leading);
        }
    }
}

/// Whether a mark does not look into a pack from which something may have to be read: one that is damaged, or is condemned and on
/// something damaged; one that only a command `at_work` may refer to, on something damaged.
fn is_doubted(
    mark: &Mark,
    index: &Index,
    (name, pack): (PackName, &Pack),
    at_work: &BTreeSet<PackName>,
) -> bool {
    match pack.state {
        PackState::Sweeping => false,
        PackState::Live => at_work.contains(&name) && is_on_damage(mark, &name),
        _ => index.rank(&name) > 1,
    }
}

/// Whether a pack is live and on something damaged, and a mark does not look into it.
fn is_on_damage(mark: &Mark, name: &PackName) -> bool {
    let is_live =
        |base: &PackName| mark.catalog.packs.get(base).is_some_and(|pack| pack.state == PackState::Live);
    mark.catalog.packs.get(name).is_some_and(|pack| {
        pack.state == PackState::Live && !mark.is_used(name) && !pack.record.bases.iter().all(is_live)
    })
}

const fn is_quarantined(state: PackState) -> bool {
    matches!(state, PackState::Quarantined { .. })
}

/// The packs in quarantine.
pub(super) fn quarantined(catalog: &Catalog) -> impl Iterator<Item = PackName> {
    catalog.packs.iter().filter(|(_, pack)| is_quarantined(pack.state)).map(|(name, _)| *name)
}

/// How a collection names a snapshot or template.
pub(super) fn name_of(root: RootId, catalog: &Catalog) -> String {
    match root {
        RootId::Snapshot(id) if catalog.binned_snapshots.contains_key(&id) => {
            format!("{id}, which is in the recycle bin,")
        }
        root => root.to_string(),
    }
}

/// A block map that cannot be read: nobody knows what its snapshot needs.
pub(super) fn lost_map(root: &Root<'_>, catalog: &Catalog, error: RegionError) -> RegionError {
    if !error.is_loss() {
        return error;
    }
    let cure = match root.id {
        RootId::Snapshot(id) if catalog.binned_snapshots.contains_key(&id) => format!(
            "take it out of the bin with `imgstore bin restore {id}`, and an image on it that is there, too; remove the rules \
             of `imgstore bin rules` that keep them, deregister the image, and delete it with `imgstore delete-snapshot {id}`"
        ),
        RootId::Snapshot(id) if catalog.retained_snapshots.contains_key(&id) => {
            "delete the volumes that were made from it, which may be another account's, with `imgstore delete-volume` or `imgstore terminate`"
                .into()
        }
        RootId::Snapshot(id) => format!(
            "remove the rules of `imgstore bin rules` that would keep images on it, take those out of the bin that are there \
             (`imgstore bin restore`), deregister them all, which may be another account's, too, and delete it with \
             `imgstore delete-snapshot {id}`"
        ),
        RootId::Template(_) => "remove the rules of `imgstore bin rules` that would keep its image, take that out of the bin if it \
            is there (`imgstore bin restore`), deregister it, and terminate the instances of it, which may be another account's"
            .into(),
    };
    RegionError::LostMap { root: name_of(root.id, catalog), cure, source: Box::new(error) }
}

impl Region {
    /// Finds out what is lost of what a mark keeps. An error if it is not known why.
    pub(super) fn find_lost<E: From<RegionError>>(
        &self,
        mark: &Mark,
        losses: Losses,
        is_incomplete: bool,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Lost, E> {
        let mut gone = BTreeSet::new();
        for name in quarantined(&mark.catalog).filter(|name| mark.is_used(name)) {
            watch()?;
            // One that is not kept for anything may be gone.
            if losses == Losses::Accepted && !self.is_pack_readable(mark, name)? {
                gone.insert(name);
            }
        }
        if !is_incomplete && gone.is_empty() {
            return Ok(Lost::default());
        }
        let chunks = mark.lost_chunks(&gone, &mut watch)?;
        let mut roots = Vec::new();
        for root in mark.catalog.roots() {
            watch()?;
            let map = self.load_root(&root).map_err(|error| lost_map(&root, &mark.catalog, error))?;
            if map.chunks().iter().any(|chunk| chunks.binary_search(&chunk.id.leading()).is_ok()) {
                roots.push(root.id);
            }
        }
        let lost = Lost { chunks, roots };
        if losses == Losses::Refused || !self.is_accounted_for(mark, &lost)? {
            let first = lost.roots.first().map(|root| name_of(*root, &mark.catalog));
            let why = match first {
                Some(first) => format!("chunks that {first} refers to are in no pack"),
                None => "bases of stored chunks are in no pack".into(),
            };
            return Err(RegionError::Uncollectable { why }.into());
        }
        Ok(lost)
    }

    /// Packs that stay beside those that a mark keeps: those in quarantine that no longer say what they hold, and hold what is needed
    /// and no pack that stays has intact (a repair that was interrupted has not moved it yet), and those of which that is not known
    /// now. And what the deltas are on in packs that no mark looks into: a base may be elsewhere than is on record.
    pub(super) fn find_unsaved<E: From<RegionError>>(
        &self,
        mark: &Mark,
        index: &Index,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<BTreeSet<PackName>, E> {
        if quarantined(&mark.catalog).next().is_none() {
            return Ok(BTreeSet::new());
        }
        let mut doubted = Doubted::default();
        let at_work = self.packs_at_work(mark)?;
        for (&name, pack) in mark.catalog.packs.iter() {
            if !is_doubted(mark, index, (name, pack), &at_work) {
                continue;
            }
            watch()?;
            let is_unlisted = is_quarantined(pack.state) && !mark.is_used(&name) && !index.lists(&name);
            // While content is lost, all packs in quarantine stay, with what they are on record with.
            self.look_into(mark, name, is_unlisted && !mark.has_losses(), &mut doubted)?;
        }
        let all: HashSet<ChunkId> = doubted.held.iter().flat_map(|held| &held.ids).copied().collect();
        doubted.lacking.extend(doubted.held.iter().flat_map(|held| &held.found.lacking));
        let (is_any_unread, mut looked_into) = (!doubted.unsaved.is_empty(), BTreeSet::new());
        loop {
            // They may hold any base: those that were not read, and those of which more is known once they are mended.
            let may_hold_any = is_any_unread || !doubted.lacking.is_disjoint(&all);
            self.judge_held(mark, may_hold_any, &mut doubted, &mut watch)?;
            let stay = mark.catalog.with_bases(doubted.unsaved.iter().chain(&doubted.based_on).copied());
            // Whoever comes next counts on all that is in a live pack, whatever it is kept for.
            let is_new = |name: &PackName| is_on_damage(mark, name) && looked_into.insert(*name);
            let new: Vec<PackName> = mark.kept_packs().union(&stay).copied().filter(is_new).collect();
            if new.is_empty() {
                return Ok(stay);
            }
            for name in new {
                watch()?;
                self.look_into(mark, name, false, &mut doubted)?;
            }
        }
    }

    /// Keeps those of the packs that may go that hold what is needed, as far as is known by now.
    fn judge_held<E: From<RegionError>>(
        &self,
        mark: &Mark,
        may_hold_any: bool,
        doubted: &mut Doubted,
        watch: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            self.add_bases_of_bases(doubted, watch)?;
            let (all, mut going) = (std::mem::take(&mut doubted.held), Vec::new());
            let before = all.len();
            for held in all {
                watch()?;
                if (may_hold_any && !held.found.lacking.is_empty()) || self.is_needed_of(mark, &held, doubted)
                {
                    doubted.note_unsaved(held);
                } else {
                    going.push(held);
                }
            }
            doubted.held = going;
            // One that stays may need another.
            if doubted.held.len() == before {
                return Ok(());
            }
        }
    }

    /// Live packs that a running command may be about to use: those that it stored, and what they are on.
    fn packs_at_work(&self, mark: &Mark) -> Result<BTreeSet<PackName>, RegionError> {
        let others = self.others_at_work(&mark.catalog)?;
        let live = mark.catalog.packs.iter().filter(|(_, pack)| pack.state == PackState::Live);
        let unused = live.map(|(name, _)| *name).filter(|name| !mark.is_used(name));
        let stored = unused.filter(|name| self.is_own(name) || others.contains(&name.session));
        Ok(mark.catalog.with_bases(stored))
    }

    /// Notes what is to be known of a pack that no mark looks into. If it `may_go`, what it holds.
    fn look_into(
        &self,
        mark: &Mark,
        name: PackName,
        may_go: bool,
        doubted: &mut Doubted,
    ) -> Result<(), RegionError> {
        let Some(pack) = mark.catalog.packs.get(&name) else { return Ok(()) };
        if let Ok(trailer) = read_trailer(&*self.0.storage, self.0.header.id, &pack.record) {
            // Nobody knows what a running command needs of what it has stored. Of what is damaged, what is needed and is in no
            // better pack: the rest is there already.
            let is_at_work = pack.state == PackState::Live;
            for (entry, base) in trailer.deltas() {
                if is_at_work || (mark.is_needed(entry.id.leading()) && self.is_only_in_doubted(entry.id)?) {
                    doubted.note_base(base);
                }
            }
            // It could not be read a moment ago: the next mark finds it listed.
            doubted.unsaved.extend(may_go.then_some(name));
            return Ok(());
        }
        // That this one has it, too, is known from a segment: what is kept was proved, or will be.
        if pack.state != PackState::Live && !mark.is_used(&name) && mark.lists(&name) {
            return Ok(());
        }
        match self.0.storage.open(&name.to_string()) {
            // What is gone needs nothing.
            Err(error) if error.is_not_found() => return Ok(()),
            _ => {}
        }
        let mut ids = Vec::new();
        let found = self.salvage(name, |id, _| ids.push(id))?;
        let found = found.unwrap_or(Salvaged { is_unread: true, ..Salvaged::default() });
        if found.is_unread || ids.is_empty() {
            self.add_all_on_record(pack, doubted)?;
        }
        let held = Held { name, ids, found };
        if may_go && !held.found.is_unread {
            doubted.held.push(held);
            return Ok(());
        }
        doubted.lacking.extend(&held.found.lacking);
        // What cannot be read now may be read later.
        doubted.unsaved.extend(may_go.then_some(name));
        doubted.note_bases(held.found);
        Ok(())
    }

    /// The bases of a pack's deltas may be any that a pack holds that it is on record with, wherever those are by now.
    fn add_all_on_record(&self, pack: &Pack, doubted: &mut Doubted) -> Result<(), RegionError> {
        let catalog = self.catalog()?;
        let records = pack.record.bases.iter().filter_map(|base| catalog.packs.get(base));
        for base in records.filter(|base| base.state != PackState::Live) {
            let held = base.record.name;
            if !doubted.gone_through.insert(held) {
                continue;
            }
            match self.salvage(held, |id, _| doubted.note_base(id.leading()))? {
                // It says what it holds.
                None => {
                    let trailer = read_trailer(&*self.0.storage, self.0.header.id, &base.record)?;
                    let plain = trailer.entries.iter().filter(|entry| entry.codec.is_plain());
                    plain.for_each(|entry| doubted.note_base(entry.id.leading()));
                }
                Some(salvaged) if salvaged.may_have_more => {
                    let why = format!(
                        "{held} cannot be read now, and nobody knows what {} needs of it: if it never can be again, let a repair \
                         take what it can, and then take its file away",
                        pack.record.name
                    );
                    return Err(RegionError::Uncollectable { why });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Notes where bases are. One may be a delta itself where it is left, whatever that pack is good for: then what that needs is
    /// needed, too.
    fn add_bases_of_bases<E: From<RegionError>>(
        &self,
        doubted: &mut Doubted,
        watch: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        while !doubted.open.is_empty() {
            watch()?;
            let some = doubted.open.split_off(doubted.open.len().saturating_sub(LOOKED_UP_AT_ONCE));
            let is_good =
                |place: &Location, index: &Index| place.codec.is_plain() && index.rank(&place.pack) < 2;
            let mut deltas: Vec<Located> = Vec::new();
            let packs = self.with_index(|index| {
                let mut packs = BTreeSet::new();
                deltas.clear();
                for base in &some {
                    let places = index.places_leading(*base)?;
                    packs.extend(places.iter().map(|(_, place)| place.pack));
                    if !places.iter().any(|(_, place)| is_good(place, index)) {
                        deltas.extend(places.into_iter().filter(|(_, place)| !place.codec.is_plain()));
                    }
                }
                Ok(packs)
            })?;
            doubted.based_on.extend(packs);
            for located in deltas {
                watch()?;
                self.add_base_of(located, doubted)?;
            }
        }
        Ok(())
    }

    fn add_base_of(&self, (id, place): Located, doubted: &mut Doubted) -> Result<(), RegionError> {
        let of_pack = || self.bases_in(&place.pack).unwrap_or_default();
        let told = doubted.deltas.entry(place.pack).or_insert_with(of_pack).get(&id).copied();
        if let Some(base) = told {
            doubted.note_base(base);
            return Ok(());
        }
        match self.0.storage.open(&place.pack.to_string()) {
            Err(error) if error.is_not_found() => return Ok(()),
            _ => {}
        }
        // What its pack does not say, the frame does; and else what its pack is on record with.
        let named = self.bases_named(&[(id, place)]);
        named.iter().for_each(|base| doubted.note_base(base.leading()));
        match self.catalog()?.packs.get(&place.pack) {
            Some(pack) if named.is_empty() => self.add_all_on_record(pack, doubted),
            _ => Ok(()),
        }
    }

    /// Whether a pack holds what is needed, and is in no pack that stays.
    fn is_needed_of(&self, mark: &Mark, held: &Held, doubted: &mut Doubted) -> bool {
        held.ids.iter().any(|&id| {
            let is_base = mark.is_base(id.leading()) || doubted.bases.contains(&id.leading());
            let is_needed = is_base || mark.is_needed(id.leading());
            if !is_needed || doubted.lacking.contains(&id) {
                return is_needed || doubted.lacking.contains(&id);
            }
            // What was proved is not read again.
            let is_intact = doubted.intact.contains(&(id, is_base)) || self.is_kept_intact(mark, id, is_base);
            if is_intact {
                doubted.intact.insert((id, is_base));
            }
            !is_intact
        })
    }

    /// Whether a chunk is in no pack that something new may refer to.
    fn is_only_in_doubted(&self, id: ChunkId) -> Result<bool, RegionError> {
        let is_good = |place: &Location, index: &Index| index.rank(&place.pack) < 2;
        Ok(!self.with_index(|index| Ok(index.places_of(id)?.iter().any(|place| is_good(place, index))))?)
    }

    /// Whether a pack that stays has a chunk intact.
    fn is_kept_intact(&self, mark: &Mark, id: ChunkId, only_plain: bool) -> bool {
        let places = self.with_index(|index| index.places_of(id)).unwrap_or_default();
        let mut kept = places
            .into_iter()
            .filter(|place| mark.is_used(&place.pack) && (place.codec.is_plain() || !only_plain));
        kept.any(|place| self.prove_at((id, place)).is_ok())
    }

    /// Whether what is missing may be in a pack that is on record as damaged and cannot be read.
    fn is_accounted_for(&self, mark: &Mark, lost: &Lost) -> Result<bool, RegionError> {
        if lost.roots.is_empty() {
            return Ok(false);
        }
        for name in quarantined(&mark.catalog) {
            if !self.is_pack_readable(mark, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a pack is there and says what it holds. That it cannot be read now is an error.
    fn is_pack_readable(&self, mark: &Mark, name: PackName) -> Result<bool, RegionError> {
        let Some(pack) = mark.catalog.packs.get(&name) else { return Ok(false) };
        match read_trailer(&*self.0.storage, self.0.header.id, &pack.record) {
            Ok(_) => Ok(true),
            Err(error) => match RegionError::from(error) {
                error if error.is_damage() => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Proves that packs which are to go hold nothing of what a mark does not find, by their own trailers.
    pub fn prove_unwanted<E: From<RegionError>>(
        &self,
        mark: &Mark,
        going: impl IntoIterator<Item = PackName>,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        if mark.lost.chunks.is_empty() {
            return Ok(());
        }
        for name in going {
            watch()?;
            let Some(pack) = mark.catalog.packs.get(&name) else { continue };
            let why = match read_trailer(&*self.0.storage, self.0.header.id, &pack.record) {
                // What is not there cannot be removed.
                Err(PackError::Storage(error)) if error.is_not_found() => continue,
                Err(error) => error.to_string(),
                Ok(trailer) => {
                    let is_lost = |leading: u64| mark.lost.chunks.binary_search(&leading).is_ok();
                    match trailer.entries.iter().find(|entry| is_lost(entry.id.leading())) {
                        Some(entry) => {
                            format!("{name} holds chunk {}, which the index does not find", entry.id)
                        }
                        None => continue,
                    }
                }
            };
            return Err(RegionError::Uncollectable { why }.into());
        }
        Ok(())
    }
}
