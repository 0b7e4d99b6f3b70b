//! Fetching frames: near ones together, by positioned reads.

use super::decoded::Decoded;
use super::error::PackError;
use super::index::Location;
use super::spare::{Bytes, Spare};
use crate::chunk::frame::{CodecPool, base_of};
use crate::format::pack::{FRAME_HEADER_BYTES, frame_body};
use crate::io::storage::{Object, Storage};
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes between two frames that are read and thrown away rather than asked for separately.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Bytes of one read.
const RUN_BYTES_MAX: u64 = 2 << 20;
/// Packs kept open.
const OPEN_PACKS_MAX: usize = 128;

/// Frames that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRun {
    /// Their pack.
    pub pack: PackName,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
    /// Which of the wanted frames they are, ascending by offset.
    pub members: Vec<usize>,
}

/// Groups wanted frames into reads, in the order of packs and of offsets in them.
pub fn plan_reads(wanted: &[(ChunkId, Location)]) -> Vec<ReadRun> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_unstable_by_key(|&at| (wanted[at].1.pack, wanted[at].1.offset));
    let mut runs: Vec<ReadRun> = Vec::new();
    // Wanted bytes of the last run: gaps may at most double what is read, however the frames lie.
    let mut useful = 0;
    for at in order {
        let location = &wanted[at].1;
        let start = u64::from(location.offset);
        let end = start + FRAME_HEADER_BYTES as u64 + u64::from(location.stored_len);
        if let Some(run) = runs.last_mut()
            && run.pack == location.pack
            && start.saturating_sub(run.offset + run.len as u64) <= allowed_gap(run, useful)
            && end - run.offset <= RUN_BYTES_MAX
        {
            let len = usize::try_from(end - run.offset).unwrap_or(usize::MAX);
            useful += end - start;
            run.len = run.len.max(len);
            run.members.push(at);
            continue;
        }
        useful = end - start;
        let len = usize::try_from(useful).unwrap_or(usize::MAX);
        runs.push(ReadRun { pack: location.pack, offset: start, len, members: vec![at] });
    }
    runs
}

/// How many more unwanted bytes a run may take in: in all as many as it has wanted ones.
fn allowed_gap(run: &ReadRun, useful: u64) -> u64 {
    GAP_BYTES_MAX.min((2 * useful).saturating_sub(run.len as u64))
}

/// Reads from packs, a number of which it keeps open.
pub struct PackReader {
    storage: Arc<dyn Storage>,
    spare: Arc<Spare>,
    decoded: Decoded,
    open: Mutex<HashMap<PackName, Arc<dyn Object>>>,
}

impl PackReader {
    /// A reader of the packs in a storage.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, spare: Arc::default(), decoded: Decoded::default(), open: Mutex::default() }
    }

    /// The bytes of a run.
    pub fn read(&self, run: &ReadRun) -> Result<Bytes, PackError> {
        let mut bytes = self.spare.take(run.len);
        self.object(run.pack)?.read_at(run.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Memory for what is decoded from runs.
    pub fn spare(&self) -> &Arc<Spare> {
        &self.spare
    }

    /// What was decoded from runs lately, and may be wanted again.
    pub const fn decoded(&self) -> &Decoded {
        &self.decoded
    }

    fn object(&self, name: PackName) -> Result<Arc<dyn Object>, PackError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = open.get(&name) {
            return Ok(object.clone());
        }
        if open.len() >= OPEN_PACKS_MAX {
            // Any will do: reads go through packs in order, so none is likelier than another.
            open.clear();
        }
        let object = self.storage.open(&name.to_string())?;
        open.insert(name, object.clone());
        Ok(object)
    }
}

/// The base that the frame of a chunk in a run's bytes names, if it is a delta. The bytes may be damaged still.
pub fn base_in(run: &ReadRun, run_bytes: &[u8], location: &Location) -> Option<ChunkId> {
    let start = usize::try_from(u64::from(location.offset) - run.offset).unwrap_or(usize::MAX);
    base_of(location.codec, run_bytes.get(start..)?.get(FRAME_HEADER_BYTES..)?)
}

/// The frame of a chunk in a run's bytes, decoded into `raw` and proved by its hash. `base` is the bytes of its base,
/// for a delta.
pub fn decode_frame(
    codecs: &CodecPool,
    run: &ReadRun,
    run_bytes: &[u8],
    (id, location): (ChunkId, Location),
    base: Option<&[u8]>,
    raw: &mut [u8],
) -> Result<(), PackError> {
    let body = stored_frame(run, run_bytes, (id, location))?;
    codecs.decode(location.codec, body, id, base, raw).map_err(|source| PackError::DamagedFrame {
        pack: location.pack,
        offset: location.offset,
        chunk: id,
        source: source.into(),
    })
}

/// The body of a chunk's frame in a run's bytes, after a check of its checksum.
pub fn stored_frame<'a>(
    run: &ReadRun,
    run_bytes: &'a [u8],
    (id, location): (ChunkId, Location),
) -> Result<&'a [u8], PackError> {
    let start = usize::try_from(u64::from(location.offset) - run.offset).unwrap_or(usize::MAX);
    frame_body(run_bytes.get(start..).unwrap_or_default(), &location.entry(id)).map_err(|source| {
        PackError::DamagedFrame {
            pack: location.pack,
            offset: location.offset,
            chunk: id,
            source: source.into(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::model::ids::SessionId;

    fn at(pack: u64, offset: u32, stored_len: u32) -> (ChunkId, Location) {
        let pack = PackName { session: SessionId([0; 16]), number: pack };
        (ChunkId([0; 32]), Location { pack, offset, stored_len, raw_blocks: 1, codec: Codec::Raw })
    }

    #[test]
    fn near_frames_are_read_together_in_pack_order() {
        let wanted = [at(2, 64, 100), at(1, 300, 88), at(1, 64, 88), at(1, 64 + 100, 88), at(1, 200_000, 10)];
        let runs = plan_reads(&wanted);
        let of: Vec<_> = runs.iter().map(|r| (r.pack.number, r.offset, r.len, r.members.clone())).collect();
        assert_eq!(of, [(1, 64, 336, vec![2, 3, 1]), (1, 200_000, 22, vec![4]), (2, 64, 112, vec![0])]);
    }

    #[test]
    fn gaps_never_make_more_than_half_of_what_is_read() {
        let wanted: Vec<_> = (0..1000).map(|n| at(1, 64 + n * 60_000, 500)).collect();
        let read: usize = plan_reads(&wanted).iter().map(|run| run.len).sum();
        assert!(read <= 2 * 1000 * 512, "{read}");
    }

    #[test]
    fn a_run_has_a_longest_length() {
        let wanted: Vec<_> = (0..100).map(|n| at(1, 64 + n * 100_000, 99_988)).collect();
        let runs = plan_reads(&wanted);
        assert!(runs.len() > 1);
        assert!(runs.iter().all(|run| run.len as u64 <= RUN_BYTES_MAX));
        assert_eq!(runs.iter().map(|run| run.members.len()).sum::<usize>(), 100);
    }
}
