//! Trees of btrfs: where logical addresses lie on the device, and walks through all items of a tree.

use super::bytes::{View, byte, crc32c_plain, le16, le32, le64, slice};
use super::{Found, doubt};

const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;
const LEVEL_MAX: u8 = 7;

const DATA: u64 = 1;
const SYSTEM: u64 = 2;
const METADATA: u64 = 4;
const DUP: u64 = 0x20;

/// A key of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub id: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub fn read(bytes: &[u8]) -> Self {
        Self { id: le64(bytes, 0), kind: byte(bytes, 8), offset: le64(bytes, 9) }
    }
}

/// A run of logical addresses, and where it lies on the device: once, or twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub start: u64,
    pub end: u64,
    pub flags: u64,
    pub stripes: [Option<u64>; 2],
}

impl Chunk {
    /// Reads a chunk item. Its length on the disk is given, too.
    pub fn read(key: Key, bytes: &[u8], device: u64) -> Found<(Self, usize)> {
        let (len, flags, count) = (le64(bytes, 0), le64(bytes, 24), usize::from(le16(bytes, 44)));
        let copies = match flags & !(DATA | SYSTEM | METADATA) {
            0 => 1,
            DUP => 2,
            _ => return doubt("it has chunks of another profile than single and DUP"),
        };
        let size = 48 + 32 * count;
        let end = key.offset.checked_add(len).filter(|&end| end > key.offset);
        let (Some(end), true) = (end, count == copies && bytes.len() >= size && key.id == 256) else {
            return doubt("its chunks say impossible things");
        };
        let mut stripes = [None; 2];
        for (stripe, place) in stripes.iter_mut().zip(0..count) {
            if le64(bytes, 48 + 32 * place) != device {
                return doubt("it has chunks on another device");
            }
            *stripe = Some(le64(bytes, 56 + 32 * place));
        }
        Ok((Self { start: key.offset, end, flags, stripes }, size))
    }

    pub fn places(&self) -> impl Iterator<Item = u64> {
        self.stripes.into_iter().flatten()
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// What every node of a file system must bear.
pub(super) struct Forest<'a> {
    pub view: View<'a>,
    pub fsid: Vec<u8>,
    pub node_bytes: usize,
    /// Sorted, without overlaps.
    pub chunks: Vec<Chunk>,
    /// How many nodes there can still be: all of them are in the count of used bytes.
    pub nodes_left: u64,
}

/// A tree, by what its parent says of its root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    pub owner: u64,
    pub root: u64,
    pub level: u8,
    pub generation: u64,
}

impl Forest<'_> {
    /// Sorts the chunks; in doubt if they overlap.
    pub fn set_chunks(&mut self, mut chunks: Vec<Chunk>) -> Found<()> {
        chunks.sort_unstable_by_key(|chunk| chunk.start);
        if chunks.iter().zip(chunks.iter().skip(1)).any(|(one, two)| one.end > two.start) {
            return doubt("its chunks overlap");
        }
        self.chunks = chunks;
        Ok(())
    }

    fn place_of(&self, logical: u64) -> Option<u64> {
        let number = self.chunks.partition_point(|chunk| chunk.end <= logical);
        let chunk = self.chunks.get(number).filter(|chunk| chunk.start <= logical)?;
        let is_inside = chunk.end - logical >= self.node_bytes as u64;
        chunk.places().next()?.checked_add(logical - chunk.start).filter(|_| is_inside)
    }

    /// Calls with every item of a tree, in the order of their keys, which must ascend.
    pub fn walk(&mut self, tree: Tree, item: &mut dyn FnMut(Key, &[u8]) -> Found<()>) -> Found<()> {
        let mut last = None;
        self.node(tree, None, &mut last, item)
    }

    fn node(
        &mut self,
        tree: Tree,
        first: Option<Key>,
        last: &mut Option<Key>,
        item: &mut dyn FnMut(Key, &[u8]) -> Found<()>,
    ) -> Found<()> {
        const DAMAGED: &str = "one of its trees is damaged; run btrfs check";
        let place = self.place_of(tree.root);
        let (Some(place), true) = (place, self.nodes_left > 0 && tree.level <= LEVEL_MAX) else {
            return doubt(DAMAGED);
        };
        self.nodes_left -= 1;
        let bytes = self.view.read(place, self.node_bytes)?;
        let count = le32(&bytes, 96) as usize;
        let entry_bytes = if tree.level == 0 { ITEM_BYTES } else { POINTER_BYTES };
        let is_sound = le32(&bytes, 0) == !crc32c_plain(!0, slice(&bytes, 32, self.node_bytes))
            && slice(&bytes, 32, 16) == self.fsid
            && le64(&bytes, 48) == tree.root
            && le64(&bytes, 80) == tree.generation
            && le64(&bytes, 88) == tree.owner
            && byte(&bytes, 100) == tree.level
            && count <= (self.node_bytes - HEADER_BYTES) / entry_bytes
            // Only a tree without an item has an empty node.
            && (count > 0 || tree.level == 0 && first.is_none());
        if !is_sound || first.is_some_and(|first| first != Key::read(slice(&bytes, HEADER_BYTES, 17))) {
            return doubt(DAMAGED);
        }
        for entry in bytes.get(HEADER_BYTES..).unwrap_or_default().chunks_exact(entry_bytes).take(count) {
            let key = Key::read(entry);
            if tree.level > 0 {
                let (root, generation) = (le64(entry, 17), le64(entry, 25));
                self.node(Tree { root, generation, level: tree.level - 1, ..tree }, Some(key), last, item)?;
                continue;
            }
            let start = (le32(entry, 17) as usize).saturating_add(HEADER_BYTES);
            let data = bytes.get(start..start.saturating_add(le32(entry, 21) as usize));
            let (Some(data), true) = (data, last.is_none_or(|last| last < key)) else {
                return doubt(DAMAGED);
            };
            *last = Some(key);
            item(key, data)?;
        }
        Ok(())
    }
}
