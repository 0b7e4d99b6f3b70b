//! Making disk files in the formats that disks are written in.

use super::formats::{qcow2, vhd, vhdx, vmdk};
use super::open::{TargetOptions, check_target, open_target};
use crate::io::disk::{DiskError, DiskWrite, FileWrite};
use crate::io::outfile::NewFile;
pub use crate::io::outfile::Together;
use rayon::ThreadPool;
use std::path::Path;

/// A format that disks are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes as they are.
    Raw,
    /// QEMU's, its clusters compressed with zstd or as they are.
    Qcow2 {
        /// Whether they are compressed.
        is_compressed: bool,
    },
    /// VMware's streamOptimized, which is always compressed.
    Vmdk,
    /// Hyper-V's first, growing with what is on it.
    Vhd,
    /// The same, fixed: what Azure takes.
    VhdFixed,
    /// Hyper-V's, growing with what is on it.
    Vhdx,
}

/// Bytes that every format but raw has a whole number of.
const SECTOR_BYTES: u64 = 512;
/// Bytes that Azure has a whole number of.
const AZURE_BYTES: u64 = 1 << 20;

impl DiskFormat {
    /// What files in it are usually called after the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 { .. } => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd | Self::VhdFixed => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// Bytes of the disk that a volume of `volume_bytes` becomes: formats have whole sectors. What is more than
    /// the volume reads as zeros.
    pub fn disk_bytes(self, volume_bytes: u64) -> u64 {
        let unit = match self {
            Self::Raw => 1,
            Self::VhdFixed => AZURE_BYTES,
            _ => SECTOR_BYTES,
        };
        volume_bytes.checked_next_multiple_of(unit).unwrap_or(volume_bytes)
    }

    /// Refuses a volume that it cannot hold; `path` is what messages call its file.
    pub fn check_len(self, path: &Path, volume_bytes: u64) -> Result<(), DiskError> {
        let limit = match self {
            Self::Raw => return Ok(()),
            Self::Qcow2 { .. } => qcow2::write::LIMIT,
            Self::Vmdk => vmdk::write::LIMIT,
            Self::Vhd | Self::VhdFixed => vhd::write::LIMIT,
            Self::Vhdx => vhdx::write::LIMIT,
        };
        limit.check(path, volume_bytes)
    }
}

/// Opens a new file, or for raw also a block device, to write a volume of `volume_bytes` to. `id` is random: some
/// formats bear one. Compression runs on `pool`.
pub fn create_disk<'a>(
    path: &Path,
    volume_bytes: u64,
    format: DiskFormat,
    options: TargetOptions,
    id: u128,
    pool: &'a ThreadPool,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    if format == DiskFormat::Raw {
        return open_target(path, volume_bytes, options);
    }
    write_format(NewFile::create(path, 0, options.force)?, path, volume_bytes, format, id, pool)
}

/// The same for one of several new files, which get their names together.
pub fn create_disk_of<'a>(
    several: &Together,
    path: &Path,
    volume_bytes: u64,
    format: DiskFormat,
    options: TargetOptions,
    id: u128,
    pool: &'a ThreadPool,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    let len = if format == DiskFormat::Raw { volume_bytes } else { 0 };
    write_format(several.create(path, len, options.force)?, path, volume_bytes, format, id, pool)
}

fn write_format<'a>(
    file: impl FileWrite + DiskWrite + 'static,
    path: &Path,
    volume_bytes: u64,
    format: DiskFormat,
    id: u128,
    pool: &'a ThreadPool,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    let file = Box::new(file);
    match format {
        DiskFormat::Raw => Ok(file),
        DiskFormat::Qcow2 { is_compressed } => {
            qcow2::write::create(file, path, volume_bytes, qcow2::write::Options { is_compressed }, pool)
        }
        DiskFormat::Vmdk => vmdk::write::create(file, path, volume_bytes, pool),
        DiskFormat::Vhd => vhd::write::create(file, path, volume_bytes, vhd::write::Kind::Dynamic, id),
        DiskFormat::VhdFixed => vhd::write::create(file, path, volume_bytes, vhd::write::Kind::Fixed, id),
        DiskFormat::Vhdx => vhdx::write::create(file, path, volume_bytes, id),
    }
}

/// Refuses what [`create_disk`] would refuse before it makes anything.
pub fn check_disk(
    path: &Path,
    volume_bytes: u64,
    format: DiskFormat,
    options: TargetOptions,
) -> Result<(), DiskError> {
    format.check_len(path, volume_bytes)?;
    if format == DiskFormat::Raw {
        check_target(path, volume_bytes, options)
    } else {
        check_file(path, options)
    }
}

/// Refuses what [`create_file`] would refuse before it makes anything.
pub fn check_file(path: &Path, options: TargetOptions) -> Result<(), DiskError> {
    NewFile::check(path, options.force)
}

/// A new file to write in any order, such as an archive.
pub fn create_file(path: &Path, options: TargetOptions) -> Result<Box<dyn FileWrite>, DiskError> {
    Ok(Box::new(NewFile::create(path, 0, options.force)?))
}
