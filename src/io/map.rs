//! Bytes of a sealed object: a read-only map where that is possible, a copy elsewhere.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The bytes of an object, cheap to clone.
#[derive(Clone)]
pub enum Bytes {
    /// A map of a sealed file.
    Mapped(Arc<memmap2::Mmap>),
    /// A copy in memory.
    Owned(Arc<Vec<u8>>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Has the system bring a part of a map into memory, so that what the device does not give is an error: whoever touches it
    /// otherwise is ended by a signal. What lies outside, and that the system knows no such request, is no error. It
    /// may have gone from memory again when it is touched.
    pub fn load(&self, range: Range<usize>) -> io::Result<()> {
        let Self::Mapped(map) = self else { return Ok(()) };
        let (start, end) = (range.start.min(map.len()), range.end.min(map.len()));
        #[cfg(target_os = "linux")]
        if start < end {
            match map.advise_range(memmap2::Advice::PopulateRead, start, end - start) {
                // Linux before 5.14; or there is no memory for it now, which says nothing of the file.
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::OutOfMemory) => {}
                loaded => loaded?,
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.as_ref().len())
    }
}

/// Maps a sealed file read-only. The caller gives only files of a region: synced, renamed into place, mode
/// 0400, and never written or shortened again.
#[expect(
    unsafe_code,
    reason = "a map is only sound while nobody changes the file, which the types cannot say"
)]
pub fn map_sealed(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::Owned(Arc::default()));
    }
    // SAFETY: sealed files are immutable by the store's first rule: no code of imgstore opens one for
    // writing, and mode 0400 in a 0700 directory keeps other accounts out. Deleting one keeps its pages.
    // Who edits a sealed file by hand can make a mapped read fail or read other bytes; what is read is
    // checked against hashes, and `--no-mmap` avoids the map altogether.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::Mapped(Arc::new(map)))
}
