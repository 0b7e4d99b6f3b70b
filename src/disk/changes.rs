//! What changed on a disk, as a dirty bitmap tells it: the extents that `nbdinfo --map=qemu:dirty-bitmap:NAME --json`
//! prints.

use crate::io::config::read_up_to;
use crate::io::disk::DiskError;
use crate::model::changes::Changes;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;

/// Longest list, in bytes: some 800,000 extents.
const BYTES_MAX: u64 = 64 << 20;
/// NBD servers round the length of a disk up to whole sectors.
const SECTOR_BYTES: u64 = 512;
const CURE: &str = "make it with `nbdinfo --map=qemu:dirty-bitmap:NAME --json URI`; what `qemu-img map` prints does not tell dirty from allocated";

/// Reads the extents of a disk of `len` bytes from a file. All of the disk must be spoken of, once and in order.
pub fn read_changes(path: &Path, len: u64) -> Result<Changes, DiskError> {
    let text = match read_up_to(path, BYTES_MAX + 1) {
        Ok(text) => text.ok_or_else(|| DiskError::NotFound { path: path.to_owned() })?,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(refused(path, "it is not text".into()));
        }
        Err(e) => return Err(DiskError::io("read", path, 0, e)),
    };
    if text.len() as u64 > BYTES_MAX {
        return Err(refused(path, format!("it has more than {BYTES_MAX} bytes")));
    }
    parse(&text, len).map_err(|why| refused(path, why))
}

/// Reads the extents of a disk of `len` bytes from text; or says why they are none.
pub fn parse(text: &str, len: u64) -> Result<Changes, String> {
    let mut list = List { changes: Changes::default(), end: 0, wrong: None };
    let parsed = {
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_seq(&mut list).and_then(|()| json.end())
    };
    if let Some(why) = list.wrong {
        return Err(why);
    }
    parsed.map_err(|e| e.to_string().chars().take(160).collect::<String>())?;
    if list.end != len && Some(list.end) != len.checked_next_multiple_of(SECTOR_BYTES) {
        return Err(format!("its extents end at byte {}, the disk at {len}", list.end));
    }
    Ok(list.changes)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extent<'a> {
    offset: u64,
    length: u64,
    #[serde(rename = "type")]
    flags: u64,
    #[serde(borrow)]
    description: Cow<'a, str>,
}

/// The list, extent by extent: only what changed is kept.
struct List {
    changes: Changes,
    /// Where the extents so far end.
    end: u64,
    /// Why it is no such list.
    wrong: Option<String>,
}

impl List {
    fn add(&mut self, extent: &Extent<'_>) -> Result<(), String> {
        let Extent { offset, length, flags, description } = extent;
        if *offset != self.end {
            return Err(format!(
                "an extent begins at byte {offset}, the one before it ended at {}",
                self.end
            ));
        }
        let end = offset.checked_add(*length).filter(|end| end > offset);
        self.end = end.ok_or_else(|| format!("the extent at byte {offset} has {length} bytes"))?;
        match (flags, &**description) {
            (1, "dirty") => self.changes.add_bytes(*offset..self.end),
            (0, "clean") => {}
            _ => {
                let said: String = description.chars().take(40).collect();
                return Err(format!(
                    "the extent at byte {offset} has type {flags}, {said:?}, neither 1, \"dirty\", nor 0, \"clean\""
                ));
            }
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut List {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut extents: A) -> Result<(), A::Error> {
        while let Some(extent) = extents.next_element::<Extent<'de>>()? {
            if let Err(why) = self.add(&extent) {
                self.wrong = Some(why.clone());
                return Err(serde::de::Error::custom(why));
            }
        }
        Ok(())
    }
}

fn refused(path: &Path, why: String) -> DiskError {
    DiskError::Refused { path: path.to_owned(), format: "a list of changed extents", why, cure: CURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nbdinfo_prints_is_read() {
        let text = r#"[
{ "offset": 0, "length": 65536, "type": 0, "description": "clean"},
{ "offset": 65536, "length": 65536, "type": 1, "description": "dirty"},
{ "offset": 131072, "length": 917504, "type": 0, "description": "clean"},
{ "offset": 1048576, "length": 262144, "type": 1, "description": "dirty"},
{ "offset": 1310720, "length": 2883584, "type": 0, "description": "clean"}
]
"#;
        assert_eq!(parse(text, 4 << 20).unwrap().ranges(), [16..32, 256..320]);
        assert_eq!(parse(text, (4 << 20) - 511).unwrap().blocks(), 80, "a length that was rounded up");
        let why = parse(text, (4 << 20) - 512).unwrap_err();
        assert_eq!(why, "its extents end at byte 4194304, the disk at 4193792");
    }

    #[test]
    fn everything_else_is_refused_and_says_why() {
        let extent = |offset: u64, length: u64, flags: u64, description: &str| {
            format!(r#"{{"offset":{offset},"length":{length},"type":{flags},"description":"{description}"}}"#)
        };
        let clean = extent(0, 4096, 0, "clean");
        let long = "x".repeat(1 << 20);
        let cases = [
            (String::new(), "EOF while parsing a value"),
            ("{}".into(), "invalid type: map, expected a list of extents"),
            ("[]".into(), "its extents end at byte 0, the disk at 8192"),
            (format!("[{clean}]"), "its extents end at byte 4096, the disk at 8192"),
            (format!("[{clean},{clean}]"), "an extent begins at byte 0, the one before it ended at 4096"),
            (
                format!("[{}]", extent(4096, 4096, 1, "dirty")),
                "an extent begins at byte 4096, the one before it ended at 0",
            ),
            (format!("[{clean},{}]", extent(4096, 0, 1, "dirty")), "the extent at byte 4096 has 0 bytes"),
            (
                format!("[{clean},{}]", extent(4096, u64::MAX, 1, "dirty")),
                "the extent at byte 4096 has 18446744073709551615 bytes",
            ),
            (
                format!("[{}]", extent(0, 8192, 3, "hole,zero")),
                "the extent at byte 0 has type 3, \"hole,zero\", neither 1, \"dirty\", nor 0, \"clean\"",
            ),
            (
                format!("[{}]", extent(0, 8192, 1, "clean")),
                "the extent at byte 0 has type 1, \"clean\", neither 1, \"dirty\", nor 0, \"clean\"",
            ),
            (
                format!("[{}]", extent(0, 8192, 0, &long)),
                "the extent at byte 0 has type 0, \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\", neither 1, \"dirty\", nor 0, \"clean\"",
            ),
            (
                r#"[{"start": 0, "length": 8192, "depth": 0, "present": true, "zero": false, "data": true}]"#
                    .into(),
                "unknown field `start`, expected one of `offset`, `length`, `type`, `description`",
            ),
            (format!("[{}]x", extent(0, 8192, 0, "clean")), "trailing characters"),
            (r#"[{"offset":-1}]"#.into(), "invalid value: integer `-1`, expected u64"),
        ];
        for (text, why) in cases {
            let said = parse(&text, 8192).unwrap_err();
            assert_eq!(said.split(" at line 1 column").next(), Some(why));
        }
    }
}
