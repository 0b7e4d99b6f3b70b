//! Layer 0: the vocabulary. Plain data and pure predicates; no I/O, no clock, no randomness.

pub mod account;
pub mod blockmap;
pub mod catalog;
pub mod changes;
pub mod ids;
pub mod image;
pub mod instance;
pub mod objects;
pub mod op;
pub mod region;
pub mod snapshot;
pub mod units;
pub mod words;
