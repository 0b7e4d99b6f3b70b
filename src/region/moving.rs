//! Frames on their way out of packs that are being emptied.

use super::Region;
use super::collect::{Mark, Usage};
use super::error::RegionError;
use super::fetch::{FetchedFrame, Located};
use super::session::Session;
use crate::chunk::CHUNKS_AT_ONCE;
use crate::chunk::frame::Frame;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use crate::pack::index::Location;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};

/// Frames that are moved together.
const MOVED_AT_ONCE: usize = 64;

/// A stored chunk: its frame, which was proved, and its content.
pub struct StoredChunk {
    /// Its id.
    pub id: ChunkId,
    /// Its frame.
    pub frame: Frame,
    /// Its content.
    pub raw: Vec<u8>,
}

impl Region {
    /// Where the frames of `packs` are that a mark keeps, by pack, in the order in which they lie there.
    pub fn kept_frames<E: From<RegionError>>(
        &self,
        mark: &Mark,
        packs: &HashSet<PackName>,
        watch: impl FnMut() -> Result<(), E>,
    ) -> Result<BTreeMap<PackName, Vec<Located>>, E> {
        let mut frames: BTreeMap<PackName, Vec<Located>> = BTreeMap::new();
        mark.each_kept(watch, |kept, _| {
            if let Some((entry, pack)) = kept.filter(|(_, pack)| packs.contains(pack)) {
                frames.entry(pack).or_default().push((entry.id, Location::new(&entry, pack)));
            }
        })?;
        frames.values_mut().for_each(|frames| frames.sort_unstable_by_key(|(_, place)| place.offset));
        Ok(frames)
    }

    /// Puts frames into a session's packs, each proved to be its chunk: the plain ones, or the deltas, whose
    /// bases must be there. Gives how many.
    pub fn move_frames(
        &self,
        session: &mut Session,
        frames: &[Located],
        is_plain: bool,
        pool: &rayon::ThreadPool,
    ) -> Result<Usage, RegionError> {
        let is_wanted = |(_, place): &&Located| place.codec.is_plain() == is_plain;
        let wanted: Vec<Located> = frames.iter().filter(is_wanted).copied().collect();
        let bytes = wanted.iter().map(|(_, location)| location.frame_bytes()).sum();
        let usage = Usage { frames: wanted.len() as u64, bytes };
        for wanted in wanted.chunks(MOVED_AT_ONCE) {
            // The content is let go at once.
            for (id, mut frame) in self.proved(wanted, pool, |chunk| (chunk.id, chunk.frame))? {
                // One whose base is in a damaged pack only, goes on without it.
                if let Some(base) = frame.base()
                    && session.base_pack(base)?.is_none()
                {
                    frame = self.intact_frame(id).ok_or(RegionError::BaseGone { base })?;
                }
                session.put(id, &frame)?;
            }
        }
        Ok(usage)
    }

    /// Chunks with their frames, each proved to be its chunk, in the order in which they lie in packs.
    pub fn stored_chunks(
        &self,
        frames: &[Located],
        pool: &rayon::ThreadPool,
    ) -> Result<Vec<StoredChunk>, RegionError> {
        self.proved(frames, pool, |chunk| chunk)
    }

    pub(super) fn proved<T: Send>(
        &self,
        frames: &[Located],
        pool: &rayon::ThreadPool,
        take: impl Fn(StoredChunk) -> T + Sync,
    ) -> Result<Vec<T>, RegionError> {
        let fetched = self.fetch_at(frames.to_vec())?;
        let proved = |&frame: &FetchedFrame| {
            let mut raw = vec![0; fetched.raw_bytes(frame)];
            fetched.decode_here(self, frame, &mut raw)?;
            let (id, frame) = fetched.stored(frame)?;
            Ok(take(StoredChunk { id, frame, raw }))
        };
        pool.install(|| fetched.frames().par_iter().with_max_len(CHUNKS_AT_ONCE).map(proved).collect())
    }
}
