//! Mending what a region cannot be opened without: the region file, the log's records and their lists, each from its
//! twin. What hangs on them is named by hash all along the log, so a twin counts only if it is, byte for byte, what was
//! lost.

use super::error::RegionError;
use super::log::{VALUE_OBJECT_BYTES_MAX, record_name};
use super::{RECORD_BYTES_MAX, REGION_FILE, REGION_FILE_BYTES_MAX, Region, directory_storage};
use crate::format::record::{self, Body};
use crate::format::region as region_file;
use crate::io::directory::DirectoryOptions;
use crate::io::storage::{Storage, read_whole, twin_of};
use crate::model::ids::ObjectHash;
use std::path::Path;

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Objects whose own bytes were damaged or gone, and are back.
    pub restored: Vec<String>,
    /// Twins that were damaged or missing, and are made anew.
    pub twins: u64,
}

impl Region {
    /// Mends region file and log in a directory, before it is opened. A dry run only says what it would do. What
    /// cannot be mended is left as it is: opening the region says what it is.
    pub fn mend_directory(
        root: &Path,
        directory: DirectoryOptions,
        dry_run: bool,
    ) -> Result<Mended, RegionError> {
        Self::mend_log(&directory_storage(root, directory)?.0, dry_run)
    }

    /// As [`Self::mend_directory`], in any storage.
    pub fn mend_log(storage: &dyn Storage, dry_run: bool) -> Result<Mended, RegionError> {
        let mut mending = Mending { storage, dry_run, mended: Mended::default() };
        let region_hash = mending.object(REGION_FILE, REGION_FILE_BYTES_MAX, |bytes| {
            region_file::decode(bytes).ok().map(|(_, hash)| hash)
        })?;
        let Some(mut hash) = region_hash else { return Ok(mending.mended) };
        let mut sequence = 1;
        while let Some(next) = mending.record(sequence, hash)? {
            (sequence, hash) = (sequence + 1, next);
        }
        Ok(mending.mended)
    }
}

struct Mending<'a> {
    storage: &'a dyn Storage,
    dry_run: bool,
    mended: Mended,
}

impl Mending<'_> {
    /// The hash of record `sequence`, which continues `previous`; none if neither it nor its twin does.
    fn record(&mut self, sequence: u64, previous: ObjectHash) -> Result<Option<ObjectHash>, RegionError> {
        let mut list = None;
        let hash = self.object(&record_name(sequence), RECORD_BYTES_MAX, |bytes| {
            let (record, hash) = record::decode(bytes).ok()?;
            let fits = record.sequence == sequence && record.previous == previous;
            if let Body::Spilled { name, hash } = record.body {
                list = Some((name, hash));
            }
            fits.then_some(hash)
        })?;
        if let (Some(_), Some((name, expected))) = (hash, list) {
            self.object(&name.to_string(), VALUE_OBJECT_BYTES_MAX, |bytes| {
                let (_, found) = record::decode_list(bytes).ok()?;
                (found == expected).then_some(found)
            })?;
        }
        Ok(hash)
    }

    /// What `check` says of an object's bytes or, if they are not what they should be, of its twin's, which then take
    /// their place.
    fn object(
        &mut self,
        name: &str,
        limit: u64,
        mut check: impl FnMut(&[u8]) -> Option<ObjectHash>,
    ) -> Result<Option<ObjectHash>, RegionError> {
        let twin_name = twin_of(name);
        // An error of the device is damage, too: what is put in its place was proven to be the same.
        let own = read_whole(self.storage, name, limit).ok();
        let twin = read_whole(self.storage, &twin_name, limit).ok();
        if let Some(bytes) = &own
            && let Some(hash) = check(bytes)
        {
            if twin.as_ref() != Some(bytes) {
                self.mended.twins += 1;
                if !self.dry_run {
                    self.storage.restore(&twin_name, bytes)?;
                }
            }
            return Ok(Some(hash));
        }
        let Some((bytes, hash)) = twin.and_then(|bytes| check(&bytes).map(|hash| (bytes, hash))) else {
            return Ok(None);
        };
        if !self.dry_run {
            self.storage.restore(name, &bytes)?;
        }
        self.mended.restored.push(name.to_owned());
        Ok(Some(hash))
    }
}
