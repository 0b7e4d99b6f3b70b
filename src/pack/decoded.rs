//! Frames that were decoded and proved lately. Deltas that lie near each other share bases: half of what is decoded as a base
//! was decoded as one shortly before.

use super::index::Location;
use super::spare::Bytes;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of memory that are kept. Four times as much finds a tenth more.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Which chunk is where: packs are never changed, and their names never used again; but of two chunks an index that is not
/// true may say that both are in one place.
type Place = (ChunkId, PackName, u32);

/// The content of a frame.
#[derive(Debug, Clone)]
pub struct Content(Arc<Bytes>);

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self(Arc::new(bytes))
    }
}

/// Contents by where their frames are, those that were asked for last.
#[derive(Debug, Default)]
pub struct Decoded(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Place, Kept>,
    /// By when each was asked for last.
    order: BTreeMap<u64, Place>,
    asked: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    content: Content,
    asked: u64,
}

const fn place((id, location): &(ChunkId, Location)) -> Place {
    (*id, location.pack, location.offset)
}

impl Decoded {
    /// The content of a chunk's frame, if it was kept.
    pub fn get(&self, located: &(ChunkId, Location)) -> Option<Content> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { kept, order, asked, .. } = &mut *state;
        let found = kept.get_mut(&place(located))?;
        *asked += 1;
        order.remove(&found.asked);
        order.insert(*asked, place(located));
        found.asked = *asked;
        Some(found.content.clone())
    }

    /// Keeps the content of a chunk's frame, which was read there and proved by its hash; what was not asked for longest goes.
    pub fn keep(&self, located: &(ChunkId, Location), content: &Content) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { kept, order, asked, bytes } = &mut *state;
        *asked += 1;
        let new = Kept { content: content.clone(), asked: *asked };
        *bytes += content.0.memory_bytes();
        order.insert(*asked, place(located));
        let mut gone = kept.insert(place(located), new);
        if let Some(before) = &gone {
            order.remove(&before.asked);
        }
        loop {
            *bytes -= gone.map_or(0, |gone| gone.content.0.memory_bytes());
            if *bytes <= KEPT_BYTES_MAX {
                return;
            }
            let Some((_, oldest)) = order.pop_first() else { return };
            gone = kept.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::model::ids::SessionId;
    use crate::pack::spare::Spare;

    fn at(number: u64, offset: u32) -> (ChunkId, Location) {
        let pack = PackName { session: SessionId([7; 16]), number };
        (ChunkId([3; 32]), Location { pack, offset, stored_len: 9, raw_blocks: 1, codec: Codec::Zstd })
    }

    fn content(byte: u8, len: usize) -> Content {
        let mut bytes = Arc::new(Spare::default()).take(len);
        bytes.fill(byte);
        bytes.into()
    }

    #[test]
    fn what_was_asked_for_last_stays_within_the_bytes() {
        let (decoded, len) = (Decoded::default(), KEPT_BYTES_MAX / 4);
        let has = |number, offset| decoded.get(&at(number, offset)).map(|content| content[0]);
        for (byte, offset) in (1..).zip([0, 64, 128, 192]) {
            decoded.keep(&at(1, offset), &content(byte, len));
        }
        assert_eq!((has(1, 0), has(1, 192), has(2, 0)), (Some(1), Some(4), None));
        let other = (ChunkId([4; 32]), at(1, 0).1);
        assert!(decoded.get(&other).is_none(), "another chunk that is said to be in the same place");
        // The oldest that was not asked for since makes room, then the next one.
        decoded.keep(&at(2, 0), &content(5, len));
        assert_eq!((has(1, 64), has(1, 0), has(2, 0)), (None, Some(1), Some(5)));
        decoded.keep(&at(2, 64), &content(6, len + 1));
        assert_eq!((has(1, 128), has(1, 192), has(1, 0)), (None, None, Some(1)));
        // The same again takes no more.
        (0..9).for_each(|_| decoded.keep(&at(2, 0), &content(5, len)));
        assert_eq!((has(1, 0), has(2, 0), has(2, 64)), (Some(1), Some(5), Some(6)));
        let state = decoded.0.lock().unwrap();
        assert_eq!((state.bytes, state.kept.len(), state.order.len()), (3 * len + 1, 3, 3));
        drop(state);
        // What is longer than all is not kept, and takes everything with it.
        decoded.keep(&at(3, 0), &content(7, KEPT_BYTES_MAX + 1));
        let state = decoded.0.lock().unwrap();
        assert_eq!((state.bytes, state.kept.len(), state.order.len()), (0, 0, 0));
    }
}
