//! Layer 1: bytes become chunks, ids and frames, and back. Pure: no I/O, no threads.

pub mod cut;
pub mod delta;
pub mod features;
pub mod fingerprint;
pub mod frame;
