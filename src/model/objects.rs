//! Names and records of the immutable objects that the log registers.

use super::ids::{ObjectHash, SessionId};
use super::units::TimeMs;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! object_name {
    ($(#[$doc:meta])* $name:ident, $folder:literal) => {
        $(#[$doc])*
        ///
        /// The session that wrote it and a number that this session uses once.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name {
            /// The writer.
            pub session: SessionId,
            /// The writer's count.
            pub number: u64,
        }

        impl $name {
            /// The folder of a region that holds objects of this kind.
            pub const FOLDER: &'static str = $folder;

            /// The name parsed back from the path that `Display` gives; `None` for anything else.
            pub fn parse(path: &str) -> Option<Self> {
                let rest = path.strip_prefix(concat!($folder, "/"))?;
                let (session, number) = rest.split_once('/')?;
                let name = Self { session: session.parse().ok()?, number: number.parse().ok()? };
                (name.to_string() == path).then_some(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($folder, "/{}/{:06}"), self.session, self.number)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

object_name!(
    /// The name of a pack.
    PackName, "packs"
);
object_name!(
    /// The name of an index segment.
    SegmentName, "index"
);
object_name!(
    /// The name of a manifest.
    ManifestName, "manifests"
);
object_name!(
    /// The name of a list that was too long for its log record.
    ListName, "lists"
);
object_name!(
    /// The name of a feature table.
    FeatureTableName, "features"
);

/// Whether a pack may be used. Its life only moves forward, except that a commit rescues a condemned pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackState {
    /// Holds content that something may refer to.
    Live,
    /// Nothing referred to it when a collection looked; a commit that uses it makes it live again.
    Condemned {
        /// When it was condemned.
        since_ms: TimeMs,
    },
    /// Its bytes are being removed; no commit may use it.
    Sweeping,
    /// Some of its frames are damaged; no commit may use it.
    Quarantined {
        /// When that was found.
        since_ms: TimeMs,
    },
}

impl PackState {
    /// What it is called.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Condemned { .. } => "condemned",
            Self::Sweeping => "being removed",
            Self::Quarantined { .. } => "damaged",
        }
    }
}

/// What the log says of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    /// Its name.
    pub name: PackName,
    /// Bytes of the whole object.
    pub len: u64,
    /// Frames in it.
    pub frames: u32,
    /// Raw bytes of the chunks in it.
    pub raw_bytes: u64,
    /// Hash of its trailer, which covers the place, length and identity of every frame.
    pub trailer_hash: ObjectHash,
    /// Packs that hold bases of its delta frames: kept as long as this pack is.
    pub bases: Vec<PackName>,
}

/// What the log says of an index segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Its name.
    pub name: SegmentName,
    /// Bytes of the whole object.
    pub len: u64,
    /// Entries in it.
    pub entries: u64,
    /// Hash of the whole object.
    pub hash: ObjectHash,
    /// Segments whose entries it holds and which it takes the place of.
    pub replaces: Vec<SegmentName>,
    /// Packs of which it lists some chunks only, ascending: the others are in a second pack that it lists. Their
    /// trailers are read besides, so that every place of a chunk is known.
    pub partial: Vec<PackName>,
}

/// What the log says of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// Its name.
    pub name: ManifestName,
    /// Bytes of the whole object.
    pub len: u64,
    /// Hash of the whole object.
    pub hash: ObjectHash,
    /// Chunk references in it.
    pub chunks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_and_parse_back() {
        let name = PackName { session: SessionId([7; 16]), number: 12 };
        assert_eq!(name.to_string(), format!("packs/{}/000012", "07".repeat(16)));
        assert_eq!(PackName::parse(&name.to_string()), Some(name));
        let large = PackName { number: u64::MAX, ..name };
        assert_eq!(PackName::parse(&large.to_string()), Some(large));
        for bad in ["packs/x/000001", "packs/../000001", "index/07/000001", "packs//", "packs"] {
            assert_eq!(PackName::parse(bad), None, "{bad:?}");
        }
        assert_eq!(PackName::parse(&format!("packs/{}/12", "07".repeat(16))), None, "one spelling only");
    }
}
