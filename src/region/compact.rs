//! Segments for packs that have none, once there are many of them; and in place of segments that are damaged.

use super::Region;
use super::error::RegionError;
use crate::io::storage::Created;
use crate::model::account::AccountId;
use crate::model::catalog::Catalog;
use crate::model::objects::SegmentName;
use crate::model::op::Op;
use crate::pack::index::Index;
use crate::pack::merge::{self, is_worn};
use std::collections::HashSet;

/// Entries that are looked up in trailers before a segment is written for them.
const LOOSE_ENTRIES_MAX: usize = 64 << 10;
/// Packs whose trailers are read at each opening before a segment is written for them.
const LOOSE_PACKS_MAX: usize = 64;

/// Registered segments that could not be opened: the packs that they list count as loose.
fn unusable(index: &Index, catalog: &Catalog) -> Vec<SegmentName> {
    let open: HashSet<_> = index.segments().iter().map(|segment| segment.record().name).collect();
    catalog.segments.keys().filter(|name| !open.contains(name)).copied().collect()
}

impl Region {
    /// Writes a segment if there is reason to, and removes those that it replaces.
    pub(crate) fn compact_index(&self, account: AccountId) -> Result<(), RegionError> {
        let (index, catalog) = (self.index()?, self.catalog()?);
        let (packs, entries) = index.unlisted();
        let is_due = entries > LOOSE_ENTRIES_MAX
            || packs > LOOSE_PACKS_MAX
            || (packs > 0 && !unusable(&index, &catalog).is_empty())
            || index.segments().iter().any(|segment| is_worn(&index, segment));
        if !is_due {
            return Ok(());
        }
        if packs == 0 && merge::choose(&index).is_empty() {
            return Ok(());
        }
        let name = SegmentName { session: self.0.session, number: self.next_number() };
        let merged = self.with_index(|index| {
            let mut merged = merge::merge(index, &merge::choose(index), self.0.header.id, name)?;
            merged.record.replaces.extend(unusable(index, &catalog));
            Ok(merged)
        })?;
        if self.0.storage.create(&name.to_string(), &[&merged.bytes])? == Created::Existed {
            return Err(RegionError::NameReused(name.to_string()));
        }
        let replaces = merged.record.replaces.clone();
        let registered = self.commit::<bool, RegionError>(account, |catalog| {
            // Another process may have merged some of them meanwhile; then this segment is not needed.
            let all_there = replaces.iter().all(|old| catalog.segments.contains_key(old));
            let ops = if all_there { vec![Op::RegisterSegment(merged.record.clone())] } else { vec![] };
            Ok((ops, all_there))
        })?;
        // Whoever still reads a replaced segment finds it gone, replays the log, and uses the new one. One that
        // cannot be deleted costs space and nothing else.
        let unused = if registered { replaces } else { vec![name] };
        for segment in unused {
            let _ = self.0.storage.delete(&segment.to_string());
        }
        Ok(())
    }
}
