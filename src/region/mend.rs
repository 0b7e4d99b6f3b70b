//! Mending what a region cannot be opened without: the region file, the log's records and their lists, each from its
//! twin. A twin counts only if the chain of hashes asks for it: it must name the record before, and be the one that the
//! record after names, if there is one.

use super::error::RegionError;
use super::log::{CHECKPOINTS, SEQUENCE_MAX, VALUE_OBJECT_BYTES_MAX, read_checkpoint, record_name};
use super::{RECORD_BYTES_MAX, REGION_FILE, REGION_FILE_BYTES_MAX, Region, directory_storage};
use crate::format::record::{self, Body, StoredRecord};
use crate::format::region as region_file;
use crate::io::directory::DirectoryOptions;
use crate::io::storage::{Storage, read_whole, twin_of};
use crate::model::ids::ObjectHash;
use crate::model::objects::ListName;
use std::path::Path;

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Objects whose own bytes were damaged or gone, and are back.
    pub restored: Vec<String>,
    /// Twins that were damaged or missing, and are made anew.
    pub twins: u64,
    /// Objects that are whole, with a twin that is whole and another: both were left alone.
    pub conflicts: Vec<String>,
}

impl Region {
    /// Mends region file and log in a directory, before it is opened. A dry run only says what it would do. What
    /// cannot be mended is left as it is: opening the region says what it is. `watch` may end it between two records.
    pub fn mend_directory<E: From<RegionError>>(
        root: &Path,
        directory: DirectoryOptions,
        dry_run: bool,
        watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Mended, E> {
        Self::mend_log(&directory_storage(root, directory)?.0, dry_run, watch)
    }

    /// As [`Self::mend_directory`], in any storage.
    pub fn mend_log<E: From<RegionError>>(
        storage: &dyn Storage,
        dry_run: bool,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Mended, E> {
        let mut mending = Mending { storage, dry_run, mended: Mended::default() };
        let (mut sequence, mut ahead) = (1, Copies::of_record(storage, 1));
        let mut hash = mending.region_file(&ahead)?;
        while let Some(previous) = hash {
            watch()?;
            let here = std::mem::replace(&mut ahead, Copies::of_record(storage, sequence + 1));
            hash = mending.record(here, previous, &ahead)?;
            if hash.is_none()
                && let Some((at, from)) = mending.checkpoint_after(sequence)?
            {
                // What lies before a checkpoint is not needed to go on behind it.
                (sequence, hash) = (at, Some(from));
                ahead = Copies::of_record(storage, sequence + 1);
            }
            sequence += 1;
        }
        Ok(mending.mended)
    }
}

/// An object's own bytes and its twin's, as far as they can be read and are well made.
struct Copies<T> {
    name: String,
    own: Option<Copy<T>>,
    twin: Option<Copy<T>>,
}

struct Copy<T> {
    bytes: Vec<u8>,
    hash: ObjectHash,
    says: T,
}

/// What the chain says of two copies.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Own,
    Twin,
    Neither,
}

impl<T> Copies<T> {
    fn read(
        storage: &dyn Storage,
        name: &str,
        limit: u64,
        decode: impl Fn(&[u8]) -> Option<(T, ObjectHash)>,
    ) -> Self {
        // An error of the device is damage, too: what may be put in its place is proven by its hash.
        let copy = |name: &str| {
            let bytes = read_whole(storage, name, limit).ok()?;
            let (says, hash) = decode(&bytes)?;
            Some(Copy { bytes, hash, says })
        };
        // In this order: who appends a record at this moment leaves its twin last.
        let twin = copy(&twin_of(name));
        Self { name: name.to_owned(), own: copy(name), twin }
    }

    /// Which copy belongs into the log: one that `fits` what is before and is what comes after, if anything does.
    fn choose(&self, fits: impl Fn(&Copy<T>) -> bool, wanted: &[ObjectHash]) -> Choice {
        let belongs = |copy: &Option<Copy<T>>| {
            copy.as_ref().is_some_and(|copy| fits(copy) && (wanted.is_empty() || wanted.contains(&copy.hash)))
        };
        if belongs(&self.own) {
            Choice::Own
        } else if belongs(&self.twin) {
            Choice::Twin
        } else {
            Choice::Neither
        }
    }
}

impl Copies<StoredRecord> {
    fn of_record(storage: &dyn Storage, sequence: u64) -> Self {
        Self::read(storage, &record_name(sequence), RECORD_BYTES_MAX, |bytes| {
            record::decode(bytes).ok().filter(|(record, _)| record.sequence == sequence)
        })
    }

    /// What the record itself names as the one before it. A twin alone says nothing against what stands in the log.
    fn previous(&self) -> Vec<ObjectHash> {
        self.own.iter().map(|copy| copy.says.previous).collect()
    }
}

struct Mending<'a> {
    storage: &'a dyn Storage,
    dry_run: bool,
    mended: Mended,
}

impl Mending<'_> {
    /// The hash of the region file, which the first record must name.
    fn region_file(&mut self, first: &Copies<StoredRecord>) -> Result<Option<ObjectHash>, RegionError> {
        let copies = Copies::read(self.storage, REGION_FILE, REGION_FILE_BYTES_MAX, |bytes| {
            region_file::decode(bytes).ok().map(|(_, hash)| ((), hash))
        });
        let wanted: Vec<ObjectHash> =
            first.own.iter().chain(&first.twin).map(|copy| copy.says.previous).collect();
        let choice = copies.choose(|_| true, &wanted);
        self.settle(copies, &choice)
    }

    /// The hash of a record, which continues `previous`; none if no copy of it does.
    fn record(
        &mut self,
        copies: Copies<StoredRecord>,
        previous: ObjectHash,
        ahead: &Copies<StoredRecord>,
    ) -> Result<Option<ObjectHash>, RegionError> {
        let fits = |copy: &Copy<StoredRecord>| copy.says.previous == previous;
        let choice = copies.choose(fits, &ahead.previous());
        self.place(copies, &choice)
    }

    /// Puts the chosen copy of a record in its place, and of the list that it may have.
    fn place(
        &mut self,
        copies: Copies<StoredRecord>,
        choice: &Choice,
    ) -> Result<Option<ObjectHash>, RegionError> {
        let chosen = match choice {
            Choice::Own => copies.own.as_ref(),
            Choice::Twin => copies.twin.as_ref(),
            Choice::Neither => None,
        };
        let list = chosen.and_then(|copy| match copy.says.body {
            Body::Spilled { name, hash } => Some((name, hash)),
            Body::Inline(_) => None,
        });
        let hash = self.settle(copies, choice)?;
        if let Some((name, expected)) = list {
            self.list(name, expected)?;
        }
        Ok(hash)
    }

    fn list(&mut self, name: ListName, expected: ObjectHash) -> Result<(), RegionError> {
        let copies = Copies::read(self.storage, &name.to_string(), VALUE_OBJECT_BYTES_MAX, |bytes| {
            record::decode_list(bytes).ok().map(|(_, hash)| ((), hash))
        });
        let choice = copies.choose(|_| true, &[expected]);
        self.settle(copies, &choice).map(drop)
    }

    /// The newest checkpoint after a record that is lost, with the record that it stands on, mended if need be.
    fn checkpoint_after(&mut self, lost: u64) -> Result<Option<(u64, ObjectHash)>, RegionError> {
        let storage = self.storage;
        for listed in storage.list(CHECKPOINTS)?.iter().rev() {
            let Ok(checkpoint) = read_checkpoint(storage, &listed.name) else { continue };
            let sequence = checkpoint.catalog.sequence;
            if sequence <= lost {
                break;
            }
            // Numbers of 20 digits, which no log comes near.
            if sequence >= SEQUENCE_MAX {
                continue;
            }
            let copies = Copies::of_record(storage, sequence);
            let choice = copies.choose(|_| true, &[checkpoint.record_hash]);
            if let Some(hash) = self.place(copies, &choice)? {
                return Ok(Some((sequence, hash)));
            }
        }
        Ok(None)
    }

    /// Puts the chosen copy in its place, and a twin beside it where there is none that is whole.
    fn settle<T>(&mut self, copies: Copies<T>, choice: &Choice) -> Result<Option<ObjectHash>, RegionError> {
        let Copies { name, own, twin } = copies;
        match (choice, own, twin) {
            (Choice::Own, Some(own), Some(twin)) => {
                if own.hash != twin.hash {
                    self.mended.conflicts.push(name);
                }
                Ok(Some(own.hash))
            }
            (Choice::Own, Some(own), None) => {
                self.mended.twins += u64::from(self.dry_run || self.renew_twin(&name, &own.bytes));
                Ok(Some(own.hash))
            }
            (Choice::Twin, _, Some(twin)) => {
                if !self.dry_run {
                    self.storage.restore(&name, &twin.bytes)?;
                }
                self.mended.restored.push(name);
                Ok(Some(twin.hash))
            }
            _ => Ok(None),
        }
    }

    /// Leaves a twin anew, best effort, as when the object was made: a full disk keeps nothing from being mended.
    fn renew_twin(&self, name: &str, bytes: &[u8]) -> bool {
        // Durable before its twin is begun: another writer may not have come so far.
        let folder = name.rsplit_once('/').map(|(folder, _)| folder);
        folder.is_none_or(|folder| self.storage.persist(folder).is_ok())
            && self.storage.delete(&twin_of(name)).is_ok()
            && self.storage.leave_twin(name, &[bytes])
    }
}
