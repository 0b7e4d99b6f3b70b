//! Layer 2: the one door to the operating system.
//!
//! - [`storage`]: the seam under a region, with the manners of an object store. [`directory`] is the real
//!   one on a file system, [`memory`] the strict one in memory.
//! - [`files`]: the seam under `directory`: the file system calls that durability hangs on. [`os`] makes
//!   them, [`sim`] simulates them with everything that a crash can do to them.
//! - [`disk`]: what a disk is to the pipelines; [`rawdisk`] reads one, with `device` if it is no file, [`outfile`] writes one, in a [`folder`]; [`parts`] reads and writes the
//!   files of a bundle; [`direct`] is how large pieces get past the page cache,
//!   from [`aligned`] memory.
//! - [`reflink`]: clones of disk files, and where two differ.
//! - [`config`]: small files of the user's own.
//! - `filesystem`: the numbers of file systems.
//! - [`map`]: the read-only map of sealed files, the only `unsafe` of the project.

pub mod aligned;
pub mod clock;
pub mod config;
mod device;
pub mod direct;
pub mod directory;
pub mod disk;
pub mod files;
mod filesystem;
pub mod folder;
pub mod map;
pub mod memory;
pub mod os;
pub mod outfile;
pub mod parts;
pub mod rawdisk;
pub mod reflink;
pub mod sim;
pub mod storage;
pub mod write_behind;
