//! A second decoder of imgstore's format, written from `docs/FORMAT.md` alone. It shares no code with the library:
//! where the two disagree, one of them or the page is wrong. Sections are in the page's order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;

/// What every function here returns: a value, or a sentence about what is wrong.
pub type Result<T> = std::result::Result<T, String>;
/// A `ChunkId` or `Hash`.
pub type Hash = [u8; 32];
/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Time = u64;

const BLOCK: usize = 4096;
const ENTRY: usize = 48;

fn ensure(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("damaged: {what}")) }
}

fn reserved(is_zero: bool, what: &str) -> Result<()> {
    if is_zero { Ok(()) } else { Err(format!("a newer imgstore is needed: {what}")) }
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn keyed(context: &str, parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

// ---- Objects and names

/// The path of a pack, segment, manifest or list in a region.
pub fn object_path(kind: &str, name: &Name) -> String {
    let mut path = format!("{kind}/");
    for byte in name.session {
        let _ = write!(path, "{byte:02x}");
    }
    let _ = write!(path, "/{:06}", name.number);
    path
}

/// The path of a log record.
pub fn record_path(sequence: u64) -> String {
    format!("log/{:017}/{sequence:020}", sequence / 1000)
}

// ---- Values

/// Bytes that are read from the front.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("damaged: ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn get<T: Value>(&mut self) -> Result<T> {
        T::read(self)
    }
}

/// Something that has an encoding.
pub trait Value: Sized {
    /// Reads one from the front of the bytes.
    fn read(from: &mut Reader<'_>) -> Result<Self>;
}

/// Decodes bytes that are exactly one value.
pub fn value<T: Value>(bytes: &[u8]) -> Result<T> {
    let mut reader = Reader(bytes);
    let value = reader.get()?;
    ensure(reader.0.is_empty(), "bytes after the value")?;
    Ok(value)
}

fn at<T: Value>(bytes: &[u8], offset: usize) -> Result<T> {
    Reader(bytes.get(offset..).ok_or("damaged: ends too early")?).get()
}

impl<const N: usize> Value for [u8; N] {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        from.take(N)?.try_into().map_err(|_| "not reached: take gives N bytes".to_owned())
    }
}

macro_rules! integers {
    ($($int:ty)*) => { $(impl Value for $int {
        fn read(from: &mut Reader<'_>) -> Result<Self> {
            Ok(<$int>::from_le_bytes(from.get()?))
        }
    })* };
}
integers!(u8 u16 u32 u64 u128);

impl Value for bool {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let byte: u8 = from.get()?;
        ensure(byte <= 1, "a bool is neither 0 nor 1")?;
        Ok(byte == 1)
    }
}

impl Value for String {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let length: u64 = from.get()?;
        let bytes = from.take(usize::try_from(length).map_err(|_| "damaged: a string's length")?)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "damaged: a string is not UTF-8".to_owned())
    }
}

impl<T: Value> Value for Vec<T> {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let count: u64 = from.get()?;
        let mut items = Vec::new(); // grows with the bytes that are there, not with what the count claims
        for _ in 0..count {
            items.push(from.get()?);
        }
        Ok(items)
    }
}

impl<T: Value> Value for Option<T> {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        if from.get::<bool>()? { Ok(Some(from.get()?)) } else { Ok(None) }
    }
}

impl<T: Value> Value for Box<T> {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        Ok(Box::new(from.get()?))
    }
}

impl<K: Value + Ord, V: Value> Value for BTreeMap<K, V> {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let count: u64 = from.get()?;
        let mut map = BTreeMap::new();
        for _ in 0..count {
            let key: K = from.get()?;
            ensure(map.last_key_value().is_none_or(|(last, _)| *last < key), "keys do not ascend")?;
            map.insert(key, from.get()?);
        }
        Ok(map)
    }
}

impl<K: Value + Ord> Value for BTreeSet<K> {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let count: u64 = from.get()?;
        let mut set = BTreeSet::new();
        for _ in 0..count {
            let key: K = from.get()?;
            ensure(set.last().is_none_or(|last| *last < key), "keys do not ascend")?;
            set.insert(key);
        }
        Ok(set)
    }
}

/// An `ImageId`, `SnapshotId`, `VolumeId` or `InstanceId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShortId(pub u128);

impl Value for ShortId {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let id: u128 = from.get()?;
        ensure(id < 1 << 68, "an id of more than 17 hex digits")?;
        Ok(ShortId(id))
    }
}

/// An `AccountId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountId(pub u64);

impl Value for AccountId {
    fn read(from: &mut Reader<'_>) -> Result<Self> {
        let id: u64 = from.get()?;
        ensure(id < 1_000_000_000_000, "an account of more than 12 digits")?;
        Ok(AccountId(id))
    }
}

macro_rules! structs {
    ($($name:ident { $($field:ident $type:ty,)* })*) => { $(
        #[doc = concat!("`", stringify!($name), "` of the table of values.")]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name { $(
            #[doc = concat!("`", stringify!($field), "`.")]
            pub $field: $type,
        )* }
        impl Value for $name {
            fn read(from: &mut Reader<'_>) -> Result<Self> {
                Ok($name { $($field: from.get()?,)* })
            }
        }
    )* };
}

macro_rules! choices {
    ($($name:ident { $($number:literal $variant:ident $(($($type:ty),*))?,)* })*) => { $(
        #[doc = concat!("`", stringify!($name), "` of the table of values.")]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $(
            #[doc = concat!("Number ", stringify!($number), ".")]
            $variant $(($($type),*))?,
        )* }
        impl Value for $name {
            fn read(from: &mut Reader<'_>) -> Result<Self> {
                match from.get::<u32>()? {
                    $($number => Ok($name::$variant $(($(from.get::<$type>()?),*))?),)*
                    other => Err(format!(
                        "damaged, or a newer imgstore is needed: {} {other}", stringify!($name)
                    )),
                }
            }
        }
    )* };
}

structs! {
    Name { session [u8; 16], number u64, }
    RegionHeader {
        id [u8; 16], name String, created Time, chunker Chunker, zstd_level u8, pack_bytes u32,
    }
    Chunker { min_blocks u16, avg_blocks u16, max_blocks u16, zero_tail_bytes u16, }
    StoredRecord { sequence u64, previous Hash, nonce [u8; 16], time Time, author Author, body Body, }
    Author { account AccountId, session [u8; 16], }
    PackRecord {
        name Name, len u64, frames u32, raw_bytes u64, trailer_hash Hash, bases Vec<Name>,
    }
    SegmentRecord { name Name, len u64, entries u64, hash Hash, replaces Vec<Name>, }
    ManifestRecord { name Name, len u64, hash Hash, chunks u64, }
    Snapshot {
        id ShortId, owner AccountId, description String, volume_bytes u64, data_bytes u64,
        state SnapshotState, created Time, tags Vec<Tag>, parent Option<ShortId>, volume Option<ShortId>,
        source Option<SnapshotSource>, create_volume_permissions Vec<Permission>,
        client_token Option<String>, manifest ManifestRecord,
    }
    SnapshotSource { region_id [u8; 16], region String, snapshot_id ShortId, sequence u64, }
    Tag { key String, value String, }
    Image {
        id ShortId, name String, description String, owner AccountId, state ImageState,
        architecture Architecture, platform Option<String>, virtualization_type Virtualization,
        boot_mode Option<BootMode>, tpm_support Option<String>, ena_support bool,
        imds_support Option<String>, kernel_id Option<String>, ramdisk_id Option<String>,
        root_device_name String, root_device_type RootDevice, devices Vec<Device>,
        launch_permissions Vec<Permission>, product_codes Vec<String>, tags Vec<Tag>, created Time,
        deprecation Option<Time>, deregistration_protected bool, source Option<ImageSource>,
        source_instance Option<ShortId>, predecessor Option<ShortId>, client_token Option<String>,
    }
    Device { device_name String, target Target, }
    ImageSource { region_id [u8; 16], region String, image_id ShortId, owner AccountId, }
    Instance {
        id ShortId, owner AccountId, image_id ShortId, state InstanceState, launched Time,
        root_device_name String, path String, tags Vec<Tag>,
    }
    Volume {
        id ShortId, owner AccountId, volume_bytes u64, volume_type VolumeType,
        snapshot_id Option<ShortId>, state VolumeState, created Time, attachment Option<Attachment>,
        path String, tags Vec<Tag>,
    }
    Attachment { instance_id ShortId, device_name String, delete_on_termination bool, }
    Checkpoint { record_hash Hash, catalog Catalog, }
    Catalog {
        sequence u64, packs BTreeMap<Name, Pack>, segments BTreeMap<Name, SegmentRecord>,
        snapshots BTreeMap<ShortId, Snapshot>, images BTreeMap<ShortId, Image>,
        volumes BTreeMap<ShortId, Volume>, instances BTreeMap<ShortId, Instance>,
        retained_manifests BTreeMap<ShortId, Snapshot>, fenced_sessions BTreeSet<[u8; 16]>,
    }
    Pack { record PackRecord, state PackState, }
}

choices! {
    Body { 0 Inline(Vec<Op>), 1 Spilled(Name, Hash), }
    Op {
        0 NoOp, 1 RegisterPack(PackRecord), 2 RegisterSegment(SegmentRecord),
        3 CreateSnapshot(Box<Snapshot>, Vec<Name>), 4 DeleteSnapshot(ShortId), 5 RegisterImage(Box<Image>),
        6 DeregisterImage(ShortId), 7 RunInstance(Box<Instance>, Vec<Volume>),
    }
    SnapshotState { 0 Pending, 1 Completed, 2 Error, }
    Permission { 0 All, 1 Account(AccountId), }
    ImageState {
        0 Pending, 1 Available, 2 Invalid, 3 Deregistered, 4 Transient, 5 Failed, 6 Error, 7 Disabled,
    }
    Architecture { 0 I386, 1 X86_64, 2 Arm64, 3 X86_64Mac, 4 Arm64Mac, }
    Virtualization { 0 Hvm, 1 Paravirtual, }
    BootMode { 0 LegacyBios, 1 Uefi, 2 UefiPreferred, }
    RootDevice { 0 Ebs, 1 InstanceStore, }
    VolumeType { 0 Gp3, 1 Gp2, 2 Io1, 3 Io2, 4 St1, 5 Sc1, 6 Standard, }
    Target { 0 Ebs(Option<ShortId>, u64, VolumeType, Option<u32>, bool), 1 Ephemeral(u8), }
    InstanceState { 0 Stopped, 1 Running, 2 Terminated, }
    VolumeState { 0 Available, 1 InUse, }
    PackState { 0 Live, 1 Condemned(Time), 2 Sweeping, }
}

// ---- Preamble and envelope

fn preamble(bytes: &[u8], magic: &[u8; 8]) -> Result<()> {
    ensure(bytes.starts_with(magic), "the magic is another")?;
    reserved(at::<u16>(bytes, 8)? == 1, "version")?;
    reserved(at::<u8>(bytes, 10)? == 0, "encryption suite")?;
    reserved(at::<u8>(bytes, 11)? == 0, "flags")
}

/// Checks that the last 32 bytes are the hash of what is before them, and returns both.
fn sealed<'a>(bytes: &'a [u8], context: &str) -> Result<(&'a [u8], Hash)> {
    let (content, hash) = bytes.split_last_chunk::<32>().ok_or("damaged: ends too early")?;
    ensure(keyed(context, &[content]) == *hash, "the hash is another")?;
    Ok((content, *hash))
}

fn envelope<T: Value>(bytes: &[u8], magic: &[u8; 8], context: &str) -> Result<(T, Hash)> {
    preamble(bytes, magic)?;
    let (content, hash) = sealed(bytes, context)?;
    let length: u32 = at(content, 12)?;
    let body = content.get(16..).ok_or("damaged: ends too early")?;
    ensure(body.len() as u64 == u64::from(length), "the body has another length")?;
    Ok((value(body)?, hash))
}

/// Decodes a region file. The hash is the object's.
pub fn region_file(bytes: &[u8]) -> Result<(RegionHeader, Hash)> {
    let (header, hash): (RegionHeader, _) = envelope(bytes, b"IMGSREGN", "imgstore 2026-11 region file v1")?;
    let Chunker { min_blocks, avg_blocks, max_blocks, zero_tail_bytes } = header.chunker;
    let sizes_fit = 1 <= min_blocks && min_blocks <= avg_blocks && avg_blocks <= max_blocks;
    ensure(sizes_fit && max_blocks <= 256 && zero_tail_bytes <= 4096, "the chunker's parameters")?;
    ensure((1..=12).contains(&header.zstd_level), "the zstd level")?;
    ensure((16_384..=67_108_864).contains(&header.pack_bytes), "the size of packs")?;
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let name = header.name.as_bytes();
    let name_fits = (1..=63).contains(&name.len()) && !name.starts_with(b"-");
    ensure(name_fits && name.iter().all(|byte| letters(*byte)), "the region's name")?;
    Ok((header, hash))
}

/// Decodes a log record. The hash is the object's.
pub fn record(bytes: &[u8]) -> Result<(StoredRecord, Hash)> {
    envelope(bytes, b"IMGSRECD", "imgstore 2026-11 log record v1")
}

/// Decodes a list. The hash is the object's.
pub fn list(bytes: &[u8]) -> Result<(Vec<Op>, Hash)> {
    envelope(bytes, b"IMGSLIST", "imgstore 2026-11 list v1")
}

/// Decodes a checkpoint. The hash is the object's.
pub fn checkpoint(bytes: &[u8]) -> Result<(Checkpoint, Hash)> {
    envelope(bytes, b"IMGSCKPT", "imgstore 2026-11 checkpoint v1")
}

// ---- Chunking

fn mix(mut v: u64) -> u64 {
    v ^= v >> 33;
    v = v.wrapping_mul(0xff51_afd7_ed55_8ccd);
    v ^= v >> 33;
    v = v.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    v ^ (v >> 33)
}

fn fingerprint(block: &[u8; BLOCK]) -> u64 {
    const M: u64 = 0x9e37_79b9_7f4a_7c15;
    if all_zero(block) {
        return 0;
    }
    let mut lanes = [1, 2, 3, 4, 5, 6, 7, 8].map(|place| M.wrapping_mul(place));
    for group in block.as_chunks::<8>().0.as_chunks::<8>().0 {
        for (lane, word) in lanes.iter_mut().zip(group) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(M).rotate_left(29);
        }
    }
    lanes.iter().fold(0, |f, lane| mix(f ^ lane))
}

/// A chunk reference of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRef {
    /// The first block.
    pub first: u64,
    /// How many blocks.
    pub blocks: u16,
    /// The chunk's id.
    pub id: Hash,
}

/// Cuts a volume as a writer must, so that its chunks are found again.
pub fn cut(volume: &[u8], chunker: &Chunker) -> Result<Vec<ChunkRef>> {
    let threshold = u64::MAX.checked_div(u64::from(chunker.avg_blocks)).ok_or("avg_blocks is 0")?;
    let blocks: Vec<[u8; BLOCK]> = volume.chunks(BLOCK).map(|piece| {
        let mut block = [0; BLOCK];
        block.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
        block
    });
    let mut references: Vec<ChunkRef> = Vec::new();
    let mut end_chunk = |first: usize, chunk: &[[u8; BLOCK]]| -> Result<()> {
        let blocks = u16::try_from(chunk.len()).map_err(|_| "max_blocks was not obeyed")?;
        if blocks > 0 {
            let id = *blake3::hash(chunk.as_flattened()).as_bytes();
            references.push(ChunkRef { first: first as u64, blocks, id });
        }
        Ok(())
    };
    let (mut begin, mut place, mut previous) = (0, 0, 0u64);
    while let Some(block) = blocks.get(place) {
        let zeros = blocks[place..].iter().take_while(|block| all_zero(*block)).count();
        if zeros >= 4 {
            end_chunk(begin, &blocks[begin..place])?;
            place += zeros;
            (begin, previous) = (place, 0);
            continue;
        }
        // The short run that begins here, or this one content block.
        let f = fingerprint(block);
        place += 1;
        let length = place - begin;
        let tail = usize::from(chunker.zero_tail_bytes);
        let at_edge = mix(previous.rotate_left(23) ^ f) <= threshold
            || (tail != 0 && block.iter().rev().take(tail).all(|byte| *byte == 0));
        previous = f;
        if length >= usize::from(chunker.max_blocks) || (length >= usize::from(chunker.min_blocks) && at_edge) {
            end_chunk(begin, &blocks[begin..place])?;
            begin = place;
        }
    }
    end_chunk(begin, &blocks[begin..])?;
    Ok(references)
}

// ---- Packs

/// An entry of a trailer or segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The chunk's id.
    pub id: Hash,
    /// 0 in a trailer; in a segment the place in the pack table.
    pub pack: u32,
    /// Offset of the frame's header in the pack.
    pub offset: u32,
    /// Stored length of the frame's body.
    pub stored: u32,
    /// Raw length in blocks.
    pub blocks: u16,
    /// The codec.
    pub codec: u8,
}

fn entries(bytes: &[u8], last: Option<Hash>) -> Result<Vec<Entry>> {
    let mut last = last;
    let mut entries = Vec::new();
    for bytes in bytes.chunks(ENTRY) {
        let mut reader = Reader(bytes);
        let entry = Entry {
            id: reader.get()?,
            pack: reader.get()?,
            offset: reader.get()?,
            stored: reader.get()?,
            blocks: reader.get()?,
            codec: reader.get()?,
        };
        reserved(reader.get::<u8>()? == 0, "an entry's flags")?;
        reserved(entry.codec <= 1, "an entry's codec")?;
        ensure(last.is_none_or(|last| last < entry.id), "entries do not ascend")?;
        ensure((1..=256).contains(&entry.blocks), "an entry's length in blocks")?;
        ensure((1..=1 << 20).contains(&entry.stored), "an entry's stored length")?;
        last = Some(entry.id);
        entries.push(entry);
    }
    Ok(entries)
}

/// A pack, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFile {
    /// The region.
    pub region: [u8; 16],
    /// The pack's name.
    pub name: Name,
    /// The trailer.
    pub entries: Vec<Entry>,
    /// Raw bytes of all chunks.
    pub raw_bytes: u64,
    /// The footer's hash.
    pub hash: Hash,
    /// The chunks' contents.
    pub chunks: BTreeMap<Hash, Vec<u8>>,
}

fn frame(bytes: &[u8], entry: &Entry) -> Result<Vec<u8>> {
    let (header, rest) = bytes.split_at_checked(12).ok_or("damaged: a frame ends too early")?;
    let body = Reader(rest).take(entry.stored as usize)?;
    ensure(at::<u32>(header, 0)? == entry.stored, "a frame's stored length is not its entry's")?;
    ensure(at::<u16>(header, 4)? == entry.blocks, "a frame's raw length is not its entry's")?;
    ensure(at::<u8>(header, 6)? == entry.codec, "a frame's codec is not its entry's")?;
    reserved(at::<u8>(header, 7)? == 0, "a frame's flags")?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), body);
    ensure(at::<u32>(header, 8)? == crc, "a frame's crc32c")?;
    let raw_bytes = usize::from(entry.blocks) * BLOCK;
    let raw = match entry.codec {
        0 => body.to_vec(),
        1 => {
            use zstd::zstd_safe::{find_frame_compressed_size, get_dict_id_from_frame, get_frame_content_size};
            ensure(body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "not a zstd frame")?;
            ensure(find_frame_compressed_size(body) == Ok(body.len()), "not exactly one zstd frame")?;
            let declared = get_frame_content_size(body).ok().flatten();
            ensure(declared == Some(raw_bytes as u64), "the zstd frame's content size")?;
            ensure(get_dict_id_from_frame(body).is_none(), "the zstd frame wants a dictionary")?;
            zstd::bulk::decompress(body, raw_bytes).map_err(|error| format!("damaged: zstd: {error}"))?
        }
        codec => return Err(format!("a newer imgstore is needed: codec {codec}")),
    };
    ensure(raw.len() == raw_bytes, "a chunk's length")?;
    ensure(*blake3::hash(&raw).as_bytes() == entry.id, "a chunk's content is not its id")?;
    Ok(raw)
}

/// Decodes a pack with all its frames.
pub fn pack(bytes: &[u8]) -> Result<PackFile> {
    preamble(bytes, b"IMGSPACK")?;
    ensure((128..=128 << 20).contains(&bytes.len()), "the pack's length")?;
    let (content, footer) = bytes.split_at(bytes.len() - 64);
    reserved(at::<u32>(bytes, 12)? == 0 && at::<u64>(bytes, 56)? == 0, "the pack's header")?;
    ensure(footer.starts_with(b"IMGSPEND"), "the footer's magic is another")?;
    reserved(at::<u64>(footer, 24)? == 0, "the footer")?;
    let (count, trailer_at): (u32, u32) = (at(footer, 8)?, at(footer, 12)?);
    let trailer = content.get(trailer_at as usize..).ok_or("damaged: the trailer's offset")?;
    ensure(trailer_at >= 64, "the trailer's offset")?;
    ensure(count > 0 && trailer.len() as u64 == u64::from(count) * ENTRY as u64, "the number of frames")?;
    let hash: Hash = at(footer, 32)?;
    let context = "imgstore 2026-11 pack trailer v1";
    ensure(keyed(context, &[&bytes[..64], trailer, &footer[..32]]) == hash, "the pack's hash is another")?;

    let entries = entries(trailer, None)?;
    let mut by_offset: Vec<&Entry> = entries.iter().collect();
    by_offset.sort_by_key(|entry| entry.offset);
    let mut end = 64u64;
    let mut chunks = BTreeMap::new();
    for entry in by_offset {
        ensure(entry.pack == 0, "a trailer's entry with a pack number")?;
        ensure(u64::from(entry.offset) == end, "a gap or overlap of frames")?;
        end += 12 + u64::from(entry.stored);
        ensure(end <= u64::from(trailer_at), "a frame in the trailer")?;
        chunks.insert(entry.id, frame(&bytes[entry.offset as usize..trailer_at as usize], entry)?);
    }
    ensure(end == u64::from(trailer_at), "a gap before the trailer")?;
    let raw_bytes: u64 = at(footer, 16)?;
    ensure(chunks.values().map(|chunk| chunk.len() as u64).sum::<u64>() == raw_bytes, "the sum of raw bytes")?;
    Ok(PackFile { region: at(bytes, 16)?, name: at(bytes, 32)?, entries, raw_bytes, hash, chunks })
}

// ---- Index segments

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The region.
    pub region: [u8; 16],
    /// The entries of all pages.
    pub entries: Vec<Entry>,
    /// The pack table.
    pub packs: Vec<Name>,
    /// The hash at its end.
    pub hash: Hash,
}

fn page(bytes: &[u8], number: u64) -> Result<&[u8]> {
    let begin = usize::try_from(number).ok().and_then(|number| number.checked_mul(BLOCK));
    let page = begin.and_then(|begin| bytes.get(begin..)?.get(..BLOCK)).ok_or("damaged: a page is missing")?;
    ensure(at::<u32>(page, 4092)? == crc32c::crc32c(&page[..4092]), "a page's crc32c")?;
    Ok(page)
}

/// Decodes a segment.
pub fn segment(bytes: &[u8]) -> Result<Segment> {
    preamble(bytes, b"IMGSSEGM")?;
    let (content, hash) = sealed(bytes, "imgstore 2026-11 index segment v1")?;
    let header = page(content, 0)?;
    reserved(all_zero(&header[48..4092]), "the segment's header page")?;
    let (pack_count, entry_count): (u32, u64) = (at(header, 12)?, at(header, 16)?);
    let page_count: u32 = at(header, 24)?;
    ensure(u64::from(page_count) == entry_count.div_ceil(85), "the number of pages")?;
    let mut found: Vec<Entry> = Vec::new();
    for number in 0..page_count {
        let page = page(content, u64::from(number) + 1)?;
        let used: u32 = at(page, 4080)?;
        ensure(u64::from(used) == (entry_count - found.len() as u64).min(85), "the entries of a page")?;
        ensure(at::<u32>(page, 4084)? == number, "the number of a page")?;
        reserved(at::<u32>(page, 4088)? == 0, "a page's end")?;
        let (used, unused) = page[..4080].split_at(used as usize * ENTRY);
        reserved(all_zero(unused), "a page's unused entries")?;
        found.extend(entries(used, found.last().map(|entry| entry.id))?);
    }
    let table = content.get((page_count as usize + 1) * BLOCK..).ok_or("damaged: no pack table")?;
    ensure(table.len() as u64 == u64::from(pack_count) * 24, "the pack table's length")?;
    ensure(at::<u32>(header, 28)? == crc32c::crc32c(table), "the pack table's crc32c")?;
    let packs = table.chunks(24).map(value).collect::<Result<Vec<Name>>>()?;
    ensure(packs.is_sorted_by(|one, next| one < next), "the pack table does not ascend")?;
    ensure(found.iter().all(|entry| entry.pack < pack_count), "an entry of no pack of the table")?;
    Ok(Segment { region: at(header, 32)?, entries: found, packs, hash })
}

// ---- Manifests

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The volume's length.
    pub volume_bytes: u64,
    /// Where which chunk stands.
    pub chunks: Vec<ChunkRef>,
    /// The hash at its end.
    pub hash: Hash,
}

/// Decodes a manifest.
pub fn manifest(bytes: &[u8]) -> Result<Manifest> {
    preamble(bytes, b"IMGSMANI")?;
    let (content, hash) = sealed(bytes, "imgstore 2026-11 manifest v1")?;
    reserved(at::<u32>(content, 12)? == 0 && at::<u64>(content, 32)? == 0, "the manifest's header")?;
    let (volume_bytes, count): (u64, u64) = (at(content, 16)?, at(content, 24)?);
    ensure(volume_bytes > 0, "a volume without bytes")?;
    let table = content.get(40..).ok_or("damaged: ends too early")?;
    ensure(count.checked_mul(40) == Some(table.len() as u64), "the number of chunk references")?;
    let mut end = 0;
    let mut chunks = Vec::new();
    for reference in table.chunks(40) {
        let place: u64 = at(reference, 0)?;
        // Six bytes of block number and two of length are one word: the length is the upper 16 bits.
        let (first, blocks) = (place & 0xffff_ffff_ffff, at::<u16>(reference, 6)?);
        ensure((1..=256).contains(&blocks), "a reference's length")?;
        ensure(first >= end, "references do not ascend")?;
        end = first + u64::from(blocks);
        ensure(end <= volume_bytes.div_ceil(BLOCK as u64), "a reference after the volume's end")?;
        chunks.push(ChunkRef { first, blocks, id: at(reference, 8)? });
    }
    Ok(Manifest { volume_bytes, chunks, hash })
}

// ---- Log

fn apply(catalog: &mut Catalog, op: Op) -> Result<()> {
    let usable = |catalog: &Catalog, packs: &[Name]| {
        let good = |name| catalog.packs.get(name).is_some_and(|pack| pack.state != PackState::Sweeping);
        ensure(packs.iter().all(good), "an operation on a pack that is not there")
    };
    let revive = |catalog: &mut Catalog, packs: &[Name]| {
        let named = catalog.packs.iter_mut().filter(|(name, _)| packs.contains(name));
        named.for_each(|(_, pack)| pack.state = PackState::Live);
    };
    match op {
        Op::NoOp => {}
        Op::RegisterPack(record) => {
            usable(catalog, &record.bases)?;
            revive(catalog, &record.bases);
            let pack = Pack { record, state: PackState::Live };
            ensure(catalog.packs.insert(pack.record.name.clone(), pack).is_none(), "a pack twice")?;
        }
        Op::RegisterSegment(record) => {
            ensure(!catalog.segments.contains_key(&record.name), "a segment twice")?;
            for name in &record.replaces {
                ensure(catalog.segments.remove(name).is_some(), "a replaced segment that is not there")?;
            }
            catalog.segments.insert(record.name.clone(), record);
        }
        Op::CreateSnapshot(snapshot, packs) => {
            usable(catalog, &packs)?;
            revive(catalog, &packs);
            ensure(catalog.snapshots.insert(snapshot.id, *snapshot).is_none(), "a snapshot twice")?;
        }
        Op::DeleteSnapshot(id) => {
            let uses = |device: &Device| matches!(device.target, Target::Ebs(Some(used), ..) if used == id);
            let used = catalog.images.values().any(|image| image.devices.iter().any(uses));
            ensure(!used, "a deleted snapshot that an image uses")?;
            let snapshot = catalog.snapshots.remove(&id).ok_or("damaged: no such snapshot")?;
            if catalog.volumes.values().any(|volume| volume.snapshot_id == Some(id)) {
                catalog.retained_manifests.insert(id, snapshot);
            }
        }
        Op::RegisterImage(image) => {
            let exists = |device: &Device| match &device.target {
                Target::Ebs(Some(id), ..) => catalog.snapshots.contains_key(id),
                _ => true,
            };
            ensure(image.devices.iter().all(exists), "an image of a snapshot that is not there")?;
            let same = |other: &Image| (&other.owner, &other.name) == (&image.owner, &image.name);
            ensure(!catalog.images.values().any(same), "two images of one owner and name")?;
            ensure(catalog.images.insert(image.id, *image).is_none(), "an image twice")?;
        }
        Op::DeregisterImage(id) => {
            ensure(catalog.images.remove(&id).is_some(), "no such image")?;
        }
        Op::RunInstance(instance, volumes) => {
            for volume in volumes {
                let exists = volume.snapshot_id.is_none_or(|id| catalog.snapshots.contains_key(&id));
                ensure(exists, "a volume of a snapshot that is not there")?;
                ensure(catalog.volumes.insert(volume.id, volume).is_none(), "a volume twice")?;
            }
            ensure(catalog.instances.insert(instance.id, *instance).is_none(), "an instance twice")?;
        }
    }
    Ok(())
}

fn object(root: &Path, path: &str) -> Result<Vec<u8>> {
    std::fs::read(root.join(path)).map_err(|error| format!("{path}: {error}"))
}

/// Replays the whole log of a directory region: the region file, the last record's hash, and the catalogue.
pub fn replay(root: &Path) -> Result<(RegionHeader, Hash, Catalog)> {
    let (header, mut previous) = region_file(&object(root, "region")?)?;
    let mut catalog: Catalog = value(&[0; 9 * 8])?; // sequence 0, and eight times nothing
    for sequence in 1.. {
        let path = record_path(sequence);
        let bytes = match std::fs::read(root.join(&path)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(format!("{path}: {error}")),
        };
        let (record, hash) = record(&bytes)?;
        ensure(record.sequence == sequence, "a record has another's sequence")?;
        ensure(record.previous == previous, "a record does not follow the one before it")?;
        ensure(!catalog.fenced_sessions.contains(&record.author.session), "a record of a fenced session")?;
        let operations = match record.body {
            Body::Inline(operations) => operations,
            Body::Spilled(name, expected) => {
                let (operations, hash) = list(&object(root, &object_path("lists", &name))?)?;
                ensure(hash == expected, "a list is not the one its record names")?;
                operations
            }
        };
        for operation in operations {
            apply(&mut catalog, operation).map_err(|error| format!("{path}: {error}"))?;
        }
        (previous, catalog.sequence) = (hash, sequence);
    }
    Ok((header, previous, catalog))
}

/// Reads the manifest of a snapshot and compares it with what the log says of it.
pub fn read_manifest(root: &Path, record: &ManifestRecord) -> Result<Manifest> {
    let bytes = object(root, &object_path("manifests", &record.name))?;
    let manifest = manifest(&bytes)?;
    let as_recorded = (bytes.len() as u64, manifest.hash, manifest.chunks.len() as u64);
    ensure(as_recorded == (record.len, record.hash, record.chunks), "the manifest is not the recorded one")?;
    Ok(manifest)
}

fn read_segment(root: &Path, region: [u8; 16], record: &SegmentRecord) -> Result<Segment> {
    let bytes = object(root, &object_path("index", &record.name))?;
    let segment = segment(&bytes)?;
    let as_recorded = (bytes.len() as u64, segment.hash, segment.entries.len() as u64);
    ensure(as_recorded == (record.len, record.hash, record.entries), "the segment is not the recorded one")?;
    ensure(segment.region == region, "a segment of another region")?;
    Ok(segment)
}

fn read_pack(root: &Path, region: [u8; 16], record: &PackRecord) -> Result<PackFile> {
    let bytes = object(root, &object_path("packs", &record.name))?;
    let pack = pack(&bytes)?;
    let found = (bytes.len() as u64, pack.hash, pack.entries.len() as u64, pack.raw_bytes);
    let recorded = (record.len, record.trailer_hash, u64::from(record.frames), record.raw_bytes);
    ensure(found == recorded, "the pack is not the recorded one")?;
    ensure(pack.region == region && pack.name == record.name, "a pack of another region or name")?;
    Ok(pack)
}

/// Reads the volume of a snapshot out of a directory region. The id is 17 hex digits, after any prefix and `-`.
pub fn read_volume(root: &Path, snapshot_id: &str) -> Result<Vec<u8>> {
    let (header, _, catalog) = replay(root)?;
    let digits = snapshot_id.rsplit('-').next().unwrap_or_default();
    let id = u128::from_str_radix(digits, 16).map_err(|error| format!("{snapshot_id}: {error}"))?;
    let snapshot = catalog.snapshots.get(&ShortId(id)).ok_or_else(|| format!("no snapshot {snapshot_id}"))?;
    let manifest = read_manifest(root, &snapshot.manifest)?;
    ensure(manifest.volume_bytes == snapshot.volume_bytes, "the snapshot has another length")?;

    let mut places: BTreeMap<Hash, (Name, Entry)> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    for record in catalog.segments.values() {
        let segment = read_segment(root, header.id, record)?;
        for entry in segment.entries {
            let pack = segment.packs.get(entry.pack as usize).ok_or("damaged: no such pack")?;
            if catalog.packs.contains_key(pack) {
                places.insert(entry.id, (pack.clone(), Entry { pack: 0, ..entry }));
            }
        }
        listed.extend(segment.packs);
    }
    let mut packs = BTreeMap::new();
    for (name, pack) in catalog.packs.iter().filter(|(_, pack)| pack.state != PackState::Sweeping) {
        let pack = read_pack(root, header.id, &pack.record)?;
        if !listed.contains(name) {
            let entries = pack.entries.iter().cloned();
            places.extend(entries.map(|entry| (entry.id, (name.clone(), entry))));
        }
        packs.insert(name, pack);
    }

    let length = usize::try_from(manifest.volume_bytes).map_err(|_| "the volume is too long")?;
    let mut volume = Vec::new();
    volume.try_reserve_exact(length).map_err(|error| format!("the volume is too long: {error}"))?;
    volume.resize(length, 0);
    for ChunkRef { first, blocks, id } in manifest.chunks {
        let (name, entry) = places.get(&id).ok_or("damaged: a chunk is in no pack")?;
        let pack = packs.get(name).ok_or("damaged: a chunk's pack is not there")?;
        ensure(entry.blocks == blocks, "a reference's length is not its chunk's")?;
        ensure(pack.entries.contains(entry), "a segment's entry is not the trailer's")?;
        let chunk = pack.chunks.get(&id).ok_or("damaged: a chunk is not in its pack")?;
        // The last chunk may reach over the volume's end, with zeros.
        volume.iter_mut().skip(first as usize * BLOCK).zip(chunk).for_each(|(to, from)| *to = *from);
        let inside = length.saturating_sub(first as usize * BLOCK).min(chunk.len());
        ensure(all_zero(&chunk[inside..]), "bytes after the volume's end")?;
    }
    Ok(volume)
}
