//! The one place that knows bincode: values to bytes and back, canonically and within limits.
//!
//! Fixed-width little-endian integers. Decoding consumes all bytes, allocates in proportion to the input's length,
//! and accepts only what encoding would have written. docs/FORMAT.md, "Values", gives the bytes, so that a
//! change of crate would not change them.

use super::error::FormatError;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Write};

/// Largest encoded value: a bound on what decoding may allocate, and so on what is written.
pub const VALUE_BYTES_MAX: usize = 1 << 30;

/// Bincode reserves the length that a string claims before it reads the string. So what is short, or not very long, is
/// decoded within a limit of its own.
const SHORT: usize = 16 << 10;
const MIDDLING: usize = 4 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<VALUE_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<VALUE_BYTES_MAX>();

/// The bytes of a value. One that would be too long to be read again is an error.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, FormatError> {
    encode_within(VALUE_BYTES_MAX, what, value)
}

/// Bincode's own limit is one of decoding only.
fn encode_within<T: Serialize>(max: usize, what: &'static str, value: &T) -> Result<Vec<u8>, FormatError> {
    let mut within = Within { bytes: Vec::new(), max };
    match bincode::serde::encode_into_std_write(value, &mut within, CONFIG) {
        Ok(_) => Ok(within.bytes),
        Err(error) => Err(FormatError::invalid(what, error.to_string())),
    }
}

/// Bytes, and how many there may be.
struct Within {
    bytes: Vec<u8>,
    max: usize,
}

impl Write for Within {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max - self.bytes.len() {
            return Err(io::Error::other(format!("it is longer than {} bytes", self.max)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The value that exactly these bytes stand for.
pub fn decode<T: Serialize + DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    let decoded = if bytes.len() <= SHORT {
        bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG.with_limit::<SHORT>())
    } else if bytes.len() <= MIDDLING {
        bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG.with_limit::<MIDDLING>())
    } else {
        bincode::serde::decode_from_slice::<T, _>(bytes, CONFIG)
    };
    let (value, consumed) = decoded.map_err(|e| fault(what, &e))?;
    if consumed != bytes.len() {
        return Err(FormatError::length(what, consumed, bytes.len()));
    }
    if encode(what, &value)? != bytes {
        return Err(FormatError::invalid(what, "it is not in its one canonical form"));
    }
    Ok(value)
}

/// What is decoded stood under a good hash: a choice that this version does not know is a newer one's.
fn fault(what: &'static str, error: &bincode::error::DecodeError) -> FormatError {
    let text = error.to_string();
    if text.contains("variant index") {
        return FormatError::Newer { what, feature: format!("a choice ({text})") };
    }
    FormatError::invalid(what, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn integers_are_fixed_width_and_little_endian() {
        assert_eq!(encode("test", &0x0102_u16).unwrap(), [2, 1]);
        assert_eq!(encode("test", &(1u8, "ab")).unwrap(), [1, 2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
        assert_eq!(encode("test", &Some(5u8)).unwrap(), [1, 5]);
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert_eq!(decode::<u8>("test", &[1]).unwrap(), 1);
        assert!(decode::<u8>("test", &[1, 2]).is_err());
        assert!(decode::<u16>("test", &[1]).is_err());
    }

    #[test]
    fn a_length_from_outside_allocates_nothing() {
        let mut hostile = vec![0xff; 8];
        hostile.extend([0; 24]);
        assert!(decode::<Vec<u64>>("test", &hostile).is_err());
        assert!(decode::<String>("test", &hostile).is_err());
        assert!(decode::<Vec<String>>("test", &hostile).is_err());
    }

    #[test]
    fn what_is_reserved_is_near_what_is_there() {
        for (len, claimed) in [(32, SHORT), (SHORT, 2 * SHORT), (SHORT + 1, MIDDLING), (MIDDLING, 1 << 29)] {
            let mut hostile = (claimed as u64).to_le_bytes().to_vec();
            hostile.resize(len, b'x');
            let refused = decode::<String>("test", &hostile).unwrap_err().to_string();
            assert!(refused.contains("LimitExceeded"), "{refused}");
        }
        for len in [SHORT - 8, SHORT - 7, MIDDLING - 8, MIDDLING - 7] {
            let text = "x".repeat(len);
            assert_eq!(decode::<String>("test", &encode("test", &text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let text = "x".repeat(92);
        assert_eq!(encode_within(100, "test", &text).unwrap().len(), 100);
        let refused = encode_within(99, "test", &text).unwrap_err().to_string();
        assert!(refused.contains("it is longer than 99 bytes"), "{refused}");
    }

    #[test]
    fn a_choice_that_is_not_known_is_a_newer_one() {
        use crate::model::op::Op;
        let unknown = 9999u32.to_le_bytes();
        assert!(matches!(decode::<Op>("test", &unknown), Err(FormatError::Newer { .. })));
        assert!(decode::<Op>("test", &0u32.to_le_bytes()).is_ok());
    }

    #[test]
    fn only_the_canonical_form_is_accepted() {
        let unsorted = encode("test", &vec![(2u8, 0u8), (1, 0)]).unwrap();
        assert!(decode::<BTreeMap<u8, u8>>("test", &unsorted).is_err());
        assert!(decode::<bool>("test", &[2]).is_err());
    }
}
