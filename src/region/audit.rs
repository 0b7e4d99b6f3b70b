//! What `verify` and `stats` look at: every object of a region against what the log says of it.
//!
//! Findings are data: a check that finds damage goes on and tells what it found.

use super::bases::Bases;
use super::error::RegionError;
use super::fetch::Located;
use super::log::{follow, read_checkpoint, read_record, sequence_in, usable_checkpoint};
use super::{REGION_FILE, REGION_FILE_BYTES_MAX, Region};
use crate::format::entry::Entry;
use crate::format::error::FormatError;
use crate::format::region as region_file;
use crate::io::storage::{Listed, Object, Storage, read_whole};
use crate::model::catalog::{Catalog, LogPosition};
use crate::model::ids::ChunkId;
use crate::model::objects::{PackName, PackRecord, SegmentName};
use crate::model::op::LogRecord;
use crate::model::units::{BLOCK_BYTES, TimeMs};
use crate::pack::index::Location;
use crate::pack::read::{ReadRun, base_in, decode_frame, stored_frame};
use crate::pack::segment::Segment;
use crate::pack::trailer::{read_trailer, read_trailer_of};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of a pack that are read at once.
const RUN_BYTES: u64 = 4 << 20;
/// Frames that are checked together: each may need a base.
const RUN_FRAMES: usize = 64;

/// What one thread checks packs with, again and again.
#[derive(Default)]
pub struct CheckBuffers {
    run: Vec<u8>,
    raw: Vec<u8>,
}

/// A pack that was checked.
#[derive(Default)]
pub struct CheckedPack {
    /// Its frames.
    pub frames: u64,
    /// Its bytes.
    pub len_bytes: u64,
    /// Frames that are damaged.
    pub damaged: Vec<(ChunkId, RegionError)>,
    /// Deltas that are as they were stored, each with its base, which is nowhere intact.
    pub baseless: Vec<(ChunkId, ChunkId)>,
}

/// What a check of the log has given.
#[derive(Debug)]
pub struct LogAudit {
    /// The state at the tail.
    pub catalog: Catalog,
    /// What is wrong with what is only a cache.
    pub caches: Vec<RegionError>,
    /// Whether a checkpoint says something else than the records.
    pub is_contradicted: bool,
    /// Records that are lost, behind a checkpoint: nothing needs them, but the history.
    pub lost: Vec<RegionError>,
}

/// The first checkpoint behind a record with which the log goes on.
fn next_usable(storage: &dyn Storage, sequence: u64) -> Option<(Catalog, LogPosition)> {
    let listed = storage.list("checkpoints").ok()?;
    let behind =
        listed.iter().filter(|listed| sequence_in(&listed.name).is_some_and(|number| number > sequence));
    behind.filter_map(|listed| usable_checkpoint(storage, &listed.name).ok().flatten()).next()
}

/// Records that are asked for the time: some may have been made by the same wrong clock.
const RECORDS_ASKED: usize = 1000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Region {
    /// A record of the log, for reading its history; none after the tail.
    pub fn record(&self, sequence: u64) -> Result<Option<LogRecord>, RegionError> {
        Ok(read_record(&*self.0.storage, sequence)?.map(|read| read.record))
    }

    /// The time to put on record for now: where a clock says less than when the region was made, and much less than most of the
    /// newest records, it is wrong, and the newest of their times is nearer. What else a clock says is believed: another may have been
    /// ahead.
    pub fn time_on_record(&self, now_ms: TimeMs) -> Result<TimeMs, RegionError> {
        if now_ms >= self.header().created_ms {
            return Ok(now_ms);
        }
        let tail = self.catalog()?.sequence;
        // One that cannot be read says nothing.
        let times =
            (1..=tail).rev().take(RECORDS_ASKED).filter_map(|sequence| self.record(sequence).ok().flatten());
        let mut times: Vec<TimeMs> = times.map(|record| record.time_ms).collect();
        times.sort_unstable();
        // Where most say what this clock says, it was the region's maker whose clock was wrong.
        let is_ahead = |time: Option<&TimeMs>| time.is_some_and(|time| *time > now_ms.saturating_add(DAY_MS));
        let newest = times.last().filter(|_| is_ahead(times.get(times.len() / 2)));
        Ok(newest.copied().unwrap_or(now_ms))
    }

    /// Every object and its length.
    pub fn objects(&self) -> Result<Vec<Listed>, RegionError> {
        Ok(self.0.storage.list("")?)
    }

    /// Replays the log from its first record, checks that every record continues the one before, and that
    /// region file and checkpoints say the same. Gives the state at the tail, and what was found wrong with
    /// what is only a cache. A record that is lost behind a checkpoint with which the region opens is told of, and the check goes
    /// on from there.
    pub fn audit_log(&self) -> Result<LogAudit, RegionError> {
        let storage = &*self.0.storage;
        let bytes = read_whole(storage, REGION_FILE, REGION_FILE_BYTES_MAX)?;
        let (_, hash) = region_file::decode(&bytes).map_err(|e| RegionError::damaged(REGION_FILE, e))?;
        // It covers all that the file says.
        if hash != self.0.header_hash {
            return Err(RegionError::BrokenLog { sequence: 0, why: "the region file changed".into() });
        }
        let (mut caches, mut lost, mut is_contradicted) = (Vec::new(), Vec::new(), false);
        let mut checkpoints = HashMap::new();
        for listed in storage.list("checkpoints")? {
            match read_checkpoint(storage, &listed.name) {
                Ok(checkpoint) => drop(checkpoints.insert(checkpoint.catalog.sequence, checkpoint)),
                // Another process has made newer ones meanwhile.
                Err(e) if e.is_not_found() => {}
                Err(e) => caches.push(e),
            }
        }
        let mut catalog = Catalog::default();
        let mut position = LogPosition { sequence: 0, hash };
        let beyond = loop {
            while let Some(read) = read_record(storage, position.sequence + 1).or_else(|error| {
                // What can be passed is looked at below.
                if error.is_loss() && next_usable(storage, position.sequence).is_some() {
                    Ok(None)
                } else {
                    Err(error)
                }
            })? {
                position = follow(&mut catalog, position, &read)?;
                if let Some(checkpoint) = checkpoints.remove(&position.sequence)
                    && (checkpoint.record_hash != position.hash || checkpoint.catalog != catalog)
                {
                    let why = "its checkpoint says something else".into();
                    is_contradicted = true;
                    caches.push(RegionError::BrokenLog { sequence: position.sequence, why });
                }
            }
            let last = self.last_record()?.max(checkpoints.keys().copied().max().unwrap_or(0));
            // Others append meanwhile: only what still is not there is missing.
            let next = read_record(storage, position.sequence + 1);
            let is_missing = !matches!(&next, Ok(Some(_)));
            if last > position.sequence
                && is_missing
                && let Some((there, behind)) = next_usable(storage, position.sequence)
            {
                let sequence = position.sequence + 1;
                let why = format!(
                    "it is not there; what came of it is known from the checkpoint of record {}, records before that were not looked at",
                    behind.sequence
                );
                lost.push(next.err().unwrap_or(RegionError::BrokenLog { sequence, why }));
                checkpoints.retain(|sequence, _| *sequence > behind.sequence);
                (catalog, position) = (there, behind);
            } else if last <= position.sequence || next?.is_none() {
                break last;
            }
        };
        let tail = position.sequence;
        // A gap is the log's own damage, and no cache's: a checkpoint behind it may be all that opens the region.
        if beyond > tail && self.last_record()? > tail {
            let why = format!("it is missing, but record {beyond} is there");
            return Err(RegionError::BrokenLog { sequence: tail + 1, why });
        }
        if let Some(&sequence) = checkpoints.keys().next() {
            let why = format!("its checkpoint is there, but the log ends at {tail}");
            return Err(RegionError::BrokenLog { sequence, why });
        }
        // Behind a lost record nobody knows which of two checkpoints is wrong.
        let is_known = is_contradicted && lost.is_empty();
        self.go_on(is_known.then(|| (catalog.clone(), position)))?;
        Ok(LogAudit { catalog, caches, is_contradicted, lost })
    }

    /// Goes on behind an audit, from what the log says where that contradicted a checkpoint: this handle may have begun with it.
    fn go_on(&self, contradicting: Option<(Catalog, LogPosition)>) -> Result<(), RegionError> {
        let (storage, mut head) = (&*self.0.storage, self.head());
        let is_contradicted = contradicting.is_some();
        if let Some((catalog, position)) = contradicting {
            head.replace(catalog, position);
        }
        head.advance(storage)?;
        if head.has_lost_next(storage) {
            return Err(head.lost_next());
        }
        drop(head);
        if is_contradicted {
            self.forget_index();
        }
        Ok(())
    }

    /// The number of the last record that can be seen; 0 if there is none.
    fn last_record(&self) -> Result<u64, RegionError> {
        let listed = self.0.storage.list("log")?;
        Ok(listed.iter().filter_map(|listed| sequence_in(&listed.name)).max().unwrap_or(0))
    }

    /// Checks a segment's hash, that each of its entries is what the pack's trailer says, and that its filter denies
    /// none of them. Memory: a trailer, and a number for each pack.
    pub fn audit_segment(&self, catalog: &Catalog, name: SegmentName) -> Result<(), RegionError> {
        let Some(record) = catalog.segments.get(&name) else { return Ok(()) };
        let segment = Segment::open(&*self.0.storage, self.0.header.id, record)?;
        segment.check_hash()?;
        segment.check_filter()?;
        let damaged = |why| {
            let source = FormatError::Invalid { what: "index segment", why };
            Err(RegionError::damaged(&name.to_string(), source))
        };
        let mut listed: HashMap<PackName, usize> = HashMap::new();
        for item in segment.iter() {
            *listed.entry(item?.1).or_default() += 1;
        }
        for pack in segment.packs().iter().filter_map(|name| catalog.packs.get(name)) {
            let name = pack.record.name;
            // A trailer that cannot be read is the pack's finding, not the segment's.
            let Ok(trailer) = read_trailer(&*self.0.storage, self.0.header.id, &pack.record) else {
                continue;
            };
            let mut found = 0;
            for entry in &trailer.entries {
                let Some((same, _)) = segment.lookup(entry.id)?.filter(|(_, place)| *place == name) else {
                    continue;
                };
                if (Entry { pack: 0, ..same }) != *entry {
                    return damaged(format!("chunk {} is not where it says in {name}", entry.id));
                }
                found += 1;
            }
            let listed = listed.get(&name).copied().unwrap_or(0);
            if listed != found {
                return damaged(format!("{} chunks are not where it says in {name}", listed - found));
            }
            // Who lists a pack, and does not say that it lists it in part, lists all of it: nobody looks any further.
            if found != trailer.entries.len() && !record.partial.contains(&name) {
                return damaged(format!(
                    "it lists {found} of the {} chunks in {name}",
                    trailer.entries.len()
                ));
            }
        }
        Ok(())
    }

    /// Checks a pack's header and trailer, and nothing between.
    pub fn check_trailer(&self, record: &PackRecord) -> Result<(), RegionError> {
        read_trailer(&*self.0.storage, self.0.header.id, record)?;
        Ok(())
    }

    /// Reads a pack front to back, by positioned reads: checks header and trailer, and of each frame the checksum or,
    /// if `content`, that it decodes to its chunk.
    pub fn check_pack(
        &self,
        record: &PackRecord,
        content: bool,
        buffers: &mut CheckBuffers,
    ) -> Result<CheckedPack, RegionError> {
        let object: Arc<dyn Object> = self.0.storage.open(&record.name.to_string())?;
        let trailer = read_trailer_of(&*object, self.0.header.id, record)?;
        let named: HashMap<ChunkId, u64> = trailer.deltas().map(|(entry, base)| (entry.id, base)).collect();
        let entries = trailer.entries;
        let mut wanted: Vec<Located> =
            entries.iter().map(|entry| (entry.id, Location::new(entry, record.name))).collect();
        wanted.sort_unstable_by_key(|(_, location)| location.offset);
        let mut checked =
            CheckedPack { frames: wanted.len() as u64, len_bytes: object.len(), ..CheckedPack::default() };
        let mut rest = wanted.as_slice();
        while let Some((_, first)) = rest.first() {
            let start = u64::from(first.offset);
            let end_of = |(_, location): &Located| u64::from(location.offset) + location.frame_bytes();
            let count = rest.partition_point(|located| end_of(located) - start <= RUN_BYTES);
            let count = count.clamp(1, RUN_FRAMES);
            let (run, after) = rest.split_at(count);
            rest = after;
            let len = run.last().map_or(0, |last| end_of(last) - start);
            buffers.run.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            object.read_at(start, &mut buffers.run)?;
            let read =
                ReadRun { pack: record.name, offset: start, len: buffers.run.len(), members: Vec::new() };
            let CheckBuffers { run: bytes, raw } = &mut *buffers;
            let bases = match content {
                true => match self.bases_of(run.iter().map(|located| (&read, bytes.as_slice(), located))) {
                    // That is no fault of this pack: each is looked for by itself, wherever it is.
                    Err(error) if error.is_failed_read() => Bases::default(),
                    bases => bases?,
                },
                false => Bases::default(),
            };
            for located in run {
                let base = base_in(&read, bytes, &located.1);
                let base_content = base.filter(|_| content).and_then(|base| bases.intact_content(self, base));
                let lacks_base = content && base.is_some() && base_content.is_none();
                let result = if content && !lacks_base {
                    raw.resize(usize::from(located.1.raw_blocks) * BLOCK_BYTES, 0);
                    decode_frame(&self.0.codecs, &read, bytes, *located, base_content.as_deref(), raw)
                } else {
                    stored_frame(&read, bytes, *located).map(drop)
                };
                let result = result.map_err(RegionError::from).and_then(|()| {
                    let named = named.get(&located.0).copied();
                    if base.map(|base| base.leading()) == named {
                        Ok(())
                    } else {
                        Err(other_base(record, located))
                    }
                });
                match (result, base) {
                    (Err(error), _) => checked.damaged.push((located.0, error)),
                    (Ok(()), Some(base)) if lacks_base => {
                        checked.baseless.push((located.0, base));
                    }
                    _ => {}
                }
            }
        }
        Ok(checked)
    }
}

/// A delta whose base is not the one that its pack's trailer names for it.
fn other_base(record: &PackRecord, (id, _): &Located) -> RegionError {
    let why = format!("the base of chunk {id} is not the one that the trailer says");
    RegionError::damaged(&record.name.to_string(), FormatError::Invalid { what: "pack", why })
}
