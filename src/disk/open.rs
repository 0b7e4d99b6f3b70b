//! Opening disks to read and targets to write.

use super::detect::{Foreign, signatures};
use super::formats::{Limits, qcow2, refused, vdi, vhd, vhdx, vmdk};
use crate::io::disk::{DiskError, DiskRead, DiskWrite};
use crate::io::outfile::{BlockDevice, NewFile, Stream};
use crate::io::rawdisk::RawDisk;

pub use crate::io::folder::{NewDirs, check_folder, make_dirs, remove_dir_with};
pub use crate::io::outfile::{
    absolute, is_block_device, physical, remove_instance_folder, remove_made_file, utf8,
};
pub use crate::io::reflink::FinishedFile;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What the user says of a disk's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// Nothing: what its bytes say counts, and if they say nothing it is raw.
    Nothing,
    /// It is raw, whatever its bytes look like.
    Raw,
    /// It has this format, and its bytes must say so, whatever else they say.
    As(Foreign),
}

/// Bytes that disks have a whole number of.
const SECTOR_BYTES: u64 = 512;

/// Said of a block device that is mounted.
const IN_USE: &str = "it is in use: what is written to it meanwhile is in the snapshot or not, block by block; freeze or unmount what is on it";

/// A disk that was opened for reading.
pub struct Opened {
    /// What is on it.
    pub disk: Box<dyn DiskRead>,
    /// Its format.
    pub format: &'static str,
    /// What of the file is not on the disk, and what is to be known of it, for people.
    pub notes: Vec<String>,
}

/// Opens a disk for reading. Its format is what its bytes say, all known signatures are looked for, and what is
/// declared must be what is found.
pub fn open_disk(path: &Path, declared: Declared, limits: &Limits) -> Result<Opened, DiskError> {
    let file = RawDisk::open(path)?;
    let is_in_use = file.is_in_use();
    let mut opened = open_file(Arc::new(file), path, declared, limits)?;
    if is_in_use {
        opened.notes.push(IN_USE.to_owned());
    }
    Ok(opened)
}

/// As [`open_disk`]; a block device that is in use is refused, and held until the disk is closed.
pub fn open_unused_disk(path: &Path, declared: Declared, limits: &Limits) -> Result<Opened, DiskError> {
    open_file(Arc::new(RawDisk::open_unused(path)?), path, declared, limits)
}

/// As [`open_disk`], of the bytes of a file that lies in another; `path` is its name in messages.
pub fn open_file(
    file: Arc<dyn DiskRead>,
    path: &Path,
    declared: Declared,
    limits: &Limits,
) -> Result<Opened, DiskError> {
    if file.len_bytes() == 0 {
        return Err(DiskError::Empty { path: path.to_owned() });
    }
    let raw = |file: Arc<dyn DiskRead>| {
        let len = file.len_bytes();
        limits.check_size(path, "raw", len)?;
        let odd = "its length is no multiple of 512 bytes, as that of a raw disk usually is";
        let notes = if len.is_multiple_of(SECTOR_BYTES) { vec![] } else { vec![odd.to_owned()] };
        Ok(Opened { disk: Box::new(file), format: "raw", notes })
    };
    if declared == Declared::Raw {
        return raw(file);
    }
    let found = signatures(&*file)?;
    match (declared, found.as_slice()) {
        (Declared::Nothing, []) => {
            check_name(path)?;
            raw(file)
        }
        (Declared::Nothing, [one]) => open_as(*one, file, path, limits),
        (Declared::As(format), found) if found.contains(&format) => {
            let mut opened = open_as(format, file, path, limits)?;
            let others = found.iter().filter(|other| **other != format);
            opened
                .notes
                .extend(others.map(|other| format!("its bytes say that it is {}, too", other.as_str())));
            Ok(opened)
        }
        (Declared::As(format), []) => {
            let why = "its bytes do not say that it has that format";
            Err(refused(path, format.as_str(), why, "leave --format out"))
        }
        (Declared::As(format), [one, ..]) => {
            let why = format!("its bytes say that it is {}", one.as_str());
            Err(refused(path, format.as_str(), why, "leave --format out"))
        }
        (Declared::Nothing, [one, two, ..]) => {
            let why = format!("its bytes say that it is {}, too", two.as_str());
            let cure = "say which it is with --format, raw if it is a raw disk, and mistrust it otherwise";
            Err(refused(path, one.as_str(), why, cure))
        }
        (Declared::Raw, _) => raw(file),
    }
}

/// Refuses a raw disk that is named as one of a format: a page of a server that has no such file, perhaps.
fn check_name(path: &Path) -> Result<(), DiskError> {
    const ENDINGS: [&str; 6] = ["qcow2", "vmdk", "vhd", "vhdx", "vdi", "ova"];
    let is_named = |ending: &&&str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
    let Some(ending) = ENDINGS.iter().find(is_named) else { return Ok(()) };
    let cure = "it may have been damaged or cut on its way; if it is a raw disk, say --format raw";
    Err(refused(path, ending, "its bytes do not say that it has the format that it is named by", cure))
}

/// Opens a raw disk, as a guest has written it: never probed.
pub fn open_raw(path: &Path) -> Result<Box<dyn DiskRead>, DiskError> {
    Ok(Box::new(RawDisk::open(path)?))
}

/// Whether a file is a tar archive by its bytes, as an OVA is.
pub fn is_ova(path: &Path) -> Result<bool, DiskError> {
    Ok(signatures(&RawDisk::open(path)?)? == [Foreign::Ova])
}

fn open_as(
    format: Foreign,
    file: Arc<dyn DiskRead>,
    path: &Path,
    limits: &Limits,
) -> Result<Opened, DiskError> {
    let mut notes = Vec::new();
    let disk: Box<dyn DiskRead> = match format {
        Foreign::Qcow2 => {
            let disk = qcow2::open(file, path, limits)?;
            notes = disk.notes();
            Box::new(disk)
        }
        Foreign::Vmdk => Box::new(vmdk::open(file, path, limits)?),
        Foreign::Vhd => {
            let disk = vhd::open(file, path, limits)?;
            notes = disk.notes();
            Box::new(disk)
        }
        Foreign::Vhdx => {
            let disk = vhdx::open(file, path, limits)?;
            notes = disk.notes();
            Box::new(disk)
        }
        Foreign::Ova => {
            let why = "it is a whole machine, or another tar archive, not a disk";
            let cure = "import takes an OVA, alone; for the archive's own bytes say --format raw";
            return Err(refused(path, "OVA", why, cure));
        }
        Foreign::Other(name) => {
            let cure = "unpack it, or convert it with qemu-img; for the file's own bytes say --format raw";
            return Err(refused(path, name, "files of that format are not read", cure));
        }
        Foreign::Vdi => Box::new(vdi::open(file, path, limits)?),
    };
    Ok(Opened { disk, format: format.as_str(), notes })
}

/// What may be done to a target.
#[derive(Debug, Clone, Copy, Default)]
pub struct TargetOptions {
    /// Replace a regular file that stands there.
    pub force: bool,
    /// Overwrite a block device; anything else is refused.
    pub write_device: bool,
}

/// Opens a file or block device to write a volume of `len` bytes to.
pub fn open_target(path: &Path, len: u64, options: TargetOptions) -> Result<Box<dyn DiskWrite>, DiskError> {
    if is_block_device(path) {
        if !options.write_device {
            return Err(DiskError::IsDevice { path: path.to_owned() });
        }
        return Ok(Box::new(BlockDevice::open(path, len)?));
    }
    check_no_device(path, options)?;
    Ok(Box::new(NewFile::create(path, len, options.force)?))
}

/// Refuses what [`open_target`] would refuse before it makes anything.
pub fn check_target(path: &Path, len: u64, options: TargetOptions) -> Result<(), DiskError> {
    match is_block_device(path) {
        true if options.write_device => BlockDevice::check(path, len),
        true => Err(DiskError::IsDevice { path: path.to_owned() }),
        false => check_no_device(path, options).and_then(|()| NewFile::check(path, options.force)),
    }
}

/// Who means a device is not to get a file, in memory perhaps, under its name.
fn check_no_device(path: &Path, options: TargetOptions) -> Result<(), DiskError> {
    if !options.write_device {
        return Ok(());
    }
    let why = "is no block device; is it there? Leave --write-device out for a file";
    Err(DiskError::BadTarget { path: path.to_owned(), why })
}

/// Standard output as a target: zeros are written, too. Waiting for who reads it ends once it is `cancelled`.
pub fn stdout_target(cancelled: Arc<AtomicBool>) -> Result<Box<dyn DiskWrite>, DiskError> {
    Ok(Box::new(Stream::stdout(cancelled)?))
}
