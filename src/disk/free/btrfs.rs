//! btrfs on one device (Linux, include/uapi/linux/btrfs_tree.h): what no extent item covers in its chunks, and
//! what no chunk covers on its device.
//!
//! The superblock leads to the chunk tree, which says where logical addresses lie, and to the root tree, which
//! leads to the extent tree. Data and metadata are what that lists; what is between is free in each copy.

use super::btrfs_tree::{Chunk, Forest, Key, Tree};
use super::bytes::{Ranges, View, byte, crc32c_plain, le16, le32, le64, slice};
use super::{Found, Limits, doubt};

const SUPER_BYTES: usize = 4096;
/// Where the superblock is, and its copies.
const SUPERS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// btrfs never uses the first MiB, nor a stripe of 64 KiB where a copy of the superblock is.
const RESERVED_START: u64 = 1 << 20;
const RESERVED_STRIPE: u64 = 64 << 10;
const MAGIC: &[u8] = b"_BHRfS_M";

/// Mixed backrefs, which all but ancient ones have.
const MIXED_BACKREF: u64 = 0x1;
/// And: default subvolume, mixed groups, LZO, zstd, big metadata, extended irefs, skinny metadata, no holes,
/// metadata UUID, simple quota.
const INCOMPAT: u64 =
    MIXED_BACKREF | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | METADATA_UUID | 0x10000;
const METADATA_UUID: u64 = 0x400;
/// Free space tree, that it is valid, verity, block group tree.
const COMPAT_RO: u64 = 0x1 | 0x2 | 0x4 | BLOCK_GROUP_TREE;
const BLOCK_GROUP_TREE: u64 = 0x8;
/// Written, relocated.
const FLAGS: u64 = 0x3;

const ROOT_TREE: u64 = 1;
const EXTENT_TREE_ID: u64 = 2;
const CHUNK_TREE: u64 = 3;
const BLOCK_GROUP_TREE_ID: u64 = 11;

const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
/// Back references of extents: owner, tree block, extent data, shared block, shared data.
const REFERENCES: [u8; 5] = [172, 176, 178, 182, 184];
const BLOCK_GROUP_ITEM: u8 = 192;
const DEV_ITEM: u8 = 216;
const CHUNK_ITEM: u8 = 228;

/// The one device: its number, its length, and how much of it chunks cover.
struct Device {
    id: u64,
    len: u64,
    used: u64,
}

/// Collects what is free; gives the file system's end.
pub(super) fn find_free(view: View<'_>, limits: &Limits, free: &mut Ranges) -> Found<u64> {
    let bytes = view.read(SUPERS[0], SUPER_BYTES)?;
    check_state(&bytes)?;
    check_copies(view, &bytes)?;
    let (node_bytes, sector_bytes) = (le32(&bytes, 148) as usize, le32(&bytes, 144) as usize);
    let is_power = node_bytes.is_power_of_two() && sector_bytes.is_power_of_two();
    if !is_power || !(4096..=65536).contains(&sector_bytes) || !(sector_bytes..=65536).contains(&node_bytes) {
        return doubt("its nodes have an impossible size");
    }
    let device = Device { id: le64(&bytes, 201), len: le64(&bytes, 209), used: le64(&bytes, 217) };
    if device.len > view.len || device.len != le64(&bytes, 112) {
        return doubt("it is larger than what it lies on");
    }
    let fsid_at = if le64(&bytes, 188) & METADATA_UUID != 0 { 571 } else { 32 };
    let used = le64(&bytes, 120);
    let nodes_left = used / node_bytes as u64;
    let fsid = slice(&bytes, fsid_at, 16).to_vec();
    let mut forest = Forest { view, fsid, node_bytes, chunks: Vec::new(), nodes_left };
    read_chunks(&mut forest, &bytes, &device, limits)?;
    let stripes = stripes_of(&forest.chunks, &device)?;
    let (extents, groups) = find_roots(&mut forest, &bytes)?;

    let mut free = Free(free);
    let mut account = Account::new(&forest, sector_bytes as u64);
    forest.nodes_left = nodes_left;
    forest.walk(extents, &mut |key, item| account.item(key, item, groups.is_none(), &mut free))?;
    account.leave_chunks_before(u64::MAX, &mut free);
    if let Some(groups) = groups {
        forest.walk(groups, &mut |key, item| account.group(key, item))?;
    }
    account.check(used)?;
    let mut at = 0;
    for (start, end) in stripes {
        free.push(at, start);
        at = end;
    }
    free.push(at, device.len);
    Ok(device.len)
}

/// Features and flags that this code knows, and nothing left to do.
fn check_state(bytes: &[u8]) -> Found<()> {
    if le16(bytes, 196) != 0 {
        return doubt("its checksums are not CRC32C");
    }
    if !is_super(bytes, SUPERS[0]) {
        return doubt("its superblock's checksum does not fit");
    }
    let incompat = le64(bytes, 188);
    for (name, unknown) in [
        ("compat", le64(bytes, 172)),
        ("compat_ro", le64(bytes, 180) & !COMPAT_RO),
        ("incompat", incompat & !INCOMPAT | MIXED_BACKREF & !incompat),
        ("super flags", le64(bytes, 56) & !FLAGS),
    ] {
        if unknown != 0 {
            return doubt(format!("it has features that are not handled ({name} {unknown:#x})"));
        }
    }
    if le64(bytes, 136) != 1 {
        return doubt("it has several devices");
    }
    if le64(bytes, 96) != 0 {
        return doubt("it has a log tree to replay; mount and unmount it once");
    }
    Ok(())
}

fn is_super(bytes: &[u8], at: u64) -> bool {
    slice(bytes, 64, 8) == MAGIC
        && le64(bytes, 48) == at
        && le32(bytes, 0) == !crc32c_plain(!0, slice(bytes, 32, SUPER_BYTES))
}

/// A copy of the superblock that is newer than the first one would mean that the first was lost.
fn check_copies(view: View<'_>, first: &[u8]) -> Found<()> {
    for at in SUPERS.into_iter().skip(1) {
        let Some(copy) = view.part(at, SUPER_BYTES)? else { continue };
        let is_same = slice(&copy, 32, 16) == slice(first, 32, 16);
        if is_super(&copy, at) && is_same && le64(&copy, 72) > le64(first, 72) {
            return doubt("a copy of its superblock is newer than the first one");
        }
    }
    Ok(())
}

/// Reads the chunks: those of the superblock lead to the chunk tree, which has them all.
fn read_chunks(forest: &mut Forest<'_>, bytes: &[u8], device: &Device, limits: &Limits) -> Found<()> {
    const KEY_BYTES: usize = 17;
    let len = le32(bytes, 160) as usize;
    if len > 2048 {
        return doubt("its system chunks say impossible things");
    }
    let (mut rest, mut system) = (slice(bytes, 811, len), Vec::new());
    while !rest.is_empty() {
        let key = Key::read(rest);
        if key.kind != CHUNK_ITEM {
            return doubt("its system chunks say impossible things");
        }
        let (chunk, size) = Chunk::read(key, rest.get(KEY_BYTES..).unwrap_or_default(), device.id)?;
        system.push(chunk);
        rest = rest.get(KEY_BYTES + size..).unwrap_or_default();
    }
    forest.set_chunks(system)?;
    let (root, generation, level) = (le64(bytes, 88), le64(bytes, 164), byte(bytes, 199));
    let (mut chunks, mut devices) = (Vec::new(), 0);
    let most = usize::try_from(limits.table_bytes).unwrap_or(usize::MAX) / size_of::<Chunk>();
    forest.walk(Tree { owner: CHUNK_TREE, root, level, generation }, &mut |key, item| {
        match key.kind {
            CHUNK_ITEM => {
                if chunks.len() >= most {
                    return doubt("it has too many chunks");
                }
                chunks.push(Chunk::read(key, item, device.id)?.0);
            }
            DEV_ITEM => {
                let fits = le64(item, 0) == device.id && le64(item, 8) == device.len;
                if !fits || le64(item, 16) != device.used {
                    return doubt("its superblock and its chunk tree differ; run btrfs check");
                }
                devices += 1;
            }
            kind => return doubt(format!("its chunk tree has an unknown item ({kind})")),
        }
        Ok(())
    })?;
    if devices != 1 || forest.chunks.iter().any(|chunk| !chunks.contains(chunk)) {
        return doubt("its superblock and its chunk tree differ; run btrfs check");
    }
    forest.set_chunks(chunks)
}

/// Where chunks lie on the device, sorted; together as much as the device counts.
fn stripes_of(chunks: &[Chunk], device: &Device) -> Found<Vec<(u64, u64)>> {
    let of = |chunk: &Chunk| {
        let len = chunk.len();
        chunk.places().map(move |start| (start, start.saturating_add(len))).collect::<Vec<_>>()
    };
    let mut stripes: Vec<_> = chunks.iter().flat_map(of).collect();
    stripes.sort_unstable();
    let overlap = stripes.iter().zip(stripes.iter().skip(1)).any(|(one, two)| one.1 > two.0);
    if overlap || stripes.last().is_some_and(|last| last.1 > device.len) {
        return doubt("its chunks lie where they cannot be; run btrfs check");
    }
    if stripes.iter().map(|(start, end)| end - start).sum::<u64>() != device.used {
        return doubt("its chunks are not as much as its device counts; run btrfs check");
    }
    Ok(stripes)
}

/// Finds the extent tree, and that of the block groups if they have their own.
fn find_roots(forest: &mut Forest<'_>, bytes: &[u8]) -> Found<(Tree, Option<Tree>)> {
    let (root, generation, level) = (le64(bytes, 80), le64(bytes, 72), byte(bytes, 198));
    let (mut extents, mut groups) = (None, None);
    forest.walk(Tree { owner: ROOT_TREE, root, level, generation }, &mut |key, item| {
        let tree = Tree {
            owner: key.id,
            root: le64(item, 176),
            level: byte(item, 238),
            generation: le64(item, 160),
        };
        match (key.id, key.kind) {
            (EXTENT_TREE_ID, ROOT_ITEM) if extents.replace(tree).is_some() => {
                doubt("it has two extent trees")
            }
            (BLOCK_GROUP_TREE_ID, ROOT_ITEM) if groups.replace(tree).is_some() => {
                doubt("it has two block group trees")
            }
            _ => Ok(()),
        }
    })?;
    let is_apart = le64(bytes, 180) & BLOCK_GROUP_TREE != 0;
    match (extents, groups) {
        (Some(extents), Some(groups)) if is_apart => Ok((extents, Some(groups))),
        (Some(extents), None) if !is_apart => Ok((extents, None)),
        _ => doubt("its root tree lacks a tree, or has one too many; run btrfs check"),
    }
}

/// Free places of the device. What is reserved is never among them.
struct Free<'a>(&'a mut Ranges);

impl Free<'_> {
    fn push(&mut self, start: u64, end: u64) {
        let mut at = start.max(RESERVED_START);
        for reserved in SUPERS.into_iter().skip(1) {
            let behind = reserved + RESERVED_STRIPE;
            if at < behind && reserved < end {
                self.0.push(at, reserved.max(at));
                at = behind;
            }
        }
        self.0.push(at, end);
    }
}

/// What is used of each chunk, while the extents are listed in the order of their addresses.
struct Account {
    chunks: Vec<Chunk>,
    /// Of each chunk how much is used, by its extents and by its block group.
    counts: Vec<(u64, Option<u64>)>,
    node_bytes: u64,
    sector_bytes: u64,
    /// The chunk that the next extent may be in, and where the last one in it has ended.
    place: usize,
    end: u64,
}

impl Account {
    fn new(forest: &Forest<'_>, sector_bytes: u64) -> Self {
        let chunks = forest.chunks.clone();
        Self {
            counts: vec![(0, None); chunks.len()],
            end: chunks.first().map_or(0, |chunk| chunk.start),
            chunks,
            node_bytes: forest.node_bytes as u64,
            sector_bytes,
            place: 0,
        }
    }

    fn item(&mut self, key: Key, item: &[u8], has_groups: bool, free: &mut Free<'_>) -> Found<()> {
        match key.kind {
            EXTENT_ITEM => self.extent(key.id, key.offset, free),
            METADATA_ITEM => self.extent(key.id, self.node_bytes, free),
            BLOCK_GROUP_ITEM if has_groups => self.group(key, item),
            kind if REFERENCES.contains(&kind) => Ok(()),
            kind => doubt(format!("its extent tree has an unknown item ({kind})")),
        }
    }

    fn extent(&mut self, start: u64, len: u64, free: &mut Free<'_>) -> Found<()> {
        const WRONG: &str = "an extent lies where it cannot be; run btrfs check";
        self.leave_chunks_before(start, free);
        let Some(chunk) = self.chunks.get(self.place) else { return doubt(WRONG) };
        let end = start.checked_add(len).filter(|&end| end <= chunk.end);
        let is_whole = len > 0 && [start, len].iter().all(|it| it.is_multiple_of(self.sector_bytes));
        let (Some(end), true) = (end, is_whole && start >= self.end) else { return doubt(WRONG) };
        free_part(chunk, self.end, start, free);
        self.end = end;
        if let Some(count) = self.counts.get_mut(self.place) {
            count.0 += len;
        }
        Ok(())
    }

    /// Takes as free what is left of the chunks that end before an address.
    fn leave_chunks_before(&mut self, address: u64, free: &mut Free<'_>) {
        while let Some(chunk) = self.chunks.get(self.place).filter(|chunk| chunk.end <= address) {
            free_part(chunk, self.end, chunk.end, free);
            self.place += 1;
            self.end = self.chunks.get(self.place).map_or(u64::MAX, |chunk| chunk.start);
        }
    }

    /// Takes what a block group counts as used. It is as long as its chunk.
    fn group(&mut self, key: Key, item: &[u8]) -> Found<()> {
        let found = self.chunks.binary_search_by_key(&key.id, |chunk| chunk.start);
        let place = found.unwrap_or(usize::MAX);
        let (Some(chunk), Some(count)) = (self.chunks.get(place), self.counts.get_mut(place)) else {
            return doubt("it has a block group without a chunk; run btrfs check");
        };
        let fits = key.kind == BLOCK_GROUP_ITEM && key.offset == chunk.len() && le64(item, 16) == chunk.flags;
        if !fits || count.1.replace(le64(item, 0)).is_some() {
            return doubt("its block groups do not fit its chunks; run btrfs check");
        }
        Ok(())
    }

    /// Every chunk has a block group, and what they count is what was found.
    fn check(&self, used: u64) -> Found<()> {
        let differs = self.counts.iter().any(|&(found, counted)| counted != Some(found));
        let total: u64 = self.counts.iter().map(|count| count.0).sum();
        if differs || total != used {
            return doubt(format!("it has {total} used bytes but counts {used}; run btrfs check"));
        }
        Ok(())
    }
}

/// Takes addresses of a chunk as free, in each copy.
fn free_part(chunk: &Chunk, start: u64, end: u64, free: &mut Free<'_>) {
    for place in chunk.places() {
        let at = |address: u64| place.saturating_add(address.saturating_sub(chunk.start));
        free.push(at(start), at(end));
    }
}
