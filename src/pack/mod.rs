//! Layer 3: packs and the index over them.
//!
//! [`build`] fills packs, [`trailer`] reads their own index, [`index`] answers where a chunk is across all
//! of them, [`segment`] is the mapped part of that answer, [`merge`] makes new segments, [`read`] fetches
//! frames into [`spare`] memory, [`decoded`] keeps some that were decoded, [`scan`] tells them apart where a trailer
//! is lost.

mod atomic {
    //! The atomics of [`super::checked`], which a test puts others in the place of.
    pub use std::sync::atomic::{AtomicU64, Ordering};
}
pub mod build;
mod checked;
pub mod decoded;
pub mod error;
pub mod index;
mod loose;
pub mod merge;
pub mod places;
pub mod quick;
pub mod read;
pub mod scan;
pub mod segment;
pub mod similar;
pub mod spare;
pub mod trailer;
