//! Where chunks are: the mapped segments, and the trailers of packs that no segment lists yet.
//!
//! The index is a cache of the trailers. A segment that cannot be read is left out, and its packs count as
//! not listed, so their trailers are read instead.

use super::error::PackError;
use super::loose::Loose;
use super::quick::QuickSet;
use super::segment::{READ_AHEAD, Segment};
use super::trailer::read_trailer;
use crate::chunk::frame::Codec;
use crate::format::entry::Entry;
use crate::format::pack::FRAME_HEADER_BYTES;
use crate::io::storage::{Storage, StorageError};
use crate::model::catalog::Catalog;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::{PackName, PackState, SegmentName};
use crate::model::units::BLOCK_BYTES;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Where a chunk's frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The pack.
    pub pack: PackName,
    /// Where in it the frame's header starts.
    pub offset: u32,
    /// Bytes of the frame's body.
    pub stored_len: u32,
    /// Length of the chunk in blocks.
    pub raw_blocks: u16,
    /// How the body is coded.
    pub codec: Codec,
}

impl Location {
    /// The location that an entry of a pack gives.
    pub fn new(entry: &Entry, pack: PackName) -> Self {
        let Entry { id: _, pack: _, offset, stored_len, raw_blocks, codec } = *entry;
        Self { pack, offset, stored_len, raw_blocks, codec }
    }

    /// Bytes that the frame takes in its pack, header and body.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.stored_len)
    }

    /// Bytes that the chunk has when decoded.
    pub fn raw_bytes(&self) -> u64 {
        u64::from(self.raw_blocks) * BLOCK_BYTES as u64
    }

    /// The entry of chunk `id` here.
    pub fn entry(&self, id: ChunkId) -> Entry {
        let Self { pack: _, offset, stored_len, raw_blocks, codec } = *self;
        Entry { id, pack: 0, offset, stored_len, raw_blocks, codec }
    }
}

/// A pack whose trailer could not be read: what it holds is not in the index.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// The pack.
    pub pack: PackName,
    /// Why.
    pub error: Arc<PackError>,
}

/// The same of a pack in quarantine.
#[derive(Debug, Clone)]
struct Silent {
    error: Arc<PackError>,
    /// How often it was left out since: a read that fails takes long.
    left_out: u32,
    /// Whether it was asked for once more than that.
    was_asked_again: bool,
}

impl Silent {
    fn new(error: PackError, before: Option<&Self>, asks: bool) -> Self {
        let was_asked_again = before.is_some_and(|before| asks || before.was_asked_again);
        Self { error: Arc::new(error), left_out: 0, was_asked_again }
    }

    /// The same left out once more; none if it is time to ask for it.
    fn left_out_again(&self, asks: bool) -> Option<Self> {
        let is_asked = asks && self.error.is_io() && !self.was_asked_again;
        (self.left_out < LEFT_OUT_MAX && !is_asked)
            .then(|| Self { left_out: self.left_out + 1, ..self.clone() })
    }
}

/// What the word of a segment's filter counts that a chunk is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filters {
    /// It is taken for granted. If one is wrong, a chunk is stored a second time.
    Trusted,
    /// What filters deny is looked for last, and then all the same: nothing may be called lost by their word.
    Doubted,
}

/// What a pack is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Something new may refer to it.
    Live,
    /// A use would rescue it.
    Condemned,
    /// It can be read.
    Closed,
    /// It is not there.
    Gone,
}

/// Whether an error says that a segment is damaged or gone, and not that it is out of reach.
fn is_lost(error: &PackError) -> bool {
    match error {
        PackError::Storage(error) => error.is_not_found() || matches!(error, StorageError::Short { .. }),
        _ => true,
    }
}

/// How often the trailer of a pack in quarantine is left out after it could not be read, before it is tried again.
const LEFT_OUT_MAX: u32 = 64;

/// An immutable view of where chunks are, for one state of the catalogue.
#[derive(Debug, Default)]
pub struct Index {
    segments: Vec<Arc<Segment>>,
    /// Registered segments that are damaged or gone: the packs that they list count as loose.
    unusable: Vec<SegmentName>,
    /// For each of them, what the packs of its table are good for.
    standings: Vec<Vec<Standing>>,
    /// Packs that no segment lists, with their trailers.
    loose: Loose,
    /// Of those the ones that a segment lists a part of: a new segment would list no more of them.
    partial: HashSet<PackName>,
    unreadable: Vec<Unreadable>,
    /// Packs in quarantine whose trailers could not be read.
    silent: HashMap<PackName, Silent>,
    /// Packs that something new may refer to without having to rescue them.
    live: QuickSet<PackName>,
    /// Packs that a use would rescue.
    condemned: QuickSet<PackName>,
    /// Packs that hold damage: what is intact is read if it is nowhere else, but nothing new may refer to them.
    closed: QuickSet<PackName>,
    /// Live packs of which deltas may be on damage: something new may refer to their plain frames only.
    baseless: QuickSet<PackName>,
}

impl Index {
    /// The index for a state of the catalogue; reuses what `previous` has open and the trailers
    /// of packs that were just `written`, but none of `bad_segments`. `asks_silent` asks a device once more for what it did not
    /// give of packs in quarantine.
    pub fn refresh(
        previous: &Self,
        written: &HashMap<PackName, Arc<Vec<Entry>>>,
        storage: &dyn Storage,
        region: RegionId,
        catalog: &Catalog,
        bad_segments: &HashSet<SegmentName>,
        asks_silent: bool,
    ) -> Self {
        let mut index = Self::default();
        for record in catalog.segments.values() {
            let open = previous.segments.iter().find(|segment| segment.record() == record).cloned();
            let opened = match open {
                _ if bad_segments.contains(&record.name) => Err(true),
                Some(segment) => Ok(segment),
                None => Segment::open(storage, region, record).map(Arc::new).map_err(|error| is_lost(&error)),
            };
            match opened {
                Ok(segment) => index.segments.push(segment),
                // What cannot be opened is left out: its packs' trailers say the same.
                Err(is_lost) => index.unusable.extend(is_lost.then_some(record.name)),
            }
        }
        // A chunk that is there is most likely in the largest.
        index.segments.sort_by_key(|segment| Reverse(segment.entries()));
        let partial: QuickSet<PackName> =
            index.segments.iter().flat_map(|s| &s.record().partial).copied().collect();
        let segments = index.segments.clone();
        let mut tables: Vec<&[PackName]> = segments.iter().map(|segment| segment.packs()).collect();
        index.standings = tables.iter().map(|table| vec![Standing::Gone; table.len()]).collect();
        let mut loose = Vec::new();
        index.baseless = catalog.on_damaged_bases().collect();
        let unusable = catalog.unusable_condemned();
        for (&name, pack) in catalog.packs.iter() {
            // Its bytes may be gone, and nothing needs it.
            if pack.state == PackState::Sweeping {
                continue;
            }
            // A use of a condemned pack fails if it cannot rescue those of its bases, too: that one only gives what it has.
            let is_usable = catalog.is_usable(name, &unusable);
            let standing = index.add_pack(name, if is_usable { pack.state } else { PackState::Sweeping });
            // Tables ascend, as the catalogue does.
            let mut is_listed = false;
            for (table, standings) in tables.iter_mut().zip(&mut index.standings) {
                *table = &table[table.iter().take_while(|listed| **listed < name).count()..];
                if table.first() == Some(&name) {
                    let at = standings.len() - table.len();
                    standings[at] = standing;
                    is_listed = true;
                }
            }
            if is_listed && partial.contains(&name) {
                index.partial.insert(name);
            } else if is_listed {
                continue;
            }
            let is_damaged = matches!(pack.state, PackState::Quarantined { .. });
            let silent = previous.silent.get(&name).filter(|_| is_damaged);
            if let Some(silent) = silent.and_then(|silent| silent.left_out_again(asks_silent)) {
                index.silent.insert(name, silent);
                continue;
            }
            let known = previous.loose().get(&name).or_else(|| written.get(&name)).cloned().map_or_else(
                || read_trailer(storage, region, &pack.record).map(|trailer| Arc::new(trailer.entries)),
                Ok,
            );
            match known {
                Ok(entries) => loose.push((name, standing, entries)),
                // That something is wrong with it is known.
                Err(error) if is_damaged => {
                    index.silent.insert(name, Silent::new(error, silent, asks_silent));
                }
                Err(error) => index.unreadable.push(Unreadable { pack: name, error: Arc::new(error) }),
            }
        }
        index.loose = Loose::new(loose);
        index
    }

    /// Why packs in quarantine could not be read.
    pub fn silent(&self) -> impl Iterator<Item = &PackError> + Clone {
        self.silent.values().map(|silent| &*silent.error)
    }

    /// Whether packs in quarantine are to be asked for once more: those that a device did not give.
    pub fn asks_silent(&self) -> bool {
        self.silent.values().any(|silent| silent.error.is_io() && !silent.was_asked_again)
    }

    /// Whether packs are there that are out of reach only, and not listed.
    pub fn keeps_away(&self) -> bool {
        self.unreadable.iter().map(|pack| &*pack.error).chain(self.silent()).any(PackError::is_kept_away)
    }

    /// Registered segments that are damaged or gone. One that only cannot be read now is not among them.
    pub fn unusable(&self) -> &[SegmentName] {
        &self.unusable
    }

    /// Whether a segment of this name is looked into.
    pub fn has_segment(&self, name: &str) -> bool {
        self.segments.iter().any(|segment| segment.record().name.to_string() == name)
    }

    fn add_pack(&mut self, name: PackName, state: PackState) -> Standing {
        let (set, standing) = match state {
            PackState::Live => (&mut self.live, Standing::Live),
            PackState::Condemned { .. } => (&mut self.condemned, Standing::Condemned),
            PackState::Sweeping | PackState::Quarantined { .. } => (&mut self.closed, Standing::Closed),
        };
        set.insert(name);
        standing
    }

    /// Where a chunk can be read: best in a pack that stays; in one that `is_lost` only if there is no other.
    pub fn locate(
        &self,
        id: ChunkId,
        is_lost: impl Fn(&PackName) -> bool,
    ) -> Result<Option<Location>, PackError> {
        if let Some(location) = self.locate_for_use(id, &is_lost, Filters::Doubted)? {
            return Ok(Some(location));
        }
        let is_there = |standing| standing != Standing::Gone;
        match self.find(id, |standing, pack| is_there(standing) && !is_lost(pack), Filters::Doubted)? {
            Some(location) => Ok(Some(location)),
            None => self.find(id, |standing, _| is_there(standing), Filters::Doubted),
        }
    }

    /// Where a chunk is that something new may refer to: best in a live pack, else in a condemned one, which the
    /// use rescues; never in one that is damaged, or that `is_lost` says cannot be counted on.
    pub fn locate_for_use(
        &self,
        id: ChunkId,
        is_lost: impl Fn(&PackName) -> bool,
        filters: Filters,
    ) -> Result<Option<Location>, PackError> {
        let find = |wanted| self.find(id, |standing, pack| standing == wanted && !is_lost(pack), filters);
        match find(Standing::Live)? {
            None if !self.condemned.is_empty() => find(Standing::Condemned),
            found => Ok(found),
        }
    }

    /// Whether a place is a delta whose base may be damaged.
    pub fn is_baseless(&self, place: &Location) -> bool {
        !place.codec.is_plain() && self.baseless.contains(&place.pack)
    }

    /// Where the base of a delta is: a plain frame, best in a pack that stays, and not in one that is `avoided`.
    pub fn locate_base(
        &self,
        id: ChunkId,
        is_avoided: impl Fn(&PackName) -> bool,
    ) -> Result<Option<Location>, PackError> {
        let is_base = |place: &Location| place.codec.is_plain() && !is_avoided(&place.pack);
        Ok(self.places_of(id)?.into_iter().find(is_base))
    }

    /// A chunk whose id begins with these bytes and that is in a live pack as a plain frame.
    pub fn find_leading(
        &self,
        leading: u64,
        filters: Filters,
    ) -> Result<Option<(ChunkId, Location)>, PackError> {
        let mut loose = self.loose.places_leading(leading);
        let is_base = |(_, standing, location): &(ChunkId, Standing, Location)| {
            *standing == Standing::Live && location.codec.is_plain()
        };
        if let Some((id, _, location)) = loose.find(is_base) {
            return Ok(Some((id, location)));
        }
        let admits = |segment: &&Arc<Segment>| filters == Filters::Doubted || segment.may_hold(leading);
        for segment in self.segments.iter().filter(admits) {
            if let Some((entry, pack)) = segment.lookup_leading(leading)?
                && entry.codec.is_plain()
                && self.live.contains(&pack)
            {
                return Ok(Some((entry.id, Location::new(&entry, pack))));
            }
        }
        Ok(None)
    }

    /// What `look_up` gives for each id. What it reads of segments is read before, of some ids at once: memory is waited
    /// for once for all of them.
    pub fn for_each<T, E>(
        &self,
        ids: &[ChunkId],
        mut look_up: impl FnMut(ChunkId) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut found = Vec::with_capacity(ids.len());
        for some in ids.chunks(READ_AHEAD) {
            self.segments.iter().for_each(|segment| segment.read_ahead(some));
            for id in some {
                found.push(look_up(*id)?);
            }
        }
        Ok(found)
    }

    fn find(
        &self,
        id: ChunkId,
        admits: impl Fn(Standing, &PackName) -> bool,
        filters: Filters,
    ) -> Result<Option<Location>, PackError> {
        let mut places = self.loose.places(id);
        if let Some((_, location)) = places.find(|(standing, place)| admits(*standing, &place.pack)) {
            return Ok(Some(location));
        }
        let leading = id.leading();
        let mut are_denied = false;
        loop {
            for (segment, standings) in self.segments.iter().zip(&self.standings) {
                if segment.may_hold(leading) != are_denied
                    && let Some((entry, pack)) = segment.lookup(id)?
                    && standings.get(entry.pack as usize).is_some_and(|standing| admits(*standing, &pack))
                {
                    return Ok(Some(Location::new(&entry, pack)));
                }
            }
            if are_denied || filters == Filters::Trusted {
                return Ok(None);
            }
            are_denied = true;
        }
    }

    /// Every place of a chunk in packs that are there, best first. Filters are not asked: places are looked for where
    /// one is damaged, or a delta needs its base.
    pub fn places_of(&self, id: ChunkId) -> Result<Vec<Location>, PackError> {
        let mut places: Vec<Location> = self.loose.places(id).map(|(_, location)| location).collect();
        for segment in &self.segments {
            if let Some((entry, pack)) = segment.lookup(id)?
                && self.is_known(&pack)
                && !places.iter().any(|place| place.pack == pack)
            {
                places.push(Location::new(&entry, pack));
            }
        }
        places.sort_by_key(|place| (self.rank(&place.pack), !place.codec.is_plain(), place.pack));
        Ok(places)
    }

    /// The segments.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Packs that no segment lists all chunks of.
    pub const fn loose(&self) -> &HashMap<PackName, Arc<Vec<Entry>>> {
        self.loose.by_name()
    }

    /// Packs that no segment lists, and their entries: what a new segment would list.
    pub fn unlisted(&self) -> (usize, usize) {
        let unlisted = self.loose().iter().filter(|(name, _)| !self.partial.contains(name));
        unlisted.fold((0, 0), |(packs, entries), (_, more)| (packs + 1, entries + more.len()))
    }

    /// Whether a pack is there, in whatever state; one that is being swept counts as gone.
    pub fn is_known(&self, name: &PackName) -> bool {
        self.live.contains(name) || self.condemned.contains(name) || self.closed.contains(name)
    }

    /// How good a place is: 0 in a live pack, 1 in a condemned one, 2 elsewhere.
    pub fn rank(&self, name: &PackName) -> u8 {
        match (self.live.contains(name), self.condemned.contains(name)) {
            (true, _) => 0,
            (_, true) => 1,
            _ => 2,
        }
    }

    /// The places of the chunk whose id begins with these bytes, whatever they are good for.
    pub fn places_leading(&self, leading: u64) -> Result<Vec<(ChunkId, Location)>, PackError> {
        let loose = self.loose.places_leading(leading);
        let mut places: Vec<(ChunkId, Location)> = loose.map(|(id, _, location)| (id, location)).collect();
        for segment in &self.segments {
            let found = segment.lookup_leading(leading)?.filter(|(_, pack)| self.is_known(pack));
            places.extend(found.map(|(entry, pack)| (entry.id, Location::new(&entry, pack))));
        }
        Ok(places)
    }

    /// Whether it lists all that a pack holds.
    pub fn lists(&self, pack: &PackName) -> bool {
        let is_listed = |segment: &Arc<Segment>| segment.packs().binary_search(pack).is_ok();
        self.loose().contains_key(pack)
            || (!self.partial.contains(pack) && self.segments.iter().any(is_listed))
    }

    /// Packs whose trailers could not be read.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }
}

#[cfg(test)]
impl Index {
    /// Some segments, and live packs that none of them lists: for tests of what is made of an index.
    pub(super) fn of(segments: Vec<Arc<Segment>>, loose: Vec<(PackName, Vec<Entry>)>) -> Self {
        let mut index = Self { segments, ..Self::default() };
        let live = |(pack, entries)| (pack, index.add_pack(pack, PackState::Live), Arc::new(entries));
        let loose = loose.into_iter().map(live).collect();
        index.loose = Loose::new(loose);
        index
    }
}
