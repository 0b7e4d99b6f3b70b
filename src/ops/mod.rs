//! Layer 5: the verbs, a file each. *Snapshot* brings a disk into a region, *copy* an image from one region
//! to another, *launch* and *export* write disks; the rest describe, check and remove.
//!
//! [`ingest`], [`transfer`] and [`restore`] are the three pipelines that the verbs stand on: plain threads
//! joined by bounded channels, CPU work on a rayon pool, memory bounded by the buffers that go round.

pub mod account;
pub mod assess;
pub mod bin;
mod buffers;
pub mod bundle;
pub mod capture;
mod changed;
pub mod context;
pub mod copy;
mod cutting;
pub mod delete;
pub mod describe;
mod described;
pub mod devices;
pub mod diff;
pub mod encode;
pub mod error;
mod expected;
pub mod export;
pub mod export_image;
pub mod filter;
pub mod find;
mod findings;
pub mod gaps;
pub mod gc;
pub mod import;
pub mod ingest;
pub mod instance;
pub mod launch;
mod launch_disks;
pub mod lineage;
pub mod modify;
pub mod offer;
pub mod owned;
mod pieces;
mod put;
pub mod recheck;
pub mod register;
pub mod repack;
pub mod repair;
mod reread;
pub mod restore;
mod rewrite;
pub mod snapshot;
pub mod source;
mod stage;
pub mod stats;
mod token;
pub mod transfer;
mod turns;
pub mod verify;
pub mod volume;
