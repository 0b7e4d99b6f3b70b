//! imgstore: the Amazon Machine Image system for your own machines.
//!
//! A content-addressed, deduplicating store for whole VM disks. A *region* is a set of immutable objects
//! and one create-only log; *snapshot* brings a disk into a region, *copy* carries an image from one region
//! to another, *launch* and *export* write disks back.
//!
//! Modules are layers and use only what stands above them here (`tests/layering.rs` holds them to it):
//! [`model`], [`chunk`], [`format`](mod@format) and [`io`], [`pack`] and [`disk`], [`region`], [`ops`],
//! [`serve`].
//! docs/ARCHITECTURE.md is the map, docs/FORMAT.md the bytes.
//!
//! The library prints nothing, reads no environment, and never exits.

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation, clippy::unwrap_used, clippy::panic))]

pub mod chunk;
pub mod disk;
pub mod format;
pub mod io;
pub mod model;
pub mod ops;
pub mod pack;
pub mod region;
pub mod serve;
