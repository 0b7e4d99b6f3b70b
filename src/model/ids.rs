//! Identifiers. Each kind is a type of its own, so that they cannot be mixed.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// An identifier from outside that does not have the form of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedId {
    /// What was given.
    pub given: String,
    /// The form that was expected, for example `ami-...`.
    pub expecting: &'static str,
}

impl fmt::Display for MalformedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // EC2's sentence, to the letter.
        write!(f, "Invalid id: \"{}\" (expecting \"{}\")", self.given, self.expecting)
    }
}

impl std::error::Error for MalformedId {}

/// Hex digits after the dash of an EC2 id.
const EC2_ID_DIGITS: usize = 17;

macro_rules! ec2_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        ///
        /// 17 lower-case hex digits after the prefix; assigned, unique in its region, never a hash.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// The prefix with its dash.
            pub const PREFIX: &'static str = $prefix;
            /// Its form, as EC2's errors have it.
            pub const EXPECTING: &'static str = concat!($prefix, "...");

            /// An id of 64 random bits: EC2's own ids, too, have a zero as first digit.
            pub const fn from_random(random: u64) -> Self {
                Self(random as u128)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:017x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;
            fn from_str(text: &str) -> Result<Self, MalformedId> {
                let malformed = || MalformedId {
                    given: text.chars().take(64).collect(),
                    expecting: Self::EXPECTING,
                };
                let digits = text.strip_prefix($prefix).ok_or_else(malformed)?;
                let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if digits.len() != EC2_ID_DIGITS || !digits.bytes().all(lower_hex) {
                    return Err(malformed());
                }
                u128::from_str_radix(digits, 16).map(Self).map_err(|_| malformed())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_u128(self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    return String::deserialize(d)?.parse().map_err(de::Error::custom);
                }
                let value = u128::deserialize(d)?;
                if value >> (4 * EC2_ID_DIGITS) != 0 {
                    return Err(de::Error::custom("an id has 17 hex digits"));
                }
                Ok(Self(value))
            }
        }
    };
}

ec2_id!(
    /// An image: `ami-…`.
    ImageId, "ami-"
);
ec2_id!(
    /// A snapshot: `snap-…`.
    SnapshotId, "snap-"
);
ec2_id!(
    /// A volume: `vol-…`.
    VolumeId, "vol-"
);
ec2_id!(
    /// An instance: `i-…`.
    InstanceId, "i-"
);
ec2_id!(
    /// A launch of one or many instances: `r-…`.
    ReservationId, "r-"
);
ec2_id!(
    /// A template of instance-store-backed images: `tmpl-…`. EC2 has no id for it.
    TemplateId, "tmpl-"
);
ec2_id!(
    /// A retention rule of the recycle bin: `rule-…`.
    RuleId, "rule-"
);

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;
            fn from_str(text: &str) -> Result<Self, MalformedId> {
                parse_hex(text).map(Self).ok_or_else(|| MalformedId {
                    given: text.chars().take(80).collect(),
                    expecting: $form,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    return String::deserialize(d)?.parse().map_err(de::Error::custom);
                }
                <[u8; $len]>::deserialize(d).map(Self)
            }
        }
    };
}

byte_id!(
    /// The identity of content: BLAKE3 of the chunk's raw bytes. Codec and place never enter it.
    ChunkId, 32, "64 hex digits"
);
impl ChunkId {
    /// Its first eight bytes, as a number in the order of ids. Two chunks share them once in a very long time.
    pub fn leading(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

byte_id!(
    /// The domain-separated BLAKE3 of a whole object of the store, as it stands in the log.
    ObjectHash, 32, "64 hex digits"
);
byte_id!(
    /// The identity of a region, drawn at its creation; names of regions are local to a home.
    RegionId, 16, "32 hex digits"
);
byte_id!(
    /// One writer of a region. Every pack, segment and manifest carries its writer's session in its name.
    SessionId, 16, "32 hex digits"
);

/// Exactly `2 N` lower-case hex digits as bytes.
fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ec2_ids_are_seventeen_lower_case_hex_digits() {
        let text = "ami-0123456789abcdef0";
        assert_eq!(text.parse::<ImageId>().unwrap().to_string(), text);
        assert!("ami-f123456789abcdef0".parse::<ImageId>().is_ok(), "any first digit is well-formed");
        for bad in [
            "",
            "ami-",
            "ami-0123456789ABCDEF0",
            "snap-0123456789abcdef0",
            "ami-0123456789abcdef",
            "ami-0123456789abcdef01",
            "ami-+123456789abcdef0",
            " ami-0123456789abcdef0",
        ] {
            assert!(bad.parse::<ImageId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn malformed_ids_read_as_in_ec2() {
        let error = "x".parse::<ImageId>().unwrap_err();
        assert_eq!(error.to_string(), "Invalid id: \"x\" (expecting \"ami-...\")");
    }

    #[test]
    fn byte_ids_round_trip_as_text() {
        let id = SessionId([0xa5; 16]);
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        assert!("a5".parse::<SessionId>().is_err());
        assert!("A5".repeat(16).parse::<SessionId>().is_err());
    }
}
