//! Segments for packs that have none, once there are many of them; and in place of segments that are damaged.

use super::Region;
use super::error::RegionError;
use crate::io::storage::Created;
use crate::model::account::AccountId;
use crate::model::objects::{SegmentName, SegmentRecord};
use crate::model::op::Op;
use crate::pack::error::PackError;
use crate::pack::index::Index;
use crate::pack::merge::{self, Choice, Merge};
use std::io;
use std::thread::JoinHandle;

/// Entries that are looked up in trailers before a segment is written for them. Reading so many takes three milliseconds.
const LOOSE_ENTRIES_MAX: usize = 16 << 10;
/// Packs whose trailers are read at each opening before a segment is written for them.
const LOOSE_PACKS_MAX: usize = 64;

/// A merge under way beside a writer.
pub(super) type Compaction = JoinHandle<Result<(), RegionError>>;

impl Region {
    /// Whether there is reason to write a segment.
    fn is_compaction_due(&self) -> Result<bool, RegionError> {
        let index = self.index()?;
        let (packs, entries) = index.unlisted();
        Ok(are_many(packs, entries) || !index.unusable().is_empty() || merge::has_worn(&index))
    }

    /// Writes a segment if there is reason to, and removes those that it replaces. It leaves large ones alone, so it
    /// takes seconds at most.
    pub(crate) fn compact_index(&self, account: AccountId) -> Result<(), RegionError> {
        if !self.is_compaction_due()? {
            return Ok(());
        }
        let choose = |index: &Index| {
            let choice = merge::choose(index);
            // A damaged one goes also if there is nothing left that it would list.
            let is_due =
                index.unlisted().0 > 0 || !choice.segments.is_empty() || !index.unusable().is_empty();
            is_due.then_some(choice)
        };
        self.write_segment::<RegionError>(account, choose, || Ok(()))?;
        Ok(())
    }

    /// As [`Region::compact_index`], on a thread of its own, if there is reason to.
    pub(super) fn compact_beside(&self, account: AccountId) -> Result<Option<Compaction>, RegionError> {
        if !self.is_compaction_due()? {
            return Ok(None);
        }
        let region = self.clone();
        let compact = move || region.compact_index(account);
        let started = std::thread::Builder::new().name("index".into()).spawn(compact);
        // Without a thread it is done by whoever comes next.
        Ok(started.ok())
    }

    /// Merges large segments until each is more than twice as large as all smaller ones together. It reads and writes
    /// all of them, takes no lock and no segment that a writer would merge, and can be ended at any time by `watch`,
    /// which is asked now and then. Memory: a MiB or two, and some 100 bytes for each pack.
    pub fn merge_large_segments<E: From<RegionError>>(
        &self,
        account: AccountId,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        while self.write_segment(account, merge::choose_large, &mut watch)? {}
        Ok(())
    }

    /// Writes a segment of what is chosen, and removes what it replaces. Whether there was anything to do, and nobody
    /// else was faster.
    fn write_segment<E: From<RegionError>>(
        &self,
        account: AccountId,
        choose: impl Fn(&Index) -> Option<Choice>,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let name = SegmentName { session: self.0.session, number: self.next_number() };
        let (record, damaged) = loop {
            let index = self.index()?;
            let Some(choice) = choose(&index) else { return Ok(false) };
            match self.make_segment(&index, &choice, name, &mut watch) {
                Ok(record) if choice.with_loose => break (record, index.unusable().to_vec()),
                Ok(record) => break (record, vec![]),
                Err(Failed::Pack(PackError::Damaged { name, .. })) if self.leave_out_segment(&name) => {}
                Err(Failed::Pack(error)) => return Err(RegionError::from(error).into()),
                Err(Failed::Region(error)) => return Err(error.into()),
                Err(Failed::Watch(error)) => return Err(error),
            }
        };
        let record = SegmentRecord { replaces: [record.replaces, damaged].concat(), ..record };
        let registered = self.commit::<bool, RegionError>(account, |catalog| {
            // Another process may have merged some of them meanwhile; then this segment is not needed.
            let all_there = record.replaces.iter().all(|old| catalog.segments.contains_key(old));
            let ops = if all_there { vec![Op::RegisterSegment(record.clone())] } else { vec![] };
            Ok((ops, all_there))
        })?;
        // Whoever still reads a replaced segment finds it gone, replays the log, and uses the new one. One that
        // cannot be deleted costs space and nothing else.
        let unused = if registered { record.replaces } else { vec![name] };
        for segment in unused {
            let _ = self.0.storage.delete(&segment.to_string());
        }
        Ok(registered)
    }

    /// Makes the object of a segment.
    fn make_segment<E>(
        &self,
        index: &Index,
        choice: &Choice,
        name: SegmentName,
        watch: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<SegmentRecord, Failed<E>> {
        let merge = Merge::plan(index, choice, self.0.header.id, || watch().map_err(Failed::Watch))?;
        let (mut pieces, mut failure) = (merge.pieces()?, None);
        let created = self.0.storage.create_from(&name.to_string(), &mut |write| {
            let mut next = || {
                watch().map_err(Failed::Watch)?;
                Ok(pieces.next_piece()?)
            };
            loop {
                match next() {
                    Ok(Some(piece)) => write(&piece)?,
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        failure = Some(error);
                        return Err(io::Error::other("it was given up"));
                    }
                }
            }
        });
        match (created, failure) {
            (_, Some(error)) => Err(error),
            (Err(error), None) => Err(Failed::Region(error.into())),
            (Ok(Created::Existed), None) => Err(Failed::Region(RegionError::NameReused(name.to_string()))),
            (Ok(Created::New), None) => Ok(merge.record(name, &pieces)),
        }
    }
}

/// Whether so many packs that no segment lists, with so many entries, are to get one.
const fn are_many(packs: usize, entries: usize) -> bool {
    entries > LOOSE_ENTRIES_MAX || packs > LOOSE_PACKS_MAX
}

/// Why a segment was not made.
enum Failed<E> {
    Pack(PackError),
    Region(RegionError),
    Watch(E),
}

impl<E> From<PackError> for Failed<E> {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_get_a_segment_when_they_or_their_entries_are_many() {
        assert!(!are_many(0, 0) && !are_many(64, 16_384));
        assert!(are_many(65, 65) && are_many(1000, 1000), "so many trailers are read at each opening");
        assert!(are_many(1, 16_385) && are_many(1, 1_000_000), "so many entries are in memory");
    }
}
