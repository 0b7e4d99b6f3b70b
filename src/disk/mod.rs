//! Layer 3: foreign disks behind [`DiskRead`] and [`DiskWrite`].
//!
//! Raw files and block devices; other formats are recognised by their signatures and refused as raw.
//! [`bundle`] is a format of our own: a disk as a manifest and numbered parts.

pub mod bundle;
pub mod detect;
pub mod formats;
pub mod open;

pub use crate::io::disk::{DiskError, DiskRead, DiskWrite, Extent};
