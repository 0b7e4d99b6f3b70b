//! What a check has found.

use crate::region::error::RegionError;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// Images and snapshots of the caller's whose content it touches.
    pub affected: Vec<String>,
    /// Number of other accounts' snapshots, and of deleted ones under volumes, that it touches.
    pub affected_of_others: u64,
}

/// What was looked at and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Snapshots whose manifests were checked.
    pub snapshots: u64,
    /// Packs whose frames were checked.
    pub packs: u64,
    /// Frames checked.
    pub chunks: u64,
    /// Bytes of those packs.
    pub pack_bytes: u64,
}

impl Report {
    /// The report on a region that could not even be opened.
    pub fn unopenable(error: &RegionError) -> Self {
        let finding = Finding {
            object: "region".into(),
            problem: error.to_string(),
            affected: Vec::new(),
            affected_of_others: 0,
        };
        Self { findings: vec![finding], ..Self::default() }
    }
}
