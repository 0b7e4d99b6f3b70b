//! Reading chunks of a region: the I/O here, the decoding wherever the caller has a thread for it.

use super::Region;
use super::bases::{Bases, Content};
use super::error::RegionError;
use crate::chunk::frame::{CodecPool, Frame};
use crate::io::storage::StorageError;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use crate::model::units::BLOCK_BYTES;
use crate::pack::error::PackError;
use crate::pack::index::{Filters, Index, Location};
use crate::pack::read::{ReadRun, base_in, decode_frame, plan_reads, stored_frame};
use crate::pack::spare::Bytes;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, PoisonError};

/// A read with the bytes that it gave.
pub(super) type StoredRun = (ReadRun, Bytes);

/// Bytes of a chunk in the index.
pub use crate::format::entry::ENTRY_BYTES;

/// A chunk with its place.
pub type Located = (ChunkId, Location);

/// Stored frames of a list of chunks, and of the bases of those that are deltas.
pub struct Fetched {
    wanted: Vec<Located>,
    runs: Vec<StoredRun>,
    bases: Bases,
}

/// One fetched frame: which of the wanted chunks it is, and where its bytes are.
#[derive(Debug, Clone, Copy)]
pub struct FetchedFrame {
    /// Place of the chunk in what was asked for.
    pub wanted: usize,
    run: usize,
}

impl Fetched {
    /// The frames, in the order in which they lie in packs.
    pub fn frames(&self) -> Vec<FetchedFrame> {
        let members = |(run, (read, _)): (usize, &(ReadRun, _))| {
            read.members.iter().map(move |&wanted| FetchedFrame { wanted, run }).collect::<Vec<_>>()
        };
        self.runs.iter().enumerate().flat_map(members).collect()
    }

    /// The chunk of a frame.
    pub fn id(&self, frame: FetchedFrame) -> ChunkId {
        self.wanted[frame.wanted].0
    }

    /// Bytes that the chunk of a frame has when decoded.
    pub fn raw_bytes(&self, frame: FetchedFrame) -> usize {
        usize::from(self.wanted[frame.wanted].1.raw_blocks) * BLOCK_BYTES
    }

    /// Decodes a frame into `raw`, which is as long as the chunk, and proves it by its hash.
    ///
    /// If it is damaged, and the chunk is somewhere else, too, it is decoded from there.
    pub fn decode(&self, region: &Region, frame: FetchedFrame, raw: &mut [u8]) -> Result<(), RegionError> {
        let base = |id| self.bases.content(region, id).or_else(|| region.intact_base(id));
        self.decode_with(region, frame, base, raw).or_else(|error| {
            match region.intact_content(self.wanted[frame.wanted].0) {
                Some(content) if content.len() == raw.len() => {
                    raw.copy_from_slice(&content);
                    Ok(())
                }
                _ => Err(region.unless_out_of_reach(error)),
            }
        })
    }

    /// As [`Fetched::decode`], and a damaged frame is an error. A damaged base is none if it is somewhere else, too. All was
    /// read now: it is a proof.
    pub fn decode_here(
        &self,
        region: &Region,
        frame: FetchedFrame,
        raw: &mut [u8],
    ) -> Result<(), RegionError> {
        self.decode_with(region, frame, |id| self.bases.intact_content(region, id), raw)
    }

    fn decode_with(
        &self,
        region: &Region,
        frame: FetchedFrame,
        base: impl Fn(ChunkId) -> Option<Content>,
        raw: &mut [u8],
    ) -> Result<(), RegionError> {
        let (run, bytes) = &self.runs[frame.run];
        let located = self.wanted[frame.wanted];
        let base = base_in(run, bytes, &located.1).and_then(base);
        Ok(decode_frame(&region.0.codecs, run, bytes, located, base.as_deref(), raw)?)
    }

    /// The frame as it is stored, after a check of its checksum.
    pub fn stored(&self, frame: FetchedFrame) -> Result<(ChunkId, Frame), RegionError> {
        let (run, bytes) = &self.runs[frame.run];
        let located = self.wanted[frame.wanted];
        let body = stored_frame(run, bytes, located)?.to_vec();
        Ok((located.0, Frame { codec: located.1.codec, raw_blocks: located.1.raw_blocks, body }))
    }
}

/// How often chunks are looked for while others write to the log, before one that was not found is nowhere.
pub(super) const MOVES: usize = 8;

/// The packs that chunks are in, and for deltas those that are on record with bases of theirs: a commit that counts on all of these
/// is refused once one of them is damaged.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) packs: BTreeSet<PackName>,
    /// Those whose bases are among them.
    with_bases: HashSet<PackName>,
}

impl Used {
    fn has(&self, place: &Location) -> bool {
        if place.codec.is_plain() {
            self.packs.contains(&place.pack)
        } else {
            self.with_bases.contains(&place.pack)
        }
    }

    /// Counts on what is at a place.
    pub(super) fn count_on(&mut self, region: &Region, place: &Location) {
        self.packs.insert(place.pack);
        if !place.codec.is_plain() && self.with_bases.insert(place.pack) {
            let head = region.head();
            let bases = head.catalog().packs.get(&place.pack).map(|pack| pack.record.bases.iter());
            self.packs.extend(bases.into_iter().flatten());
        }
    }
}

/// What a region held at a moment.
pub struct Stored {
    region: Region,
    index: Arc<Index>,
}

impl Stored {
    /// The packs that chunks were in such that something new might refer to them; none if one was in none.
    pub fn packs_of(&self, ids: &[ChunkId]) -> Result<Option<BTreeSet<PackName>>, RegionError> {
        match self.packs_in_index(ids) {
            // A damaged segment: the region leaves it out.
            Err(PackError::Damaged { .. }) => {
                let mut used = Used::default();
                for place in self.region.try_locate_usable(ids)? {
                    let Some(place) = place else { return Ok(None) };
                    used.count_on(&self.region, &place);
                }
                Ok(Some(used.packs))
            }
            packs => Ok(packs?),
        }
    }

    fn packs_in_index(&self, ids: &[ChunkId]) -> Result<Option<BTreeSet<PackName>>, PackError> {
        // All places first: what waits for memory waits together. Then the packs, which are few.
        let place = |id| self.index.locate_for_use(id, |_| false, Filters::Trusted);
        let places = self.index.for_each(ids, place)?;
        let mut used = Used::default();
        for (place, &id) in places.into_iter().zip(ids) {
            let Some(place) = place else { return Ok(None) };
            let is_baseless = self.index.is_baseless(&place);
            if !is_baseless && used.has(&place) {
                continue;
            }
            if !is_baseless && self.region.is_there(place.pack)? {
                used.count_on(&self.region, &place);
                continue;
            }
            let Some(usable) = self.region.locate_usable(&self.index, id, Filters::Trusted)? else {
                return Ok(None);
            };
            used.count_on(&self.region, &usable);
        }
        Ok(Some(used.packs))
    }
}

impl Region {
    /// Where chunks are; one that is nowhere is an error.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Located>, RegionError> {
        let found = self.try_locate(ids)?;
        let required = |(&id, location): (&ChunkId, Option<Location>)| match location {
            Some(location) => Ok((id, location)),
            None => Err(self.missing(id)),
        };
        ids.iter().zip(found).map(required).collect()
    }

    /// Where chunks are, those that are anywhere.
    pub fn try_locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>, RegionError> {
        self.unless_moved(|| {
            let lost = self.lost_packs();
            self.with_index(|index| index.for_each(ids, |id| index.locate(id, |pack| lost.contains(pack))))
        })
    }

    /// Looks for chunks, again if one was nowhere and others may have moved it meanwhile: then its old pack went after the index was
    /// made that knows of no other.
    fn unless_moved(
        &self,
        look: impl Fn() -> Result<Vec<Option<Location>>, RegionError>,
    ) -> Result<Vec<Option<Location>>, RegionError> {
        for _ in 1..MOVES {
            let before = self.head().position().sequence;
            let found = look()?;
            if found.iter().all(Option::is_some) || self.catalog()?.sequence == before {
                return Ok(found);
            }
        }
        look()
    }

    /// Whether chunks are stored, such that something new may refer to them. Quick where they are not; a chunk that a
    /// damaged filter denies counts as not stored, so what is lost is for [`Region::try_locate_usable`] to say.
    pub fn has_chunks(&self, ids: &[ChunkId]) -> Result<Vec<bool>, RegionError> {
        self.with_index(|index| {
            index.for_each(ids, |id| Ok(self.locate_usable(index, id, Filters::Trusted)?.is_some()))
        })
    }

    /// What is stored now, for looking up often: [`Region::has_chunks`] looks at the log each time.
    pub fn stored(&self) -> Result<Stored, RegionError> {
        Ok(Stored { region: self.clone(), index: self.index()? })
    }

    /// Where chunks are that can be counted on: in a live or condemned pack that is there.
    pub fn try_locate_usable(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>, RegionError> {
        self.unless_moved(|| {
            self.with_index(|index| index.for_each(ids, |id| self.locate_usable(index, id, Filters::Doubted)))
        })
    }

    /// Whether chunks are in a live pack that is there: one that no collection takes without looking again.
    pub fn has_live_chunks(&self, ids: &[ChunkId]) -> Result<Vec<bool>, RegionError> {
        self.with_index(|index| {
            let is_live = |place: Option<Location>| place.is_some_and(|place| index.rank(&place.pack) == 0);
            index.for_each(ids, |id| self.locate_usable(index, id, Filters::Doubted).map(is_live))
        })
    }

    /// Where a chunk is, in a pack that something new may refer to and that is there.
    pub(super) fn locate_usable(
        &self,
        index: &Index,
        id: ChunkId,
        filters: Filters,
    ) -> Result<Option<Location>, PackError> {
        // Asked for every chunk: what was lost is gathered only where something was.
        let (mut lost, mut more) = (None::<Arc<HashSet<PackName>>>, Vec::new());
        loop {
            let is_lost = |pack: &PackName| {
                lost.as_ref().is_some_and(|lost| lost.contains(pack)) || more.contains(pack)
            };
            match index.locate_for_use(id, is_lost, filters)? {
                Some(location) if index.is_baseless(&location) || !self.is_there(location.pack)? => {
                    more.push(location.pack);
                    lost.get_or_insert_with(|| self.lost_packs());
                }
                located => return Ok(located),
            }
        }
    }

    /// Packs that were looked for in vain.
    pub(super) fn lost_packs(&self) -> Arc<HashSet<PackName>> {
        self.0.presence.lock().unwrap_or_else(PoisonError::into_inner).lost.clone()
    }

    /// Looks for packs anew when they are asked for the next time.
    pub(super) fn forget_presence(&self, packs: impl Iterator<Item = PackName>) {
        let mut presence = self.0.presence.lock().unwrap_or_else(PoisonError::into_inner);
        for pack in packs {
            presence.note(pack, true);
            presence.can_be_used.remove(&pack);
        }
    }

    /// Whether a registered pack is there in its length, and those with the bases of its deltas. It is looked for once.
    pub(super) fn is_there(&self, name: PackName) -> Result<bool, PackError> {
        let mut presence = self.0.presence.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&known) = presence.can_be_used.get(&name) {
            return Ok(known);
        }
        loop {
            let before = self.head().position().sequence;
            let is_there = self.is_there_with_bases(name, &mut presence.opened)?;
            // What is gone may have been collected, and the pack be put on other bases.
            let has_moved = || match self.catalog() {
                Ok(now) => Ok(now.sequence != before),
                // Nobody knows. Any other error says that the log ends here.
                Err(RegionError::Storage(error)) if !error.is_not_found() => Err(error),
                Err(_) => Ok(false),
            };
            if is_there || !has_moved()? {
                presence.note(name, is_there);
                return Ok(is_there);
            }
        }
    }

    /// Whether a registered pack is there, and those with the bases of its deltas: it is of no use without them. Of these, those
    /// that were `opened` before are there.
    fn is_there_with_bases(&self, name: PackName, opened: &mut HashSet<PackName>) -> Result<bool, PackError> {
        let packs = self.head().catalog().packs.clone();
        let Some(pack) = packs.get(&name) else { return Ok(false) };
        let bases = pack.record.bases.iter().map(|base| (*base, packs.get(base).map_or(0, |p| p.record.len)));
        let bases = bases.filter(|(base, _)| !opened.contains(base)).collect::<Vec<_>>();
        for (name, len) in [(name, pack.record.len)].into_iter().chain(bases) {
            if !self.is_whole_object(name, len)? {
                return Ok(false);
            }
            opened.insert(name);
        }
        Ok(true)
    }

    /// Whether a pack's object is there in its length. That it cannot be told is an error.
    pub(super) fn is_whole_object(&self, name: PackName, len: u64) -> Result<bool, PackError> {
        match self.0.storage.open(&name.to_string()) {
            Ok(object) => Ok(object.len() == len),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Notes that a pack was looked for in vain; whether that is news.
    pub(super) fn note_lost(&self, name: &str) -> bool {
        let Some(pack) = PackName::parse(name) else { return false };
        let mut presence = self.0.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.opened.remove(&pack);
        presence.note(pack, false) != Some(false)
    }

    /// Reads the stored frames of chunks, near ones together. If a pack is gone, the log is replayed and the
    /// chunks are looked up again, elsewhere if they have another place; only then is one missing. What the device does not
    /// give is read where else it is, too.
    pub fn fetch(&self, ids: &[ChunkId]) -> Result<Fetched, RegionError> {
        loop {
            let before = self.head().position();
            let wanted = self.locate(ids)?;
            match self.read_with_bases(&wanted) {
                Ok((runs, bases)) => return Ok(Fetched { wanted, runs, bases }),
                Err(RegionError::Storage(
                    error @ (StorageError::NotFound { .. } | StorageError::Short { .. }),
                )) => {
                    let (StorageError::NotFound { name } | StorageError::Short { name, .. }) = &error else {
                        return Err(error.into());
                    };
                    let is_news = self.note_lost(name);
                    if !is_news && self.catalog()?.sequence == before.sequence {
                        return Err(error.into());
                    }
                }
                Err(error) if error.is_failed_read() => return self.fetch_around(wanted, error),
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads each chunk from any place that can be read, with its base, if it is a delta. If one has none, the error: what its
    /// own was, or the device's.
    fn fetch_around(&self, wanted: Vec<Located>, error: RegionError) -> Result<Fetched, RegionError> {
        let mut around = Fetched { wanted, runs: Vec::new(), bases: Bases::default() };
        for (number, located) in around.wanted.iter_mut().enumerate() {
            let (id, first) = *located;
            let mut places = self.with_index(|index| index.places_of(id))?;
            places.retain(|place| *place != first);
            let (mut sound, mut damaged, mut last) = (None, None, None);
            for place in [first].into_iter().chain(places) {
                match self.read_around((id, place), &around.bases) {
                    Ok((done, true)) => {
                        sound = Some((place, done));
                        break;
                    }
                    Ok((done, false)) => damaged = damaged.or(Some((place, done))),
                    Err(error) if last.as_ref().is_none_or(|last: &RegionError| !last.is_failed_read()) => {
                        last = Some(error);
                    }
                    Err(_) => {}
                }
            }
            // That it is damaged is told of this one, when it is decoded; but where a device failed, it may be sound.
            let read = sound.or(if last.is_none() { damaged } else { None });
            let Some((place, (run, bases))) = read else {
                return Err(last.unwrap_or(error));
            };
            located.1 = place;
            for (mut read, bytes) in run {
                read.members.fill(number);
                around.runs.push((read, bytes));
            }
            around.bases.add(bases);
        }
        Ok(around)
    }

    /// Reads a chunk where it is, and its base, if that is not among those which are there, from any place that can be read.
    /// One that is nowhere is left out, as in any read. Whether the frame is sound.
    fn read_around(
        &self,
        located: Located,
        there: &Bases,
    ) -> Result<((Vec<StoredRun>, Bases), bool), RegionError> {
        let runs = self.read_runs(&[located])?;
        let is_sound = runs.iter().all(|(run, bytes)| stored_frame(run, bytes, located).is_ok());
        let base = runs.iter().find_map(|(run, bytes)| base_in(run, bytes, &located.1));
        let Some(base) = base.filter(|base| is_sound && !there.has(*base)) else {
            return Ok(((runs, Bases::default()), is_sound));
        };
        let mut places = self.with_index(|index| index.places_of(base))?;
        places.retain(|place| place.codec.is_plain());
        let (mut damaged, mut last) = (Bases::default(), None);
        for place in places {
            match self.read_bases(&[(base, place)]) {
                Ok(bases) if bases.is_sound(base) => return Ok(((runs, bases), true)),
                Ok(bases) => damaged = bases,
                Err(error) => last = Some(error),
            }
        }
        // As with chunks: where a device failed, it may be sound.
        last.map_or_else(|| Ok(((runs, damaged), true)), |error| Err(error.into()))
    }

    /// Encodes a chunk's bytes as a frame that is proved to give them back.
    pub fn encode(
        &self,
        raw: &[u8],
        id: ChunkId,
        level: i32,
    ) -> Result<Frame, crate::chunk::frame::FrameError> {
        self.0.codecs.encode(raw, id, level)
    }

    /// What encodes, decodes and proves.
    pub fn codecs(&self) -> &CodecPool {
        &self.0.codecs
    }

    /// The content of a plain frame of a chunk; none if it is not that.
    pub fn decode(&self, id: ChunkId, frame: &Frame) -> Option<Vec<u8>> {
        let mut raw = vec![0; usize::from(frame.raw_blocks) * BLOCK_BYTES];
        self.0.codecs.decode(frame.codec, &frame.body, id, None, &mut raw).ok()?;
        Some(raw)
    }

    /// Reads stored frames where they are.
    pub(super) fn fetch_at(&self, wanted: Vec<Located>) -> Result<Fetched, RegionError> {
        let (runs, bases) = self.read_with_bases(&wanted)?;
        Ok(Fetched { wanted, runs, bases })
    }

    /// Decodes a chunk where it is, and proves it by its hash.
    pub(super) fn prove_at(&self, located: Located) -> Result<(), RegionError> {
        let fetched = self.fetch_at(vec![located])?;
        let Some(frame) = fetched.frames().first().copied() else { return Err(self.missing(located.0)) };
        fetched.decode_here(self, frame, &mut vec![0; fetched.raw_bytes(frame)])
    }

    fn read_with_bases(&self, wanted: &[Located]) -> Result<(Vec<StoredRun>, Bases), RegionError> {
        let runs = self.read_runs(wanted)?;
        let frames = runs.iter().flat_map(|(read, bytes)| {
            read.members.iter().map(move |&member| (read, &**bytes, &wanted[member]))
        });
        let bases = self.bases_of(frames)?;
        Ok((runs, bases))
    }

    pub(super) fn read_runs(&self, wanted: &[Located]) -> Result<Vec<StoredRun>, PackError> {
        let mut runs = Vec::new();
        for run in plan_reads(wanted) {
            let bytes = self.0.reader.read(&run)?;
            runs.push((run, bytes));
        }
        Ok(runs)
    }
}
