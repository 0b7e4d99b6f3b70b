//! A clone of a disk file, kept to tell later what changed.
//!
//! A snapshot reads the clone, not the disk: so the clone is what the snapshot holds, whoever wrote to the disk
//! meanwhile. It is kept together with a note of which snapshot that is, in one step: the note is an attribute of the
//! file, written before the file gets its name. The next snapshot makes a clone of its own and reads what does not lie
//! where it lay in the first. A kept clone counts only if it is the very file that was kept and was not written to since.

use crate::io::disk::DiskError;
use crate::io::rawdisk::RawDisk;
use crate::io::reflink::{KeptClone, NewClone, Stamp, changes_between};
use crate::model::changes::Changes;
use crate::model::ids::{ObjectHash, RegionId, SnapshotId};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a kept clone is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOf {
    /// The region.
    pub region: RegionId,
    /// The snapshot that holds its content.
    pub snapshot: SnapshotId,
    /// The hash of the snapshot's block map.
    pub manifest: ObjectHash,
}

/// What is said of a kept clone, in the file's attribute.
#[derive(Serialize, Deserialize)]
struct Note {
    version: u32,
    #[serde(flatten)]
    of: CloneOf,
    stamp: Stamp,
}

const VERSION: u32 = 1;

/// A disk that is read through a clone of it.
#[derive(Debug)]
pub struct ClonedDisk {
    new: NewClone,
    base: Option<(KeptClone, CloneOf)>,
}

impl ClonedDisk {
    /// Clones a disk as it is at this moment. `path` is where the clone is kept in the end; there may be one from an
    /// earlier snapshot of the disk, and nothing else.
    pub fn begin(disk: &Path, path: &Path) -> Result<Self, DiskError> {
        let base = match KeptClone::open(path)? {
            Some(kept) => {
                let of = check(&kept, path)?;
                Some((kept, of))
            }
            None => None,
        };
        let new = NewClone::create(disk, path, base.as_ref().map(|(kept, _)| kept))?;
        Ok(Self { new, base })
    }

    /// What the clone from before is of, if there is one.
    pub fn base(&self) -> Option<&CloneOf> {
        self.base.as_ref().map(|(_, of)| of)
    }

    /// The clone as a raw disk.
    pub fn open(&self) -> Result<RawDisk, DiskError> {
        self.new.open()
    }

    /// Where the disk differs from the clone from before; or why that cannot be told.
    pub fn changes(&self) -> Result<Result<Changes, &'static str>, DiskError> {
        match &self.base {
            Some((kept, _)) => changes_between(kept, &self.new),
            None => Ok(Err("there is no clone from before")),
        }
    }

    /// Keeps the clone, in the place of the one from before: it is what the snapshot holds.
    pub fn keep(self, of: CloneOf) -> Result<(), DiskError> {
        self.new.keep(|stamp| {
            let note = Note { version: VERSION, of, stamp };
            serde_json::to_string(&note).unwrap_or_default()
        })
    }
}

/// What a kept clone is of, if it is still what it was.
fn check(kept: &KeptClone, path: &Path) -> Result<CloneOf, DiskError> {
    let bad = |why| DiskError::BadTarget { path: path.to_owned(), why };
    let note: Note = match serde_json::from_str(kept.note()) {
        Ok(note) => note,
        Err(_) => return Err(bad("is a clone of which nothing is known; remove it, or name another file")),
    };
    if note.version != VERSION || note.stamp != kept.stamp() {
        return Err(bad(
            "is not as it was when its snapshot was taken; remove it, and the next snapshot reads everything and makes it anew",
        ));
    }
    Ok(note.of)
}
