//! Layer 2: our byte layouts, each encoded from and decoded to plain values. Pure functions of bytes.
//!
//! docs/FORMAT.md is the specification; `tests/format_golden.rs` holds its bytes.

pub mod checkpoint;
pub mod codec;
pub mod entry;
pub mod envelope;
pub mod error;
pub mod features;
pub mod filter;
pub mod manifest;
pub mod pack;
pub mod record;
pub mod region;
pub mod segment;
