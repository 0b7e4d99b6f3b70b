//! Chunks from any place that has them intact: where one is damaged, out of reach or gone, another may have it.

use super::Region;
use super::bases::Content;
use super::error::RegionError;
use crate::chunk::frame::{Frame, FrameError};
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use crate::pack::error::{FrameFault, PackError};
use crate::pack::index::Location;

/// How often all places of a chunk are tried before it counts as lost.
const ROUNDS: usize = 3;

impl Region {
    /// A plain frame of a chunk, from any place that has it intact, best first; none if there is none. Of a delta the
    /// content is encoded anew.
    pub fn intact_frame(&self, id: ChunkId) -> Option<Frame> {
        let intact = |place: &Location| {
            let fetched = self.fetch_at(vec![(id, *place)]).ok()?;
            let frame = *fetched.frames().first()?;
            let mut raw = vec![0; fetched.raw_bytes(frame)];
            fetched.decode_here(self, frame, &mut raw).ok()?;
            if place.codec.is_plain() {
                return Some(fetched.stored(frame).ok()?.1);
            }
            self.encode(&raw, id, i32::from(self.header().zstd_level)).ok()
        };
        self.first_intact(id, false, intact)
    }

    /// The content of a chunk from any place that has it intact.
    pub(super) fn intact_content(&self, id: ChunkId) -> Option<Content> {
        self.intact_content_in(id).map(|(_, content)| content)
    }

    /// The same, with the pack that has it.
    pub(super) fn intact_content_in(&self, id: ChunkId) -> Option<(PackName, Content)> {
        self.first_intact(id, false, |place| {
            let fetched = self.fetch_at(vec![(id, *place)]).ok()?;
            let frame = *fetched.frames().first()?;
            let mut raw = self.0.reader.spare().take(fetched.raw_bytes(frame));
            fetched.decode_here(self, frame, &mut raw).ok()?;
            Some((place.pack, raw.into()))
        })
    }

    /// The content of a base from any place that has it intact as a plain frame.
    pub(super) fn intact_base(&self, id: ChunkId) -> Option<Content> {
        self.intact_base_in(id).map(|(_, content)| content)
    }

    /// The same, with the pack that has it.
    pub(super) fn intact_base_in(&self, id: ChunkId) -> Option<(PackName, Content)> {
        self.first_intact(id, true, |place| {
            Some((place.pack, self.read_bases(&[(id, *place)]).ok()?.content_now(self, id)?))
        })
    }

    /// The error of a delta whose base is not at hand: if that is only out of reach, the delta is not damaged.
    pub fn unless_out_of_reach(&self, error: RegionError) -> RegionError {
        let RegionError::Pack(PackError::DamagedFrame { source: FrameFault::Decoded(fault), .. }) = &error
        else {
            return error;
        };
        let FrameError::Base { base, .. } = fault else { return error };
        let mut places = match self.with_index(|index| index.places_of(*base)) {
            Ok(places) => places,
            Err(unknown) => return unknown,
        };
        places.retain(|place| place.codec.is_plain());
        let failed = places.iter().filter_map(|place| self.read_runs(&[(*base, *place)]).err());
        if let Some(out_of_reach) = failed.map(RegionError::from).find(|error| !error.is_loss()) {
            return out_of_reach;
        }
        match self.missing(*base) {
            out_of_reach if places.is_empty() && !out_of_reach.is_damage() => out_of_reach,
            _ => error,
        }
    }

    /// What the first place gives that has a chunk intact.
    fn first_intact<T>(
        &self,
        id: ChunkId,
        only_plain: bool,
        intact: impl Fn(&Location) -> Option<T>,
    ) -> Option<T> {
        // A device that failed once may give the bytes the next time, and what a collection moved is elsewhere then.
        for _ in 0..ROUNDS {
            let Ok(mut places) = self.with_index(|index| index.places_of(id)) else { continue };
            places.retain(|place| !only_plain || place.codec.is_plain());
            let found = places.iter().find_map(&intact);
            if found.is_some() || places.is_empty() {
                return found;
            }
        }
        None
    }
}
