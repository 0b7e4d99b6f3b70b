//! Layer 3: foreign disks behind [`DiskRead`] and [`DiskWrite`].
//!
//! A disk is raw, or in one of the [`formats`] that its bytes say; what is written is raw.
//! [`bundle`] is a format of our own: a disk as a manifest and numbered parts.

pub mod bundle;
pub mod detect;
pub mod formats;
pub mod open;

pub use crate::io::disk::{DiskError, DiskRead, DiskWrite, Extent, FileWrite};
