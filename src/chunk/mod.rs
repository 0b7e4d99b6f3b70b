//! Layer 1: bytes become chunks, ids and frames, and back. Pure: no I/O, no threads.

pub mod cut;
pub mod delta;
pub mod features;
pub mod fingerprint;
pub mod frame;

/// Chunks that a thread takes at once from a batch: what is done with one takes long enough, and with more one thread
/// has the last ones of the batch while the others wait.
pub const CHUNKS_AT_ONCE: usize = 1;
