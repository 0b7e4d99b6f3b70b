//! Layer 6: regions for others. So far a region on another host, over a pair of streams as ssh gives them.
//!
//! [`link`] carries [`message`]s. [`host`] is the side that has the region; [`peer`] makes the other side's region a
//! [`Source`](crate::ops::source::Source) of a copy, and [`giver`] answers it. A copy to the other side is made there, and
//! takes from a giver here: whoever gets something is who checks it. docs/REMOTE.md has the protocol.

pub mod error;
pub mod giver;
pub mod host;
pub mod link;
pub mod message;
pub mod peer;
pub mod push;
