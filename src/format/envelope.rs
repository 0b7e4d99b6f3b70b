//! The envelope of small objects (region file, log record, checkpoint, list): a header that names kind and
//! version, a body, and a hash over both that is different for every kind.
//!
//! ```text
//!  0  8  magic
//!  8  2  version         1
//! 10  1  suite           0: not encrypted; others are reserved
//! 11  1  flags           0; others are reserved
//! 12  4  body length
//! 16  .  body
//!  .  32 BLAKE3 in the kind's own derive-key context over everything before
//! ```

use super::error::FormatError;
use crate::model::ids::ObjectHash;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 16;
/// Bytes after the body.
pub const HASH_BYTES: usize = 32;
/// The version of every object's layout that this program writes and reads.
pub const VERSION: u16 = 1;

/// A kind of object.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The word for it in errors.
    pub what: &'static str,
    /// Its first eight bytes.
    pub magic: [u8; 8],
    /// The derive-key context of its hash: no two kinds share one.
    pub context: &'static str,
}

impl Kind {
    /// The hash of bytes as an object of this kind.
    pub fn hash(&self, parts: &[&[u8]]) -> ObjectHash {
        let mut hasher = self.hasher();
        for part in parts {
            hasher.update(part);
        }
        ObjectHash(*hasher.finalize().as_bytes())
    }

    /// For an object's hash bit by bit.
    pub(super) fn hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_derive_key(self.context)
    }

    /// The bytes of an object of this kind, and its hash.
    pub fn seal(&self, body: &[u8]) -> Result<(Vec<u8>, ObjectHash), FormatError> {
        let len = u32::try_from(body.len())
            .map_err(|_| FormatError::length(self.what, u32::MAX as usize, body.len()))?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + HASH_BYTES);
        bytes.extend(self.magic);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(len.to_le_bytes());
        bytes.extend(body);
        let hash = self.hash(&[&bytes]);
        bytes.extend(hash.0);
        Ok((bytes, hash))
    }

    /// The body of an object of this kind, and its hash.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<(&'a [u8], ObjectHash), FormatError> {
        let what = self.what;
        let Some(body_len) = bytes.len().checked_sub(HEADER_BYTES + HASH_BYTES) else {
            return Err(FormatError::length(what, HEADER_BYTES + HASH_BYTES, bytes.len()));
        };
        check_magic(self, bytes)?;
        let declared = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
        if declared != body_len {
            return Err(FormatError::length(what, declared, body_len));
        }
        let (covered, stored) = bytes.split_at(HEADER_BYTES + body_len);
        let hash = self.hash(&[covered]);
        if hash.0 != stored {
            return Err(FormatError::Hash { what });
        }
        check_preamble(self, bytes)?;
        Ok((&covered[HEADER_BYTES..], hash))
    }
}

/// Checks the first eight bytes. The hash is checked next, and only then what the other fields say: a flipped
/// bit in a version number is damage, and no newer version.
pub fn check_magic(kind: &Kind, bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.starts_with(&kind.magic) { Ok(()) } else { Err(FormatError::Magic { what: kind.what }) }
}

/// Checks magic, version, suite and flags: the first twelve bytes of every object.
pub fn check_preamble(kind: &Kind, bytes: &[u8]) -> Result<(), FormatError> {
    let what = kind.what;
    let Some(&[m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, suite, flags]) = bytes.first_chunk::<12>() else {
        return Err(FormatError::length(what, 12, bytes.len()));
    };
    if [m0, m1, m2, m3, m4, m5, m6, m7] != kind.magic {
        return Err(FormatError::Magic { what });
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(FormatError::Newer { what, feature: format!("format version {version}") });
    }
    if suite != 0 {
        return Err(FormatError::Newer { what, feature: format!("encryption suite {suite}") });
    }
    if flags != 0 {
        return Err(FormatError::Newer { what, feature: format!("flags {flags:#04x}") });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { what: "test", magic: *b"IMGSTEST", context: "imgstore test envelope" };

    #[test]
    fn sealed_bodies_open() {
        for body in [&b""[..], b"x", &[7; 1000]] {
            let (bytes, hash) = KIND.seal(body).unwrap();
            assert_eq!(KIND.open(&bytes).unwrap(), (body, hash));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (bytes, _) = KIND.seal(b"body").unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(KIND.open(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(KIND.open(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(KIND.open(&[bytes, vec![0]].concat()).is_err());
        let short = KIND.open(b"IMGSTEST").unwrap_err().to_string();
        assert!(short.contains("48") && short.contains('8'), "{short}");
    }

    #[test]
    fn a_preamble_is_twelve_bytes_of_this_version() {
        let (bytes, _) = KIND.seal(b"body").unwrap();
        check_preamble(&KIND, &bytes).unwrap();
        for (at, what) in [(0, "magic"), (8, "version"), (10, "suite"), (11, "flags")] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(check_preamble(&KIND, &other).is_err(), "{what}");
        }
        for len in 0..12 {
            assert!(check_preamble(&KIND, &bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn the_same_body_has_another_hash_in_another_kind() {
        let other = Kind { context: "imgstore other envelope", ..KIND };
        assert_ne!(KIND.hash(&[b"x"]), other.hash(&[b"x"]));
    }
}
