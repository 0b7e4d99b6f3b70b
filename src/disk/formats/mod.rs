//! Disk formats as people have them, each behind [`DiskRead`](super::DiskRead): our own readers, which believe
//! nothing that a file says of itself before it is checked, and never open another file that it names.
//!
//! A reader stands on another disk that holds the file's bytes, so that it can be tried on bytes in memory.

mod growing;
#[cfg(test)]
mod memory;
mod pieces;
pub mod qcow2;
mod units;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;

use crate::io::disk::DiskError;
use crate::model::units::VOLUME_BYTES_MAX;
use std::path::Path;

/// What a reader accepts at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the virtual disk.
    pub virtual_bytes: u64,
    /// Bytes of tables that are held in memory.
    pub metadata_bytes: u64,
}

/// The longest volume that a format holds.
#[derive(Debug, Clone, Copy)]
pub struct VolumeLimit {
    /// The format's name.
    pub format: &'static str,
    /// Bytes at most; one at least.
    pub bytes: u64,
}

impl VolumeLimit {
    /// Refuses a volume that does not fit; `path` is what messages call its file.
    pub fn check(self, path: &Path, volume_bytes: u64) -> Result<(), DiskError> {
        let (path, format, limit) = (path.to_owned(), self.format, self.bytes);
        match volume_bytes {
            0 => Err(DiskError::Empty { path }),
            expected if expected > limit => Err(DiskError::TooLong { path, format, expected, limit }),
            _ => Ok(()),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { virtual_bytes: VOLUME_BYTES_MAX, metadata_bytes: 64 << 20 }
    }
}

/// Least bytes of tables of one of several disks.
const METADATA_BYTES_OF_EACH: u64 = 4 << 20;

impl Limits {
    /// What each of so many disks is held to that are open at once.
    pub(super) fn shared_by(self, disks: usize) -> Self {
        let share = self.metadata_bytes / disks.max(1) as u64;
        Self { metadata_bytes: share.max(METADATA_BYTES_OF_EACH).min(self.metadata_bytes), ..self }
    }

    /// Refuses a virtual size of nothing, or over the limit.
    pub(super) fn check_size(
        &self,
        path: &Path,
        format: &'static str,
        virtual_bytes: u64,
    ) -> Result<(), DiskError> {
        if virtual_bytes == 0 {
            return Err(DiskError::Empty { path: path.to_owned() });
        }
        if virtual_bytes > self.virtual_bytes {
            let why = format!("it has {virtual_bytes} bytes, the limit is {}", self.virtual_bytes);
            let cure = "raise the limit with --max-size if that is really so";
            return Err(refused(path, format, why, cure));
        }
        Ok(())
    }
}

/// The refusal of a file.
pub(super) fn refused(
    path: &Path,
    format: &'static str,
    why: impl Into<String>,
    cure: &'static str,
) -> DiskError {
    DiskError::Refused { path: path.to_owned(), format, why: why.into(), cure }
}
