//! Writing a disk as a bundle.

use super::manifest::{Manifest, ManifestError, PART_BYTES, PARTS_MAX, Part, encode};
use super::read::decode_frame;
use crate::disk::is_zero;
use crate::io::disk::{DiskError, DiskWrite};
use crate::io::parts::NewParts;
use crate::model::ids::ObjectHash;
use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use zstd::zstd_safe::{self, CParameter};

/// zstd levels that are used; others are taken for the nearest. As for a region's chunks.
const ZSTD_LEVELS: RangeInclusive<i32> = 1..=12;

/// What a new bundle is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleOptions {
    /// Its name, of which [`is_bundle_name`](super::is_bundle_name) holds.
    pub name: String,
    /// What is to be known of it: at most 64, keys of at most 128 bytes, values of at most 4096.
    pub attributes: BTreeMap<String, String>,
    /// Length of the volume in bytes, 1 byte to 64 TiB.
    pub volume_bytes: u64,
    /// How hard to compress, 1 to 12.
    pub zstd_level: i32,
}

/// A new bundle in `dir`, which is made where it is missing. What is not written reads as zeros. Parts that
/// are all zeros take no space. The bundle exists once its manifest does, which `finish` makes last; dropped
/// before that, everything that was made goes again, the directory included.
///
/// Memory for two parts of 16 MiB is used. A manifest or part of that name is refused as
/// [`DiskError::BundleExists`], options that no bundle can have as [`DiskError::BadBundle`].
pub fn create_bundle(dir: &Path, options: &BundleOptions) -> Result<Box<dyn DiskWrite>, DiskError> {
    Ok(Box::new(NewBundle::create(dir, options, PART_BYTES)?))
}

/// A bundle being written, front to back.
pub(super) struct NewBundle {
    files: NewParts,
    path: PathBuf,
    manifest: Manifest,
    /// The part at hand.
    number: u64,
    /// Its raw bytes; empty as long as nothing was written into it.
    raw: Vec<u8>,
    stored: Vec<u8>,
    compressor: zstd_safe::CCtx<'static>,
    /// Where the last write ended.
    position: u64,
    /// After a failure something is missing, which would read as zeros.
    failed: bool,
}

impl NewBundle {
    /// As [`create_bundle`], with parts of `part_bytes`.
    pub(super) fn create(dir: &Path, options: &BundleOptions, part_bytes: u64) -> Result<Self, DiskError> {
        let BundleOptions { name, attributes, volume_bytes, zstd_level } = options.clone();
        let manifest = Manifest { name, volume_bytes, part_bytes, attributes, parts: Vec::new() };
        manifest.check().map_err(|error| cannot(dir, &error))?;
        let path = dir.join(manifest.file_name());
        let level = zstd_level.clamp(*ZSTD_LEVELS.start(), *ZSTD_LEVELS.end());
        let mut compressor = zstd_safe::CCtx::create();
        for parameter in [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)] {
            compressor.set_parameter(parameter).map_err(|code| compression(&path, 0, code))?;
        }
        let files = NewParts::begin(dir, |name| manifest.is_name_of_file(name))?;
        let (raw, stored) = (Vec::new(), Vec::new());
        Ok(Self { files, path, manifest, number: 0, raw, stored, compressor, position: 0, failed: false })
    }

    /// Checks that a range is not before the last one, and inside the volume.
    fn advance(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.manifest.volume_bytes);
        match end {
            Some(end) if offset >= self.position => self.position = end,
            _ => return Err(DiskError::io("write", &self.path, offset, io::ErrorKind::InvalidInput.into())),
        }
        Ok(())
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.advance(offset, bytes.len() as u64)?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let number = at / self.manifest.part_bytes;
            if number != self.number {
                self.end_part()?;
                self.number = number;
            }
            let too_large = |e| DiskError::io("write", &self.path, at, io::Error::other(e));
            let len = usize::try_from(self.manifest.raw_bytes(number)).map_err(too_large)?;
            let start = usize::try_from(at % self.manifest.part_bytes).map_err(too_large)?;
            self.raw.resize(len, 0);
            let (piece, behind) = rest.split_at(rest.len().min(len - start));
            self.raw[start..start + piece.len()].copy_from_slice(piece);
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Makes the file of the part at hand, unless it is all zeros.
    fn end_part(&mut self) -> Result<(), DiskError> {
        if !is_zero(&self.raw) {
            if self.manifest.parts.len() >= PARTS_MAX {
                return Err(DiskError::BadBundle {
                    path: self.path.clone(),
                    why: format!("the volume has more data than {PARTS_MAX} parts can hold"),
                    cure: "keep it in a region, where it may have more",
                });
            }
            let raw_bytes = self.raw.len() as u64;
            self.compress()?;
            let part = Part {
                number: self.number,
                raw_bytes,
                stored_bytes: self.stored.len() as u64,
                blake3: ObjectHash(*blake3::hash(&self.stored).as_bytes()),
            };
            self.files.add(self.manifest.part_name(self.number), &self.stored)?;
            self.manifest.parts.push(part);
        }
        self.raw.clear();
        Ok(())
    }

    /// Compresses the part at hand, and proves by decoding that it comes back. It is decoded into its own
    /// place: its hash tells whether it is the same, and a third buffer is saved.
    fn compress(&mut self) -> Result<(), DiskError> {
        let offset = self.number * self.manifest.part_bytes;
        let before = blake3::hash(&self.raw);
        self.stored.clear();
        self.stored.reserve(zstd_safe::compress_bound(self.raw.len()));
        let compressed = self.compressor.compress2(&mut self.stored, &self.raw);
        compressed.map_err(|code| compression(&self.path, offset, code))?;
        let proven = decode_frame(&self.stored, &mut self.raw);
        if proven.is_err() || blake3::hash(&self.raw) != before {
            let source = io::Error::other("what was compressed does not come back; is the memory good?");
            return Err(DiskError::io("compress", &self.path, offset, source));
        }
        Ok(())
    }
}

impl DiskWrite for NewBundle {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let done = self.put(offset, bytes);
        self.failed |= done.is_err();
        done
    }

    /// A new bundle reads as zeros where nothing was written.
    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let done = self.advance(offset, len);
        self.failed |= done.is_err();
        done
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        if self.failed {
            let source = io::Error::other("writing it failed before");
            return Err(DiskError::io("finish", self.path, self.position, source));
        }
        self.end_part()?;
        let Self { files, path, manifest, .. } = *self;
        let bytes = encode(&manifest).map_err(|error| cannot(&path, &error))?;
        files.publish(&manifest.file_name(), &bytes)
    }
}

fn compression(path: &Path, offset: u64, code: zstd_safe::ErrorCode) -> DiskError {
    let source = io::Error::other(zstd_safe::get_error_name(code));
    DiskError::io("compress", path, offset, source)
}

fn cannot(path: &Path, error: &ManifestError) -> DiskError {
    let why = format!("no bundle can be made here: {error}");
    DiskError::BadBundle { path: path.to_owned(), why, cure: "choose other values" }
}
