//! The manifest of a bundle: its bytes, and what they must say. docs/FORMAT.md, "Bundles".
//!
//! A manifest has one spelling only. Whoever reads one believes nothing before all of it was checked: its own
//! hash, every number against the geometry, the name against what a file name may be.

use crate::model::ids::ObjectHash;
use crate::model::units::VOLUME_BYTES_MAX;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

const FORMAT: &str = "imgstore bundle";
const VERSION: u64 = 1;
/// Raw bytes that a part of a bundle made by this version stands for.
pub const PART_BYTES: u64 = 16 << 20;
/// Least raw bytes of a part, and what they are a multiple of.
pub const PART_BYTES_MIN: u64 = 4096;
/// Most raw bytes of a part.
pub const PART_BYTES_MAX: u64 = 64 << 20;
/// Most parts that are not zeros: 6 TiB of data in parts of 16 MiB.
pub const PARTS_MAX: usize = 393_216;
/// Longest manifest, in bytes. So many parts and the longest attributes fit into it.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Most attributes.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest key of an attribute, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// Longest value of an attribute, in bytes.
pub const VALUE_BYTES_MAX: usize = 4096;
/// Longest name of a bundle.
pub const NAME_BYTES_MAX: usize = 128;

/// What a bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its name, with which the names of all of its files begin.
    pub name: String,
    /// Length of the volume in bytes.
    pub volume_bytes: u64,
    /// Raw bytes that each part stands for; the volume's last may stand for less.
    pub part_bytes: u64,
    /// What the bundle's maker wants to be known of it. Nothing here depends on it.
    pub attributes: BTreeMap<String, String>,
    /// The parts that are not zeros, ascending.
    pub parts: Vec<Part>,
}

/// A part of a volume, as the manifest knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its place in the volume, in units of `part_bytes`, from 0.
    pub number: u64,
    /// Bytes of the volume that it stands for.
    pub raw_bytes: u64,
    /// Length of its file in bytes.
    pub stored_bytes: u64,
    /// Plain BLAKE3 of its file's bytes.
    pub blake3: ObjectHash,
}

/// Why bytes are no manifest, or a manifest cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A later version of the format.
    #[error("it was made by a newer imgstore (version {version} of the format)")]
    Newer {
        /// What it says.
        version: u64,
    },
    /// Not JSON, or not with these fields.
    #[error("it is no manifest of a bundle: {why}")]
    Malformed {
        /// What the JSON parser says.
        why: String,
    },
    /// It was changed, or is spelled otherwise than manifests are.
    #[error("{what}: it is damaged or was changed")]
    Changed {
        /// What does not fit.
        what: &'static str,
    },
    /// It says what cannot be.
    #[error("{field} is {found}; it must be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value, or how long it is.
        found: String,
        /// What it may be.
        expected: String,
    },
}

/// The manifest as it stands in its file, in this order. `blake3` must be the last.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    format: Cow<'a, str>,
    version: u64,
    name: Cow<'a, str>,
    volume_bytes: u64,
    part_bytes: u64,
    #[serde(deserialize_with = "attributes")]
    attributes: Cow<'a, BTreeMap<String, String>>,
    parts: Cow<'a, [Part]>,
    blake3: Cow<'a, str>,
}

/// What every version has, whatever else it may have.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

/// Decodes a manifest: exactly what [`encode`] makes is accepted. It is checked wholly, but for the parts' files.
pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        let expected = format!("at most {MANIFEST_BYTES_MAX}");
        return Err(field("the length of the manifest", bytes.len(), expected));
    }
    let document: Document<'_> = match serde_json::from_slice(bytes) {
        Ok(document) => document,
        Err(e) => return Err(newer(bytes).unwrap_or_else(|| malformed(&e))),
    };
    if document.format != FORMAT {
        return Err(field("format", shorten(&document.format), format!("{FORMAT:?}")));
    }
    if document.version != VERSION {
        return Err(ManifestError::Newer { version: document.version });
    }
    let Document { name, volume_bytes, part_bytes, attributes, parts, blake3, .. } = document;
    let manifest = Manifest {
        name: name.into_owned(),
        volume_bytes,
        part_bytes,
        attributes: attributes.into_owned(),
        parts: parts.into_owned(),
    };
    let blank = blank(&manifest)?;
    if seal_of(&blank) != *blake3 {
        return Err(ManifestError::Changed { what: "its blake3 is not that of its content" });
    }
    if sealed(blank) != bytes {
        return Err(ManifestError::Changed { what: "it is not spelled as a manifest is" });
    }
    manifest.check()?;
    Ok(manifest)
}

/// The bytes of a manifest's file; a manifest that [`parse`] would refuse is refused here, too.
pub fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    manifest.check()?;
    Ok(sealed(blank(manifest)?))
}

/// Whether a bundle can have this name: 1 to 128 of ASCII letters, digits, `.`, `_`, `-`, not beginning with
/// `.`. So it is a file name, and no path.
pub fn is_bundle_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(good)
}

/// Most bytes that a part of so many raw bytes may be stored as. zstd needs less, whatever the content.
pub const fn stored_bytes_max(raw_bytes: u64) -> u64 {
    raw_bytes + raw_bytes / 64 + 1024
}

impl Manifest {
    /// Name of the manifest's file.
    pub fn file_name(&self) -> String {
        format!("{}.manifest.json", self.name)
    }

    /// Name of a part's file.
    pub fn part_name(&self, number: u64) -> String {
        format!("{}.part.{number:05}", self.name)
    }

    /// Whether a file name is that of the manifest or of a part, whatever its number.
    pub fn is_name_of_file(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.name);
        let number = rest.and_then(|rest| rest.strip_prefix(".part."));
        rest == Some(".manifest.json")
            || number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
    }

    /// Bytes of the volume that part `number` stands for; 0 if the volume ends before it.
    pub fn raw_bytes(&self, number: u64) -> u64 {
        let start = number.saturating_mul(self.part_bytes);
        self.volume_bytes.saturating_sub(start).min(self.part_bytes)
    }

    /// Whether every field is what it may be, and the parts are where the volume has some.
    pub fn check(&self) -> Result<(), ManifestError> {
        if !is_bundle_name(&self.name) {
            let expected = "1 to 128 letters, digits, `.`, `_`, `-`, and not begin with `.`";
            return Err(field("name", shorten(&self.name), expected.into()));
        }
        if !(1..=VOLUME_BYTES_MAX).contains(&self.volume_bytes) {
            return Err(field("volume_bytes", self.volume_bytes, format!("1 to {VOLUME_BYTES_MAX}")));
        }
        let whole = self.part_bytes.is_multiple_of(PART_BYTES_MIN);
        if !whole || !(PART_BYTES_MIN..=PART_BYTES_MAX).contains(&self.part_bytes) {
            let expected = format!("{PART_BYTES_MIN} to {PART_BYTES_MAX} and a multiple of {PART_BYTES_MIN}");
            return Err(field("part_bytes", self.part_bytes, expected));
        }
        self.check_attributes()?;
        self.check_parts()
    }

    fn check_attributes(&self) -> Result<(), ManifestError> {
        if self.attributes.len() > ATTRIBUTES_MAX {
            let expected = format!("at most {ATTRIBUTES_MAX}");
            return Err(field("the number of attributes", self.attributes.len(), expected));
        }
        for (key, value) in &self.attributes {
            if key.len() > KEY_BYTES_MAX {
                let expected = format!("at most {KEY_BYTES_MAX} bytes");
                return Err(field("the length of an attribute's key", key.len(), expected));
            }
            if value.len() > VALUE_BYTES_MAX {
                let expected = format!("at most {VALUE_BYTES_MAX} bytes");
                return Err(field("the length of an attribute's value", value.len(), expected));
            }
        }
        Ok(())
    }

    fn check_parts(&self) -> Result<(), ManifestError> {
        if self.parts.len() > PARTS_MAX {
            let expected = format!("at most {PARTS_MAX}");
            return Err(field("the number of parts with data", self.parts.len(), expected));
        }
        let all = self.volume_bytes.div_ceil(self.part_bytes);
        let mut next = 0;
        for part in &self.parts {
            if !(next..all).contains(&part.number) {
                let expected = format!("{next} or more, and less than {all}");
                return Err(field("the number of a part", part.number, expected));
            }
            next = part.number + 1;
            let raw = self.raw_bytes(part.number);
            if part.raw_bytes != raw {
                return Err(field("raw_bytes of a part", part.raw_bytes, raw.to_string()));
            }
            let max = stored_bytes_max(raw);
            if !(1..=max).contains(&part.stored_bytes) {
                return Err(field("stored_bytes of a part", part.stored_bytes, format!("1 to {max}")));
            }
        }
        Ok(())
    }
}

/// The document with an empty hash, over which the hash is made.
fn blank(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let document = Document {
        format: FORMAT.into(),
        version: VERSION,
        name: Cow::Borrowed(&manifest.name),
        volume_bytes: manifest.volume_bytes,
        part_bytes: manifest.part_bytes,
        attributes: Cow::Borrowed(&manifest.attributes),
        parts: Cow::Borrowed(&manifest.parts),
        blake3: "".into(),
    };
    serde_json::to_vec(&document).map_err(|e| malformed(&e))
}

fn seal_of(blank: &[u8]) -> String {
    ObjectHash(*blake3::hash(blank).as_bytes()).to_string()
}

/// Puts the hash where the document ends with an empty one.
fn sealed(mut blank: Vec<u8>) -> Vec<u8> {
    const END: &[u8] = b"\"}";
    let seal = seal_of(&blank);
    blank.truncate(blank.len().saturating_sub(END.len()));
    blank.extend_from_slice(seal.as_bytes());
    blank.extend_from_slice(END);
    blank
}

/// Whether bytes that this version cannot parse say that a later one made them.
fn newer(bytes: &[u8]) -> Option<ManifestError> {
    let head: Head = serde_json::from_slice(bytes).ok()?;
    let is_other = head.format == FORMAT && head.version != VERSION;
    is_other.then_some(ManifestError::Newer { version: head.version })
}

/// Attributes, but never more than there may be, and none twice: the last would win unseen.
fn attributes<'de, D>(deserializer: D) -> Result<Cow<'static, BTreeMap<String, String>>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Attributes;

    impl<'de> Visitor<'de> for Attributes {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {ATTRIBUTES_MAX} attributes, each a string")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut attributes = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if attributes.len() >= ATTRIBUTES_MAX {
                    return Err(A::Error::custom("it has too many attributes"));
                }
                if attributes.insert(key, value).is_some() {
                    return Err(A::Error::custom("it has an attribute twice"));
                }
            }
            Ok(attributes)
        }
    }

    deserializer.deserialize_map(Attributes).map(Cow::Owned)
}

fn field(field: &'static str, found: impl fmt::Display, expected: String) -> ManifestError {
    ManifestError::Field { field, found: found.to_string(), expected }
}

fn malformed(error: &serde_json::Error) -> ManifestError {
    ManifestError::Malformed { why: shorten(&error.to_string()) }
}

/// Text from outside as it may stand in an error: not long, control characters spelled out.
fn shorten(text: &str) -> String {
    let start: String = text.chars().take(160).collect();
    start.escape_debug().to_string()
}
