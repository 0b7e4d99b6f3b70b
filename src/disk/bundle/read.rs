//! Reading a bundle as a disk.

use super::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError, Part, parse};
use crate::io::disk::{DiskError, DiskRead, Extent};
use crate::io::parts::{check_file, read_file};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zstd::zstd_safe;

/// Decoded parts that are kept: a read may end in the part after the one it began in.
const CACHED_PARTS: usize = 2;

/// A bundle open for reading. Every part is checked before a byte of it is handed out.
pub struct Bundle {
    manifest: Manifest,
    path: PathBuf,
    /// The last parts that were decoded, by number, the newest last.
    cache: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
}

/// Opens a bundle by its manifest. All of the manifest is checked, and that every part is there with its
/// length; what is in the parts is checked when they are read. No symbolic link is followed.
pub fn open_bundle(manifest: &Path) -> Result<Bundle, DiskError> {
    let bytes = read_file(manifest, 1..=MANIFEST_BYTES_MAX)?;
    let parsed = parse(&bytes).map_err(|error| {
        let cure = match error {
            ManifestError::Newer { .. } => "update this one",
            _ => "copy the bundle here again, or make it anew",
        };
        bad(manifest, error.to_string(), cure)
    })?;
    let name = parsed.file_name();
    if manifest.file_name().is_none_or(|given| given.to_str() != Some(name.as_str())) {
        let why = format!("it is the manifest of a bundle that is called {}", parsed.name);
        return Err(bad(manifest, why, "give all of the bundle's files their names back"));
    }
    let bundle = Bundle { manifest: parsed, path: manifest.to_owned(), cache: Mutex::default() };
    for part in &bundle.manifest.parts {
        let path = bundle.part_path(part);
        check_file(&path, part.stored_bytes..=part.stored_bytes).map_err(missing)?;
    }
    Ok(bundle)
}

impl Bundle {
    /// The bundle's name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// What its maker wrote about it. The strings come from outside and may be anything.
    pub fn attributes(&self) -> &BTreeMap<String, String> {
        &self.manifest.attributes
    }

    fn part_path(&self, part: &Part) -> PathBuf {
        self.path.with_file_name(self.manifest.part_name(part.number))
    }

    /// The first part with data that is not before `number`.
    fn next_part(&self, number: u64) -> Option<&Part> {
        let parts = &self.manifest.parts;
        parts.get(parts.partition_point(|part| part.number < number))
    }

    /// A part's raw bytes. One part is decoded at a time, whoever asks, so that the memory is bounded.
    fn raw(&self, part: &Part) -> Result<Arc<Vec<u8>>, DiskError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, raw)) = cache.iter().find(|(number, _)| *number == part.number) {
            return Ok(raw.clone());
        }
        if cache.len() >= CACHED_PARTS {
            cache.remove(0);
        }
        let raw = Arc::new(self.decode(part)?);
        cache.push((part.number, raw.clone()));
        Ok(raw)
    }

    fn decode(&self, part: &Part) -> Result<Vec<u8>, DiskError> {
        let path = self.part_path(part);
        let stored = read_file(&path, part.stored_bytes..=part.stored_bytes).map_err(missing)?;
        let damaged = |why: String| bad(&path, why, "copy it here again, or make the bundle anew");
        if *blake3::hash(&stored).as_bytes() != part.blake3.0 {
            return Err(damaged("its bytes do not fit the hash that the manifest has of them".into()));
        }
        let len = usize::try_from(part.raw_bytes).map_err(|e| damaged(e.to_string()))?;
        let mut raw = vec![0; len];
        decode_frame(&stored, &mut raw).map_err(|why| damaged(why.into()))?;
        Ok(raw)
    }
}

impl DiskRead for Bundle {
    fn len_bytes(&self) -> u64 {
        self.manifest.volume_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let Manifest { part_bytes, volume_bytes, .. } = self.manifest;
        let number = offset / part_bytes;
        let (next, is_zero) = match self.next_part(number) {
            Some(part) if part.number == number => (number + 1, false),
            Some(part) => (part.number, true),
            None => (u64::MAX, true),
        };
        Ok(Extent { start: offset, end: next.saturating_mul(part_bytes).min(volume_bytes), is_zero })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.manifest.volume_bytes) {
            return Err(DiskError::io("read", &self.path, offset, io::ErrorKind::InvalidInput.into()));
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let number = at / self.manifest.part_bytes;
            let start = at % self.manifest.part_bytes;
            let left = usize::try_from(self.manifest.raw_bytes(number) - start).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at_mut(left.min(rest.len()));
            match self.next_part(number).filter(|part| part.number == number) {
                None => piece.fill(0),
                Some(part) => {
                    let start = usize::try_from(start).unwrap_or(usize::MAX);
                    piece.copy_from_slice(&self.raw(part)?[start..start + piece.len()]);
                }
            }
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }
}

/// Decodes exactly one zstd frame with its declared size, which must be that of `raw`: zstd itself would
/// accept several, and skippable ones.
pub(super) fn decode_frame(stored: &[u8], raw: &mut [u8]) -> Result<(), &'static str> {
    match zstd_safe::get_frame_content_size(stored) {
        Ok(Some(size)) if size == raw.len() as u64 => {}
        Ok(_) => return Err("its zstd frame declares another size than the manifest, or none"),
        Err(_) => return Err("it does not begin with a zstd frame"),
    }
    if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
        return Err("it is not exactly one zstd frame");
    }
    let decoded = zstd_safe::DCtx::create().decompress(raw, stored);
    if decoded == Ok(raw.len()) { Ok(()) } else { Err("its zstd frame cannot be decoded") }
}

fn bad(path: &Path, why: String, cure: &'static str) -> DiskError {
    DiskError::BadBundle { path: path.to_owned(), why, cure }
}

/// What is not there of a bundle is a fault of the bundle.
fn missing(error: DiskError) -> DiskError {
    match error {
        DiskError::NotFound { path } => {
            bad(&path, "this part of the bundle is missing".into(), "copy it here, or make the bundle anew")
        }
        error => error,
    }
}
