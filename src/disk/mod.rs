//! Layer 3: foreign disks behind [`DiskRead`] and [`DiskWrite`].
//!
//! A disk is raw, or in one of the [`formats`] that its bytes say. [`ova`] is a whole machine in one file.
//! [`changes`] and [`clone`] tell what changed on one. [`bundle`] is a format of our own: a disk as a manifest and numbered parts.

pub mod bundle;
pub mod changes;
pub mod clone;
pub mod create;
pub mod detect;
pub mod formats;
pub mod free;
pub mod open;
pub mod ova;

pub use crate::io::aligned::AlignedBuffer;
pub use crate::io::disk::{DiskError, DiskRead, DiskWrite, Extent, FileWrite};

/// Whether every byte is zero; stops soon after the first that is not.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|piece| piece == &ZEROS[..piece.len()])
}
