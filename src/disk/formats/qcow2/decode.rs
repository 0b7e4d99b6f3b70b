//! Decompressing clusters.

use super::map::Stored;
use super::source::Source;
use crate::io::disk::DiskError;
use flate2::{Decompress, FlushDecompress, Status};
use std::sync::{Mutex, PoisonError};
use zstd::zstd_safe::{self, DCtx};

/// Decoders that are kept for the next cluster; more may be at work.
const IDLE_MAX: usize = 16;

/// Decoders and their buffers, so that not every cluster needs new ones.
pub(super) struct Decoders {
    is_zstd: bool,
    idle: Mutex<Vec<Decoder>>,
}

struct Decoder {
    engine: Engine,
    stored: Vec<u8>,
}

enum Engine {
    Zlib(Decompress),
    Zstd(DCtx<'static>),
}

impl Decoders {
    pub(super) fn new(is_zstd: bool) -> Self {
        Self { is_zstd, idle: Mutex::default() }
    }

    /// Reads a compressed cluster and decompresses it to exactly `raw`; `start` is where in the disk it begins.
    pub(super) fn decode(
        &self,
        source: &Source,
        stored: Stored,
        start: u64,
        raw: &mut [u8],
    ) -> Result<(), DiskError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = idle.unwrap_or_else(|| {
            let engine = if self.is_zstd {
                Engine::Zstd(DCtx::create())
            } else {
                Engine::Zlib(Decompress::new(false))
            };
            Decoder { engine, stored: Vec::new() }
        });
        let done = decoder.decode(source, stored, start, raw);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(decoder);
        }
        done
    }
}

impl Decoder {
    fn decode(
        &mut self,
        source: &Source,
        place: Stored,
        start: u64,
        raw: &mut [u8],
    ) -> Result<(), DiskError> {
        let wrong = |what: &str| {
            let Stored { host, bytes, .. } = place;
            let where_from = format!("compressed in the {bytes} bytes at {host:#x} of the file");
            source.damaged(format!("its cluster at byte {start} of the disk, {where_from}, {what}"))
        };
        let bytes = usize::try_from(place.bytes).map_err(|_| wrong("is too large"))?;
        self.stored.resize(bytes, 0);
        source.read(place.host, &mut self.stored)?;
        let decoded = match &mut self.engine {
            Engine::Zlib(inflate) => inflate_cluster(inflate, &self.stored, raw),
            Engine::Zstd(context) => unpack_cluster(context, &self.stored, raw),
        };
        if decoded == Some(raw.len()) { Ok(()) } else { Err(wrong("does not decompress to a whole cluster")) }
    }
}

/// The stream must end where the cluster does; what is behind it in its last sector is another's.
fn inflate_cluster(inflate: &mut Decompress, stored: &[u8], raw: &mut [u8]) -> Option<usize> {
    inflate.reset(false);
    let status = inflate.decompress(stored, raw, FlushDecompress::Finish).ok()?;
    if status == Status::StreamEnd { usize::try_from(inflate.total_out()).ok() } else { None }
}

/// In one go, which needs no window besides `raw`, however large a one the frame asks for.
fn unpack_cluster(context: &mut DCtx, stored: &[u8], raw: &mut [u8]) -> Option<usize> {
    let bytes = zstd_safe::find_frame_compressed_size(stored).ok()?;
    context.decompress(raw, stored.get(..bytes)?).ok()
}
