//! What the home remembers of checks: when each pack of a region was found good last, and whether a check was
//! interrupted. A cache of the user's own: without it everything is checked from the start.

use imgstore::disk::open::make_dirs;
use imgstore::io::config;
use imgstore::model::objects::PackName;
use imgstore::model::units::TimeMs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Bytes of what is remembered: some millions of packs.
const BYTES_MAX: u64 = 1 << 30;

/// What is remembered of a region's checks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checks {
    /// When the content of packs was found good last, by their names.
    content: BTreeMap<String, TimeMs>,
    /// When their stored checksums were.
    checksums: BTreeMap<String, TimeMs>,
    /// When the check began that did not come to its end, of content or of checksums.
    content_since: Option<TimeMs>,
    checksums_since: Option<TimeMs>,
}

impl Checks {
    /// Reads what is remembered; nothing if it cannot be read.
    pub fn load(path: &Path) -> Self {
        let text = config::read_up_to(path, BYTES_MAX).ok().flatten();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Remembers. That it fails costs only time.
    pub fn save(&self, path: &Path) {
        let text = serde_json::to_string(self).unwrap_or_default();
        if path.parent().is_some_and(|folder| make_dirs(folder).is_ok()) {
            let _ = config::replace(path, &text);
        }
    }

    /// Begins a check, or goes on with one. Gives the packs that need not be read again.
    pub fn begin(&mut self, content: bool, resume: bool, now_ms: TimeMs) -> BTreeSet<PackName> {
        let (since, times) = match content {
            true => (&mut self.content_since, &self.content),
            false => (&mut self.checksums_since, &self.checksums),
        };
        match since {
            Some(since) if resume => {
                let is_done = |(_, at): &(&String, &TimeMs)| **at >= *since;
                times.iter().filter(is_done).filter_map(|(name, _)| PackName::parse(name)).collect()
            }
            _ => {
                *since = Some(now_ms);
                BTreeSet::new()
            }
        }
    }

    /// When packs were found good last.
    pub fn times(&self, content: bool) -> BTreeMap<PackName, TimeMs> {
        let times = if content { &self.content } else { &self.checksums };
        times.iter().filter_map(|(name, at)| Some((PackName::parse(name)?, *at))).collect()
    }

    /// Notes that a pack was found good. Content that is good has good checksums.
    pub fn note(&mut self, pack: &PackName, content: bool, now_ms: TimeMs) {
        if content {
            self.content.insert(pack.to_string(), now_ms);
        }
        self.checksums.insert(pack.to_string(), now_ms);
    }

    /// Ends a check: it came to its end. Packs that are gone are forgotten.
    pub fn end(&mut self, content: bool, there: &BTreeSet<PackName>) {
        *(if content { &mut self.content_since } else { &mut self.checksums_since }) = None;
        let is_there = |name: &String| PackName::parse(name).is_some_and(|name| there.contains(&name));
        self.content.retain(|name, _| is_there(name));
        self.checksums.retain(|name, _| is_there(name));
    }

    /// The time of the pack that was checked longest ago, and how many never were.
    pub fn oldest(&self, content: bool, there: &BTreeSet<PackName>) -> (Option<TimeMs>, usize) {
        let times = self.times(content);
        let known: Vec<TimeMs> = there.iter().filter_map(|name| times.get(name)).copied().collect();
        (known.iter().min().copied(), there.len() - known.len())
    }
}
