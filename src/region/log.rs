//! The log: replay to the tail, append after it.

use super::error::RegionError;
use super::{RECORD_BYTES_MAX, REGION_FILE, REGION_FILE_BYTES_MAX};
use crate::format::checkpoint::{self, Checkpoint};
use crate::format::codec::VALUE_BYTES_MAX;
use crate::format::error::FormatError;
use crate::format::record::{self, Body, INLINE_BYTES_MAX, StoredRecord};
use crate::format::region;
use crate::io::clock::{now_ms, random_bytes};
use crate::io::storage::{Created, Storage, StorageError, read_whole, twin_of};
use crate::model::catalog::{Catalog, LogPosition};
use crate::model::ids::ObjectHash;
use crate::model::objects::ListName;
use crate::model::op::{Author, LogRecord, Op};
use std::collections::BTreeSet;
use std::time::Duration;

/// Records in a sub-folder of the log.
const SHARD_RECORDS: u64 = 1000;
/// No log has so many records: a larger number is no record's.
pub(super) const SEQUENCE_MAX: u64 = 1 << 62;
/// Records between checkpoints at least.
const CHECKPOINT_RECORDS: u64 = 64;
/// And at most: whoever opens a region replays those behind the last one, and only a later checkpoint leads past a record
/// that is lost.
const CHECKPOINT_RECORDS_MAX: u64 = 1000;
/// Bytes of a checkpoint for each record until the next. It is the whole catalogue: after a fixed number of records, what is
/// written in all would grow with the square of theirs from the beginning.
const CHECKPOINT_BYTES_A_RECORD: u64 = 8 << 10;
pub(super) const CHECKPOINTS: &str = "checkpoints";
const MANIFESTS: &str = "manifests";
/// Checkpoints that stay when a new one is written.
const CHECKPOINTS_KEPT: usize = 2;
/// Largest object that a list or checkpoint may be.
pub(super) const VALUE_OBJECT_BYTES_MAX: u64 = VALUE_BYTES_MAX as u64 + 64;

/// How an append ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Race {
    /// The record is durable.
    Won,
    /// Another writer's record has the place.
    Lost,
}

/// The folder of a record.
fn shard(sequence: u64) -> String {
    format!("log/{:017}", sequence / SHARD_RECORDS)
}

/// The name of a record.
pub(super) fn record_name(sequence: u64) -> String {
    format!("{}/{sequence:020}", shard(sequence))
}

fn checkpoint_name(sequence: u64) -> String {
    format!("{CHECKPOINTS}/{sequence:020}")
}

/// Where the next checkpoint is due after one of so many bytes.
fn next_checkpoint(sequence: u64, bytes: u64) -> u64 {
    sequence + (bytes / CHECKPOINT_BYTES_A_RECORD).clamp(CHECKPOINT_RECORDS, CHECKPOINT_RECORDS_MAX)
}

/// The number at the end of a record's or checkpoint's name.
pub(super) fn sequence_in(name: &str) -> Option<u64> {
    name.rsplit('/').next()?.parse().ok().filter(|sequence| *sequence < SEQUENCE_MAX)
}

/// A record as it was read.
pub(super) struct Read {
    pub(super) record: LogRecord,
    pub(super) hash: ObjectHash,
}

/// Reads record `sequence`; `None` if there is none yet.
pub(super) fn read_record(storage: &dyn Storage, sequence: u64) -> Result<Option<Read>, RegionError> {
    let name = record_name(sequence);
    let bytes = match read_whole(storage, &name, RECORD_BYTES_MAX) {
        Err(e) if e.is_not_found() => return Ok(None),
        bytes => bytes?,
    };
    let (mut stored, hash) = record::decode(&bytes).map_err(|e| RegionError::damaged(&name, e))?;
    let ops = match &mut stored.body {
        Body::Inline(ops) => std::mem::take(ops),
        Body::Spilled { name, hash } => read_list(storage, *name, *hash)?,
    };
    Ok(Some(Read { record: stored.with_ops(ops), hash }))
}

fn read_list(storage: &dyn Storage, name: ListName, expected: ObjectHash) -> Result<Vec<Op>, RegionError> {
    let name = name.to_string();
    let bytes = read_whole(storage, &name, VALUE_OBJECT_BYTES_MAX)?;
    let (ops, found) = record::decode_list(&bytes).map_err(|e| RegionError::damaged(&name, e))?;
    if found != expected {
        return Err(RegionError::damaged(&name, FormatError::Identity { what: "list", expected, found }));
    }
    Ok(ops)
}

/// Checks that a record follows a position, and applies it to the catalogue there.
pub(super) fn follow(
    catalog: &mut Catalog,
    position: LogPosition,
    read: &Read,
) -> Result<LogPosition, RegionError> {
    let sequence = position.sequence + 1;
    let broken = |why: String| RegionError::BrokenLog { sequence, why };
    if read.record.previous != position.hash {
        return Err(broken("it names another predecessor".into()));
    }
    catalog.apply(&read.record).map_err(|rejection| broken(rejection.to_string()))?;
    Ok(LogPosition { sequence, hash: read.hash })
}

/// The log as far as it was replayed.
pub(super) struct Head {
    catalog: Catalog,
    position: LogPosition,
    /// Folders with records that were read and not yet made durable by this process.
    unsynced: BTreeSet<String>,
    /// The newest checkpoint that was there when somebody last looked, whether it could be used or not.
    known_checkpoint: u64,
    /// The record whose author makes the next checkpoint.
    next_checkpoint: u64,
}

impl Head {
    /// From the newest checkpoint that fits the log, or from the start. `region_hash` is what the first
    /// record names as its predecessor.
    pub(super) fn open(storage: &dyn Storage, region_hash: ObjectHash) -> Result<Self, RegionError> {
        let mut names = storage.list(CHECKPOINTS)?;
        names.reverse();
        // A checkpoint is a cache: one that cannot be used costs time and nothing else.
        let usable = names.iter().find_map(|listed| {
            let found = usable_checkpoint(storage, &listed.name).ok().flatten();
            found.map(|(catalog, position)| (catalog, position, listed.len))
        });
        let (catalog, position, bytes) =
            usable.unwrap_or_else(|| (Catalog::default(), LogPosition { sequence: 0, hash: region_hash }, 0));
        let next_checkpoint = next_checkpoint(position.sequence, bytes);
        // Records before the checkpoint were seen through it: their folder counts as read.
        let unsynced = (position.sequence > 0).then(|| shard(position.sequence)).into_iter().collect();
        let known_checkpoint = names.first().and_then(|listed| sequence_in(&listed.name)).unwrap_or(0);
        let mut head = Self { catalog, position, unsynced, known_checkpoint, next_checkpoint };
        head.advance(storage)?;
        head.check_tail(storage, known_checkpoint)?;
        head.check_begun(storage)?;
        Ok(head)
    }

    /// A log without any record is one that is lost, if block maps are there: none is written before the first record.
    fn check_begun(&mut self, storage: &dyn Storage) -> Result<(), RegionError> {
        if self.position.sequence > 0 || storage.list(MANIFESTS)?.is_empty() {
            return Ok(());
        }
        // Others may have begun it meanwhile.
        self.advance(storage)?;
        if self.position.sequence > 0 {
            return Ok(());
        }
        let why = "it is missing, but block maps are there, which are written after it";
        Err(RegionError::BrokenLog { sequence: 1, why: why.into() })
    }

    /// Where the log seems to end it must end: a later record, or a checkpoint of one, means that one is
    /// lost, and a new record in its place would make the loss final.
    fn check_tail(&mut self, storage: &dyn Storage, newest_checkpoint: u64) -> Result<(), RegionError> {
        loop {
            let tail = self.position.sequence;
            let mut last = newest_checkpoint;
            for folder in [shard(tail + 1), shard(tail + 1 + SHARD_RECORDS)] {
                let listed = storage.list(&folder)?;
                last = listed.iter().filter_map(|listed| sequence_in(&listed.name)).fold(last, u64::max);
            }
            if last <= tail {
                return Ok(());
            }
            // Others may have appended meanwhile.
            self.advance(storage)?;
            if self.position.sequence == tail {
                let why = format!("it is missing, but record {last} was written");
                return Err(RegionError::BrokenLog { sequence: tail + 1, why });
            }
        }
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(super) fn position(&self) -> LogPosition {
        self.position
    }

    /// Goes on from the state of a whole replay, which contradicts a checkpoint that this one may have come from.
    pub(super) fn replace(&mut self, catalog: Catalog, position: LogPosition) {
        (self.catalog, self.position) = (catalog, position);
        self.unsynced.insert(shard(position.sequence));
    }

    /// Replays what others appended.
    pub(super) fn advance(&mut self, storage: &dyn Storage) -> Result<(), RegionError> {
        while let Some(read) = read_record(storage, self.position.sequence + 1)? {
            // On a rejection the log is broken and this handle of no more use: no copy is kept.
            self.position = follow(&mut self.catalog, self.position, &read)?;
            self.unsynced.insert(shard(self.position.sequence));
        }
        Ok(())
    }

    /// Makes durable what was replayed. On a directory a record is visible before it is durable, so whoever
    /// acts on a replay does this first.
    pub(super) fn persist(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        while let Some(folder) = self.unsynced.first() {
            storage.persist(folder)?;
            self.unsynced.pop_first();
        }
        Ok(())
    }

    /// Appends a record after the tail, which was just reached.
    pub(super) fn append(
        &mut self,
        storage: &dyn Storage,
        author: Author,
        ops: Vec<Op>,
        list_name: impl FnOnce() -> ListName,
    ) -> Result<Race, RegionError> {
        let sequence = self.position.sequence + 1;
        let nonce = random_bytes().map_err(RegionError::Random)?;
        let previous = self.position.hash;
        let record = LogRecord { sequence, previous, nonce, time_ms: now_ms(), author, ops };
        let mut catalog = self.catalog.clone();
        catalog.apply(&record).map_err(RegionError::Rejected)?;

        let name = record_name(sequence);
        if self.has_lost_next(storage) {
            return Err(self.lost_next());
        }
        self.check_place(storage)?;
        let (bytes, hash) = encode_spilling(storage, record, list_name)?;
        match storage.create(&name, &[&bytes]) {
            Ok(Created::New) => {}
            Ok(Created::Existed) => match read_record(storage, sequence).map_err(undecided(sequence))? {
                // Storage that retries by itself can find its own write.
                // It may not have come to make it durable.
                Some(read) if read.record.nonce == nonce => {
                    storage.persist(&shard(sequence)).map_err(|e| undecided(sequence)(e.into()))?;
                }
                _ => return Ok(Race::Lost),
            },
            Err(e) if e.is_unknown_outcome() => self.burn(storage, author, nonce, e)?,
            Err(e) => return Err(e.into()),
        }
        storage.leave_twin(&name, &[&bytes]);
        self.catalog = catalog;
        self.position = LogPosition { sequence, hash };
        self.write_checkpoint(storage);
        Ok(Race::Won)
    }

    /// Refuses to append to another log than the one that was replayed: somebody may have put an older state of the region in its
    /// place meanwhile, or another region, which would then have a gap for ever.
    pub(super) fn check_place(&self, storage: &dyn Storage) -> Result<(), RegionError> {
        let sequence = self.position.sequence;
        let found = match sequence {
            0 => read_whole(storage, REGION_FILE, REGION_FILE_BYTES_MAX)
                .map(|bytes| region::decode(&bytes).ok().map(|(_, hash)| hash)),
            _ => read_whole(storage, &record_name(sequence), RECORD_BYTES_MAX)
                .map(|bytes| record::decode(&bytes).ok().map(|(_, hash)| hash)),
        };
        let is_other = match found {
            Ok(hash) => hash.is_some_and(|hash| hash != self.position.hash),
            // That it cannot be read says nothing.
            Err(error) => error.is_not_found(),
        };
        if is_other { Err(RegionError::Replaced { sequence }) } else { Ok(()) }
    }

    /// Whether the next record was written once and is lost: a twin is begun when its record is durable. Appending in
    /// its place would make the loss final.
    pub(super) fn has_lost_next(&self, storage: &dyn Storage) -> bool {
        let sequence = self.position.sequence + 1;
        let name = record_name(sequence);
        let continues = |bytes: &[u8]| {
            record::decode(bytes)
                .is_ok_and(|(next, _)| next.sequence == sequence && next.previous == self.position.hash)
        };
        // A twin that cannot be read says nothing.
        storage.has_twins()
            && read_whole(storage, &twin_of(&name), RECORD_BYTES_MAX).is_ok_and(|bytes| continues(&bytes))
            && storage.open(&name).is_err_and(|error| error.is_not_found())
    }

    /// What to say of it.
    pub(super) fn lost_next(&self) -> RegionError {
        let why = "it is missing, but its twin is there".to_owned();
        RegionError::BrokenLog { sequence: self.position.sequence + 1, why }
    }

    /// Nobody knows whether the record landed, or may land later. Takes its place with a record that does
    /// nothing, or finds who has it; after that it is decided. A directory's latched handle cannot, and so
    /// the outcome is reported as unknown.
    fn burn(
        &self,
        storage: &dyn Storage,
        author: Author,
        nonce: [u8; 16],
        unknown: StorageError,
    ) -> Result<(), RegionError> {
        let sequence = self.position.sequence + 1;
        let name = record_name(sequence);
        let no_op = StoredRecord {
            sequence,
            previous: self.position.hash,
            nonce: random_bytes().map_err(RegionError::Random)?,
            time_ms: now_ms(),
            author,
            body: Body::Inline(vec![Op::NoOp]),
        };
        let (bytes, _) = record::encode(&no_op).map_err(|e| RegionError::damaged(&name, e))?;
        match storage.create(&name, &[&bytes]) {
            Ok(Created::Existed) => match read_record(storage, sequence).map_err(undecided(sequence))? {
                Some(read) if read.record.nonce == nonce => Ok(()),
                _ => Err(StorageError::Latched { name, first: None }.into()),
            },
            Ok(Created::New) => Err(StorageError::Latched { name, first: None }.into()),
            Err(_) => Err(unknown.into()),
        }
    }

    /// A cache of the state, after so many records that it is worth it. Only the author of a record makes its checkpoint, so the
    /// name is used once. That it fails is no failure of the append, which is durable; on a directory a
    /// write that failed for anything but space has latched the handle, so nothing is acknowledged after it.
    fn write_checkpoint(&mut self, storage: &dyn Storage) {
        let sequence = self.position.sequence;
        if sequence < self.next_checkpoint {
            return;
        }
        // One that fails is not tried again at each record.
        self.next_checkpoint = next_checkpoint(sequence, 0);
        let Ok(mut old) = storage.list(CHECKPOINTS) else { return };
        let newest = old.last().and_then(|listed| Some((sequence_in(&listed.name)?, listed.len)));
        if let Some((newest, bytes)) = newest.filter(|(newest, _)| *newest > self.known_checkpoint) {
            // Another writer's.
            self.known_checkpoint = newest;
            self.next_checkpoint = next_checkpoint(newest, bytes).max(sequence + 1);
            return;
        }
        let checkpoint = Checkpoint { record_hash: self.position.hash, catalog: self.catalog.clone() };
        let Ok(bytes) = checkpoint::encode(&checkpoint) else {
            // It is too large, and will be the next time.
            self.next_checkpoint = next_checkpoint(sequence, u64::MAX);
            return;
        };
        // Where there is no space for it, what is written next may still have some.
        if storage.create_from(&checkpoint_name(sequence), &mut |write| write(&bytes)).is_err() {
            return;
        }
        self.known_checkpoint = sequence;
        self.next_checkpoint = next_checkpoint(sequence, bytes.len() as u64);
        old.truncate((old.len() + 1).saturating_sub(CHECKPOINTS_KEPT));
        for listed in old {
            // One that stays costs space, and collection removes it.
            let _ = storage.delete(&listed.name);
        }
    }
}

/// An error after which nobody knows whose record stands at a place.
fn undecided(sequence: u64) -> impl Fn(RegionError) -> RegionError {
    move |error| RegionError::Undecided { sequence, source: Box::new(error) }
}

/// A checkpoint's state, if it is whole and the record that it stands on is the log's. What cannot be read now is an error.
pub(super) fn usable_checkpoint(
    storage: &dyn Storage,
    name: &str,
) -> Result<Option<(Catalog, LogPosition)>, RegionError> {
    let read = |error: RegionError| if error.is_damage() { Ok(None) } else { Err(error) };
    let checkpoint = match read_checkpoint(storage, name) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return read(error),
    };
    let sequence = checkpoint.catalog.sequence;
    let record = match read_record(storage, sequence) {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(None),
        Err(error) => return read(error),
    };
    // Numbers are 20 digits in names, but a log never comes near their end.
    let fits =
        sequence < SEQUENCE_MAX && checkpoint_name(sequence) == name && record.hash == checkpoint.record_hash;
    Ok(fits.then_some((checkpoint.catalog, LogPosition { sequence, hash: record.hash })))
}

pub(super) fn read_checkpoint(storage: &dyn Storage, name: &str) -> Result<Checkpoint, RegionError> {
    let bytes = read_whole(storage, name, VALUE_OBJECT_BYTES_MAX)?;
    checkpoint::decode(&bytes).map_err(|e| RegionError::damaged(name, e))
}

/// A record's bytes; operations that are too long for it are stored as a list first.
fn encode_spilling(
    storage: &dyn Storage,
    record: LogRecord,
    list_name: impl FnOnce() -> ListName,
) -> Result<(Vec<u8>, ObjectHash), RegionError> {
    let LogRecord { sequence, previous, nonce, time_ms, author, ops } = record;
    let damaged = |e| RegionError::damaged(&record_name(sequence), e);
    let (list, list_hash) = record::encode_list(&ops).map_err(damaged)?;
    let body = if list.len() <= INLINE_BYTES_MAX {
        Body::Inline(ops)
    } else {
        let name = list_name();
        if storage.create(&name.to_string(), &[&list])? == Created::Existed {
            return Err(RegionError::NameReused(name.to_string()));
        }
        storage.leave_twin(&name.to_string(), &[&list]);
        Body::Spilled { name, hash: list_hash }
    };
    record::encode(&StoredRecord { sequence, previous, nonce, time_ms, author, body }).map_err(damaged)
}

/// Waits before another attempt: longer each time, and for each writer differently.
pub(super) fn back_off(attempt: u32) {
    let limit_us = 500u64 << attempt.min(7);
    let random = random_bytes().map(u64::from_le_bytes).unwrap_or(limit_us / 2);
    std::thread::sleep(Duration::from_micros(random % limit_us));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_the_rarer_the_larger_they_are_and_never_very_rare() {
        assert_eq!(next_checkpoint(7, 0), 71);
        assert_eq!(next_checkpoint(7, 512 << 10), 71);
        assert_eq!(next_checkpoint(7, 1 << 20), 135);
        assert_eq!(next_checkpoint(7, u64::MAX), 1007);
        // A catalogue that grows by 600 bytes a record: an image each.
        let (mut at, mut written) = (next_checkpoint(0, 0), 0);
        while at <= 10_000 {
            written += at * 600;
            at = next_checkpoint(at, at * 600);
        }
        assert!(written > 10_000 * 600 && written < 10_000 * (9 << 10), "{written}");
    }
}
