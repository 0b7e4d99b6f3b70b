//! A second decoder of imgstore's format, written from `docs/FORMAT.md` alone; it shares no code with the
//! library. Where the two disagree, one of them or the page is wrong. Sections are in the page's order.

#![expect(clippy::enum_variant_names, reason = "the page calls it NoOp")]
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use zstd::zstd_safe::{find_frame_compressed_size, get_dict_id_from_frame, get_frame_content_size};

/// What every function here returns: a value, or a sentence about what is wrong.
pub type Result<T> = std::result::Result<T, String>;
/// A `ChunkId` or `Hash`.
pub type Hash = [u8; 32];
/// A `RegionId` or `SessionId`.
pub type Id16 = [u8; 16];

const BLOCK: usize = 4096;

fn ensure(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("damaged: {what}")) }
}

fn reserved(as_written: bool, what: &str) -> Result<()> {
    if as_written { Ok(()) } else { Err(format!("a newer imgstore is needed: {what}")) }
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn b3(context: &str, parts: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    parts.iter().fold(&mut hasher, |hasher, part| hasher.update(part));
    *hasher.finalize().as_bytes()
}

// ---- Objects and names

/// The path of a pack, segment, manifest or list in a region.
pub fn object_path(kind: &str, name: &Name) -> String {
    let session: String = name.session.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}/{session}/{:06}", name.number)
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
}

/// Something that has an encoding.
pub trait Value: Sized {
    /// Reads one from the front of the bytes.
    fn read(from: &mut Reader<'_>) -> Result<Self>;
}

/// Decodes bytes that are exactly one value.
pub fn value<T: Value>(bytes: &[u8]) -> Result<T> {
    let mut reader = Reader(bytes);
    let value = T::read(&mut reader)?;
    ensure(reader.0.is_empty(), "bytes after the value")?;
    Ok(value)
}

/// Decodes the value that begins at an offset.
fn at<T: Value>(bytes: &[u8], offset: usize) -> Result<T> {
    T::read(&mut Reader(bytes.get(offset..).unwrap_or_default()))
}

macro_rules! values {
    ($([$($generics:tt)*] $type:ty, $from:ident => $read:expr;)*) => { $(
        impl<$($generics)*> Value for $type {
            fn read($from: &mut Reader<'_>) -> Result<Self> {
                $read
            }
        }
    )* };
}

values! {
    [const N: usize] [u8; N], from => from.take(N)?.try_into().map_err(|_| "take gave too few".to_owned());
    [] u8, from => Value::read(from).map(u8::from_le_bytes);
    [] u16, from => Value::read(from).map(u16::from_le_bytes);
    [] u32, from => Value::read(from).map(u32::from_le_bytes);
    [] u64, from => Value::read(from).map(u64::from_le_bytes);
    [] u128, from => Value::read(from).map(u128::from_le_bytes);
    [] (), _from => Ok(());
    [] bool, from => { let byte: u8 = Value::read(from)?; ensure(byte <= 1, "a bool").map(|()| byte == 1) };
    [] ShortId, from => { let id = u128::read(from)?; ensure(id < 1 << 68, "id").map(|()| ShortId(id)) };
    [] AccountId, src => u64::read(src).and_then(|n| ensure(n < 10u64.pow(12), "id").map(|()| AccountId(n)));
    [] String, from => {
        let length = usize::try_from(u64::read(from)?).map_err(|_| "damaged: a string's length")?;
        String::from_utf8(from.take(length)?.to_vec()).map_err(|_| "damaged: not UTF-8".to_owned())
    };
    // Collecting results grows with the items that are there, not with what the count claims.
    [T: Value] Vec<T>, from => { let count = u64::read(from)?; (0..count).map(|_| T::read(from)).collect() };
    [T: Value] Option<T>, from => if bool::read(from)? { T::read(from).map(Some) } else { Ok(None) };
    [T: Value] Box<T>, from => Value::read(from).map(Box::new);
    [K: Value + Ord, V: Value] BTreeMap<K, V>, from => {
        let count: u64 = Value::read(from)?;
        let mut map = BTreeMap::new();
        for _ in 0..count {
            let key: K = Value::read(from)?;
            ensure(map.last_key_value().is_none_or(|(last, _)| *last < key), "keys do not ascend")?;
            map.insert(key, Value::read(from)?);
        }
        Ok(map)
    };
    [K: Value + Ord] BTreeSet<K>, from => Ok(BTreeMap::<K, ()>::read(from)?.into_keys().collect());
    [T: Value] Binned<T>, from => Ok(Binned { item: Value::read(from)?, stay: Value::read(from)? });
    [] ChunkRef, from => {
        let mut first = [0; 8];
        first[..6].copy_from_slice(from.take(6)?);
        Ok(ChunkRef { first: u64::from_le_bytes(first), blocks: Value::read(from)?, id: Value::read(from)? })
    };
}

/// An `ImageId`, `SnapshotId`, `VolumeId`, `InstanceId`, `ReservationId`, `TemplateId` or `RuleId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShortId(pub u128);
/// An `AccountId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountId(pub u64);
/// `Binned`, as the page has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binned<T> {
    /// `item`.
    pub item: T,
    /// `stay`.
    pub stay: BinStay,
}

macro_rules! declare {
    ($($name:ident { $($field:ident $type:ty,)* })*) => { $(
        #[doc = concat!("`", stringify!($name), "`, as the page has it.")]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name { $(#[doc = concat!("`", stringify!($field), "`.")] pub $field: $type,)* }
    )* };
}

macro_rules! structs {
    ($($name:ident { $($field:ident $type:ty,)* })*) => {
        declare! { $($name { $($field $type,)* })* }
        values! { $([] $name, from => Ok($name { $($field: Value::read(from)?,)* });)* }
    };
}

macro_rules! choices {
    ($($name:ident { $($number:literal $variant:ident $(($($type:ty),*))?,)* })*) => { $(
        #[doc = concat!("`", stringify!($name), "`, as the page has it.")]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $(#[doc = concat!("Number ", $number, ".")] $variant $(($($type),*))?,)* }
        values! { [] $name, from => match u32::read(from)? {
            $($number => Ok($name::$variant $(($(<$type>::read(from)?),*))?),)*
            other => Err(format!("damaged, or a newer imgstore is needed: {} {other}", stringify!($name))),
        }; }
    )* };
}

declare! {
    ChunkRef { first u64, blocks u16, id Hash, }
    PackFile { header PackHeader, entries Vec<Entry>, footer Footer, chunks BTreeMap<Hash, Vec<u8>>,
        deltas BTreeMap<Hash, Delta>, }
    Segment { header SegmentHeader, entries Vec<Entry>, packs Vec<Name>, hash Hash, }
    Manifest { header ManifestHeader, chunks Vec<ChunkRef>, hash Hash, }
}

structs! {
    Preamble { magic [u8; 8], version u16, suite u8, flags u8, }
    PackHeader { preamble Preamble, zero u32, region Id16, name Name, key u64, }
    FrameHeader { stored u32, blocks u16, codec u8, flags u8, crc u32, }
    Entry { id Hash, pack u32, offset u32, stored u32, blocks u16, codec u8, flags u8, }
    Footer { magic [u8; 8], frames u32, trailer_at u32, raw_bytes u64, deltas u32, effort u8, zero [u8; 3], hash Hash, }
    SegmentHeader { preamble Preamble, packs u32, entries u64, pages u32, table_crc u32, region Id16,
        filter_pages u32, }
    PageEnd { entries u32, number u32, zero u32, crc u32, }
    ManifestHeader { preamble Preamble, zero u32, volume_bytes u64, chunks u64, key u64, }
    RegionHeader { id Id16, name String, provider AccountId, created u64, chunker Chunker, zstd_level u8,
        pack_bytes u32, }
    Chunker { min_blocks u16, avg_blocks u16, max_blocks u16, zero_tail_bytes u16, }
    StoredRecord { sequence u64, previous Hash, nonce Id16, time u64, author Author, body Body, }
    Author { account AccountId, session Id16, } Name { session Id16, number u64, }
    PackRecord { name Name, len u64, frames u32, raw_bytes u64, trailer_hash Hash, bases Vec<Name>, }
    SegmentRecord { name Name, len u64, entries u64, hash Hash, replaces Vec<Name>, partial Vec<Name>, }
    ManifestRecord { name Name, len u64, hash Hash, chunks u64, }
    Snapshot { id ShortId, owner AccountId, description String, volume_bytes u64, data_bytes u64,
        state SnapshotState, created u64, tags Vec<Tag>, parent Option<ShortId>, volume Option<ShortId>,
        source Option<SnapshotSource>, create_volume_permissions Vec<Permission>,
        client_token Option<ClientToken>, manifest ManifestRecord, }
    SnapshotSource { region_id Id16, region String, snapshot_id ShortId, sequence u64, }
    Template { id ShortId, owner AccountId, volume_bytes u64, data_bytes u64, created u64,
        manifest ManifestRecord, }
    Tag { key String, value String, } Device { device_name String, target Target, }
    ClientToken { token String, request Hash, } BinStay { since u64, until u64, }
    Image { id ShortId, name String, description String, owner AccountId, state ImageState, machine Machine,
        root_device_name String, template Option<ShortId>, devices Vec<Device>,
        launch_permissions Vec<Permission>, product_codes Vec<String>, tags Vec<Tag>, created u64,
        deprecation Option<u64>, deregistration_protection DeregistrationProtection,
        source Option<ImageSource>, source_instance Option<ShortId>, predecessor Option<ShortId>,
        client_token Option<ClientToken>, }
    Machine { architecture Architecture, platform Option<String>, virtualization_type Virtualization,
        boot_mode Option<BootMode>, tpm_support Option<String>, ena_support bool,
        imds_support Option<String>, kernel_id Option<String>, ramdisk_id Option<String>, }
    ImageSource { region_id Id16, region String, image_id ShortId, owner AccountId, }
    Instance { id ShortId, owner AccountId, image_id ShortId, reservation_id ShortId, launch_index u32,
        state InstanceState, launched u64, terminated Option<u64>, machine Machine,
        product_codes Vec<String>, root_device_name String, local_disks Vec<LocalDisk>, path String,
        tags Vec<Tag>, client_token Option<ClientToken>, }
    LocalDisk { device_name String, volume_bytes u64, template_id Option<ShortId>, ephemeral Option<u8>,
        path String, }
    Volume { id ShortId, owner AccountId, volume_bytes u64, volume_type VolumeType, iops Option<u32>,
        snapshot_id Option<ShortId>, created u64, attachment Option<Attachment>, path String,
        tags Vec<Tag>, client_token Option<ClientToken>, }
    Attachment { instance_id ShortId, device_name String, delete_on_termination bool, attached u64, }
    AccountSettings { alias Option<String>, block_public_images bool, block_public_snapshots bool,
        retention_rules Vec<RetentionRule>, }
    RetentionRule { id ShortId, resource Resource, days u16, tags Vec<Tag>, }
    Catalog { sequence u64, packs BTreeMap<Name, Pack>, segments BTreeMap<Name, SegmentRecord>,
        snapshots BTreeMap<ShortId, Snapshot>, templates BTreeMap<ShortId, Template>,
        images BTreeMap<ShortId, Image>, volumes BTreeMap<ShortId, Volume>,
        instances BTreeMap<ShortId, Instance>, accounts BTreeMap<AccountId, AccountSettings>,
        binned_images BTreeMap<ShortId, Binned<Image>>, binned_snapshots BTreeMap<ShortId, Binned<Snapshot>>,
        deregistered Vec<Deregistered>, retained_snapshots BTreeMap<ShortId, Snapshot>,
        fenced_sessions BTreeSet<Id16>, }
    Deregistered { id ShortId, owner AccountId, }
    Checkpoint { record_hash Hash, catalog Catalog, } Pack { record PackRecord, state PackState, }
}

choices! {
    Op { 0 NoOp, 1 RegisterPack(PackRecord), 2 RegisterSegment(SegmentRecord),
        3 CreateSnapshot(Box<Snapshot>, Vec<Name>), 4 DeleteSnapshot(ShortId, Option<BinStay>),
        5 RegisterImage(Box<Image>), 6 DeregisterImage(ShortId, Option<BinStay>),
        7 RunInstance(Box<Instance>, Vec<Volume>), 8 ModifyImage(ShortId, ImageChange),
        9 ModifySnapshot(ShortId, SnapshotChange), 10 CreateTemplate(Box<Template>, Vec<Name>),
        11 RestoreImage(ShortId), 12 RestoreSnapshot(ShortId), 13 ExpireImage(ShortId),
        14 ExpireSnapshot(ShortId), 15 ModifyAccount(AccountId, AccountChange),
        16 CreateVolume(Box<Volume>), 17 DeleteVolume(ShortId), 18 ModifyVolume(ShortId, VolumeChange),
        19 ModifyInstance(ShortId, InstanceChange), 20 TerminateInstance(ShortId, u64),
        21 ForgetInstance(ShortId), 22 CondemnPacks(Vec<Name>, u64), 23 SweepPacks(Vec<Name>),
        24 ForgetPacks(Vec<Name>), 25 QuarantinePacks(Vec<Name>, u64), 26 FenceSessions(Vec<Id16>),
        27 ReplaceManifest(Name, ManifestRecord), 28 RebasePack(Name, Vec<Name>), }
    ImageChange { 0 LaunchPermissions(Vec<Permission>), 1 Tags(Vec<Tag>), 2 Deprecation(Option<u64>),
        3 Disable, 4 Enable, 5 Protection(DeregistrationProtection), 6 Description(String),
        7 ProductCodes(Vec<String>), }
    SnapshotChange { 0 CreateVolumePermissions(Vec<Permission>), 1 Tags(Vec<Tag>), }
    AccountChange { 0 Alias(Option<String>), 1 BlockPublicImages(bool), 2 BlockPublicSnapshots(bool),
        3 AddRule(RetentionRule), 4 RemoveRule(ShortId), }
    VolumeChange { 0 Attachment(Option<Attachment>), 1 Tags(Vec<Tag>), }
    InstanceChange { 0 Start, 1 Stop, 2 Tags(Vec<Tag>), }
    DeregistrationProtection { 0 Disabled, 1 Enabled, 2 EnabledWithCooldown, 3 CoolingDown(u64), }
    Body { 0 Inline(Vec<Op>), 1 Spilled(Name, Hash), } SnapshotState { 0 Pending, 1 Completed, 2 Error, }
    Permission { 0 All, 1 Account(AccountId), } Resource { 0 Image, 1 Snapshot, }
    ImageState { 0 Pending, 1 Available, 2 Invalid, 3 Deregistered, 4 Transient, 5 Failed, 6 Error,
        7 Disabled, }
    Architecture { 0 I386, 1 X86_64, 2 Arm64, 3 X86_64Mac, 4 Arm64Mac, }
    Virtualization { 0 Hvm, 1 Paravirtual, }
    BootMode { 0 LegacyBios, 1 Uefi, 2 UefiPreferred, } PackState { 0 Live, 1 Condemned(u64), 2 Sweeping,
        3 Quarantined(u64), }
    VolumeType { 0 Gp3, 1 Gp2, 2 Io1, 3 Io2, 4 St1, 5 Sc1, 6 Standard, }
    Target { 0 Ebs(Option<ShortId>, u64, VolumeType, Option<u32>, bool), 1 Ephemeral(u8), }
    InstanceState { 0 Pending, 1 Running, 2 Stopping, 3 Stopped, 4 ShuttingDown, 5 Terminated, }
}

// ---- Preamble and envelope

fn preamble(bytes: &[u8], magic: &[u8; 8]) -> Result<()> {
    ensure(bytes.starts_with(magic), "the magic is another")?;
    let Preamble { version, suite, flags, .. } = at(bytes, 0)?;
    reserved((version, suite, flags) == (1, 0, 0), "version, encryption suite or flags")
}

/// Checks that the last 32 bytes are the hash of what is before them, and returns both.
fn sealed<'a>(bytes: &'a [u8], context: &str) -> Result<(&'a [u8], Hash)> {
    let (content, hash) = bytes.split_last_chunk::<32>().ok_or("damaged: ends too early")?;
    ensure(b3(context, &[content]) == *hash, "the hash is another")?;
    Ok((content, *hash))
}

/// Magic and context of a kind of object in an envelope.
pub type Kind<'a> = (&'a [u8; 8], &'a str);
/// The kind of a region file: a [`RegionHeader`], which [`region_file`] checks.
pub const REGION: Kind = (b"IMGSREGN", "imgstore 2026-11 region file v1");
/// The kind of a record: a [`StoredRecord`].
pub const RECORD: Kind = (b"IMGSRECD", "imgstore 2026-11 log record v1");
/// The kind of a list: a [`Vec`] of [`Op`].
pub const LIST: Kind = (b"IMGSLIST", "imgstore 2026-11 list v1");
/// The kind of a checkpoint: a [`Checkpoint`].
pub const CHECKPOINT: Kind = (b"IMGSCKPT", "imgstore 2026-11 checkpoint v1");

/// Decodes an object in an envelope, and gives its hash with it.
pub fn envelope<T: Value>(bytes: &[u8], (magic, context): Kind) -> Result<(T, Hash)> {
    preamble(bytes, magic)?;
    let (content, hash) = sealed(bytes, context)?;
    let body = content.get(16..).ok_or("damaged: ends too early")?;
    ensure(body.len() == at::<u32>(content, 12)? as usize, "the body has another length")?;
    Ok((value(body)?, hash))
}

/// Decodes a region file, and gives its hash with it.
pub fn region_file(bytes: &[u8]) -> Result<(RegionHeader, Hash)> {
    let (header, hash): (RegionHeader, Hash) = envelope(bytes, REGION)?;
    let Chunker { min_blocks, avg_blocks, max_blocks, zero_tail_bytes } = header.chunker;
    let ascend = [1, min_blocks, avg_blocks, max_blocks, 256].is_sorted();
    ensure(ascend && zero_tail_bytes <= 4096, "the chunker's parameters")?;
    ensure((1..=12).contains(&header.zstd_level), "the zstd level")?;
    ensure((16_384..=67_108_864).contains(&header.pack_bytes), "the size of packs")?;
    let is_good = |letter| matches!(letter, 'a'..='z' | '0'..='9' | '-');
    let length_fits = (1..=63).contains(&header.name.len());
    ensure(length_fits && !header.name.starts_with('-'), "the length or beginning of the name")?;
    ensure(header.name.chars().all(is_good), "a letter of the name")?;
    Ok((header, hash))
}

// ---- Chunking

fn mix(v: u64) -> u64 {
    let step = |v: u64, factor| (v ^ (v >> 33)).wrapping_mul(factor);
    step(step(step(v, 0xff51_afd7_ed55_8ccd), 0xc4ce_b9fe_1a85_ec53), 1)
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

/// Cuts a volume as a writer does, so that its chunks are found again.
pub fn cut(volume: &[u8], chunker: &Chunker) -> Vec<ChunkRef> {
    let [min, max, tail] = [chunker.min_blocks, chunker.max_blocks, chunker.zero_tail_bytes].map(usize::from);
    let threshold = u64::MAX / u64::from(chunker.avg_blocks.max(1));
    let padded = [volume, &[0; BLOCK][..volume.len().next_multiple_of(BLOCK) - volume.len()]].concat();
    let blocks = padded.as_chunks::<BLOCK>().0;
    let mut spans = Vec::new();
    let (mut begin, mut place, mut previous) = (0, 0, 0u64);
    while let Some(block) = blocks.get(place) {
        let zeros = blocks[place..].iter().take_while(|block| all_zero(*block)).count();
        // What is left of a short run is counted again at each of its blocks, and is short too.
        if zeros >= 4 {
            spans.push((begin, place));
            place += zeros;
            (begin, previous) = (place, 0);
            continue;
        }
        let f = fingerprint(block);
        let falls_below = mix(previous.rotate_left(23) ^ f) <= threshold;
        let ends_in_zeros = tail != 0 && block.iter().rev().take(tail).all(|byte| *byte == 0);
        (place, previous) = (place + 1, f);
        if place - begin >= max || place - begin >= min && (falls_below || ends_in_zeros) {
            spans.push((begin, place));
            begin = place;
        }
    }
    spans.push((begin, place));
    spans.retain(|(begin, end)| begin < end);
    let reference = |(begin, end)| ChunkRef {
        first: begin as u64,
        blocks: u16::try_from(end - begin).unwrap_or(u16::MAX),
        id: *blake3::hash(blocks[begin..end].as_flattened()).as_bytes(),
    };
    spans.into_iter().map(reference).collect()
}

// ---- Packs

/// Decodes a table of entries.
fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let entries = bytes.chunks(48).map(value).collect::<Result<Vec<Entry>>>()?;
    for entry in &entries {
        reserved(entry.flags == 0 && entry.codec <= 2, "an entry's flags or codec")?;
        ensure((1..=256).contains(&entry.blocks), "an entry's length in blocks")?;
        ensure((1..=1 << 20).contains(&entry.stored), "an entry's stored length")?;
    }
    ensure(entries.is_sorted_by(|one, next| one.id < next.id), "entries do not ascend")?;
    Ok(entries)
}

/// Decodes bytes that are exactly one zstd frame of so many raw bytes, made with a prefix or without.
fn zstd_frame(body: &[u8], raw_bytes: usize, prefix: &[u8]) -> Result<Vec<u8>> {
    ensure(body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "not a zstd frame")?;
    ensure(find_frame_compressed_size(body) == Ok(body.len()), "not exactly one zstd frame")?;
    let declared = get_frame_content_size(body).ok().flatten();
    ensure(declared == Some(raw_bytes as u64), "the zstd frame's content size")?;
    ensure(get_dict_id_from_frame(body).is_none(), "the zstd frame wants a dictionary")?;
    ensure(!prefix.starts_with(&[0x37, 0xa4, 0x30, 0xec]), "a base that looks like a zstd dictionary")?;
    let decompressed = zstd::bulk::Decompressor::with_dictionary(prefix)
        .and_then(|mut decompressor| decompressor.decompress(body, raw_bytes));
    decompressed.map_err(|error| format!("damaged: zstd: {error}"))
}

/// A chunk that needs another to be decoded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delta {
    /// The other chunk.
    pub base: Hash,
    body: Vec<u8>,
    entry: Entry,
}

impl Delta {
    /// The chunk, from the content of its base.
    pub fn chunk(&self, base: &[u8]) -> Result<Vec<u8>> {
        let raw = zstd_frame(&self.body, usize::from(self.entry.blocks) * BLOCK, base)?;
        ensure(*blake3::hash(&raw).as_bytes() == self.entry.id, "a chunk's content is not its id")?;
        Ok(raw)
    }
}

/// What a frame decodes to.
enum Content {
    Chunk(Vec<u8>),
    Delta(Delta),
}

/// Decodes the frame at the front of the bytes.
fn frame(bytes: &[u8], entry: &Entry) -> Result<Content> {
    let FrameHeader { stored, blocks, codec, flags, crc } = at(bytes, 0)?;
    reserved(flags == 0, "a frame's flags")?;
    let agree = (stored, blocks, codec) == (entry.stored, entry.blocks, entry.codec);
    ensure(agree, "a frame's header is not what its entry says")?;
    let body = Reader(bytes.get(12..).unwrap_or_default()).take(stored as usize)?;
    ensure(crc == crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), body), "a frame's crc32c")?;
    let raw_bytes = usize::from(blocks) * BLOCK;
    if codec == 2 {
        let (base, body) = body.split_first_chunk().ok_or("damaged: a delta without a base")?;
        return Ok(Content::Delta(Delta { base: *base, body: body.to_vec(), entry: entry.clone() }));
    }
    let raw = if codec == 0 { body.to_vec() } else { zstd_frame(body, raw_bytes, &[])? };
    ensure(raw.len() == raw_bytes, "a chunk's length")?;
    ensure(*blake3::hash(&raw).as_bytes() == entry.id, "a chunk's content is not its id")?;
    Ok(Content::Chunk(raw))
}

/// Decodes a pack with all its frames.
pub fn pack(bytes: &[u8]) -> Result<PackFile> {
    preamble(bytes, b"IMGSPACK")?;
    let header: PackHeader = at(bytes, 0)?;
    reserved(header.zero == 0 && header.key == 0, "the pack's header")?;
    ensure((128..=128 << 20).contains(&bytes.len()), "the pack's length")?;
    let (content, footer_bytes) = bytes.split_at(bytes.len() - 64);
    let footer: Footer = value(footer_bytes)?;
    ensure(footer.magic == *b"IMGSPEND", "the footer's magic is another")?;
    reserved(footer.zero == [0; 3] && footer.effort <= 22, "the footer")?;
    let trailer_at = footer.trailer_at as usize;
    let trailer = content.get(trailer_at..).ok_or("damaged: the trailer's offset")?;
    let covered = [&bytes[..64], trailer, &footer_bytes[..32]];
    ensure(b3("imgstore 2026-11 pack trailer v1", &covered) == footer.hash, "the pack's hash is another")?;
    let (frames, deltas) = (u64::from(footer.frames), u64::from(footer.deltas));
    ensure(frames > 0 && trailer.len() as u64 == frames * 48 + deltas * 8, "the frames")?;
    let (table, bases) = trailer.split_at(footer.frames as usize * 48);
    let entries = entries(table)?;
    let mut by_offset: Vec<&Entry> = entries.iter().collect();
    by_offset.sort_by_key(|entry| entry.offset);
    let mut end = 64;
    let (mut chunks, mut deltas) = (BTreeMap::new(), BTreeMap::new());
    for entry in by_offset {
        reserved(entry.pack == 0, "a trailer's entry with a place in a pack table")?;
        ensure(entry.offset as usize == end, "a gap or overlap of frames")?;
        end += 12 + entry.stored as usize;
        let bytes = content.get(entry.offset as usize..end.min(trailer_at)).unwrap_or_default();
        match frame(bytes, entry)? {
            Content::Chunk(chunk) => drop(chunks.insert(entry.id, chunk)),
            Content::Delta(delta) => drop(deltas.insert(entry.id, delta)),
        }
    }
    let named = deltas.values().flat_map(|delta: &Delta| &delta.base[..8]);
    ensure(named.eq(bases), "the bases that the trailer names")?;
    ensure(end == trailer_at, "the frames do not end where the trailer begins")?;
    let raw_bytes: u64 = entries.iter().map(|entry| u64::from(entry.blocks) * BLOCK as u64).sum();
    ensure(raw_bytes == footer.raw_bytes, "the sum of raw bytes")?;
    Ok(PackFile { header, entries, footer, chunks, deltas })
}

// ---- Index segments

/// Decodes a segment.
pub fn segment(bytes: &[u8]) -> Result<Segment> {
    preamble(bytes, b"IMGSSEGM")?;
    let header: SegmentHeader = at(bytes, 0)?;
    let (content, hash) = sealed(bytes, "imgstore 2026-11 index segment v1")?;
    let pages_end = (header.pages as usize).saturating_add(1).saturating_mul(BLOCK);
    let (pages, rest) = content.split_at_checked(pages_end).ok_or("damaged: pages are missing")?;
    let filter_bytes = (header.filter_pages as usize).saturating_mul(BLOCK);
    let (filter, table) = rest.split_at_checked(filter_bytes).ok_or("damaged: filter pages are missing")?;
    ensure(u64::from(header.pages) == header.entries.div_ceil(85), "the number of pages")?;
    let mut found = Vec::new();
    ensure(at::<PageEnd>(pages, 4080)?.crc == crc32c::crc32c(&pages[..4092]), "the header page's crc32c")?;
    reserved(all_zero(&pages[52..4092]), "the segment's header page")?;
    for (place, page) in pages.as_chunks::<BLOCK>().0.iter().enumerate().skip(1) {
        let PageEnd { entries: used, number, zero, crc } = at(page, 4080)?;
        ensure(crc == crc32c::crc32c(&page[..4092]), "a page's crc32c")?;
        reserved(zero == 0, "a page's end")?;
        ensure(number as usize + 1 == place, "a page's number")?;
        let rest = header.entries - found.len() as u64 / 48; // not negative: only the last page is not full
        ensure(u64::from(used) == rest.min(85), "a page's number of entries")?;
        let (used, unused) = page[..4080].split_at(used as usize * 48);
        ensure(all_zero(unused), "a page's unused entries")?;
        found.extend(used);
    }
    let entries = entries(&found)?;
    check_filter(filter, header.pages, &entries)?;
    ensure(table.len() as u64 == u64::from(header.packs) * 24, "the pack table's length")?;
    ensure(header.table_crc == crc32c::crc32c(table), "the pack table's crc32c")?;
    let packs = table.chunks(24).map(value).collect::<Result<Vec<Name>>>()?;
    ensure(packs.is_sorted_by(|one, next| one < next), "the pack table does not ascend")?;
    ensure(entries.iter().all(|entry| entry.pack < header.packs), "an entry of no pack of the table")?;
    Ok(Segment { header, entries, packs, hash })
}

/// That a filter is well made: no entry is denied, and the numbers in the blocks are those of the entries before.
fn check_filter(filter: &[u8], first: u32, entries: &[Entry]) -> Result<()> {
    let pages = filter.as_chunks::<BLOCK>().0;
    for (number, page) in (u64::from(first)..).zip(pages) {
        let PageEnd { entries, number: found, zero, crc } = at(page, 4080)?;
        ensure(crc == crc32c::crc32c(&page[..4092]), "a filter page's crc32c")?;
        ensure(u64::from(found) == number, "a filter page's number")?;
        ensure(entries == 0 && zero == 0 && all_zero(&page[4032..4080]), "a filter page's end")?;
    }
    let leading = |entry: &Entry| u64::from_be_bytes(entry.id[..8].try_into().expect("8 bytes"));
    let block_of = |entry: &Entry| (u128::from(leading(entry)) * (pages.len() as u128 * 63)) >> 64;
    for (number, block) in pages.iter().flat_map(|page| page[..4032].as_chunks::<64>().0).enumerate() {
        let start = entries.partition_point(|entry| block_of(entry) < number as u128);
        let end = entries.partition_point(|entry| block_of(entry) <= number as u128);
        ensure(block[..4] == u32::try_from(start).expect("it is small").to_le_bytes(), "a block's number")?;
        for entry in &entries[start..end] {
            let mixed = mix(leading(entry));
            let mut bits = (0..6).map(|i| (((mixed >> (10 * i)) & 1023) * 480 / 1024) as usize);
            ensure(bits.all(|bit| block[4 + bit / 8] >> (bit % 8) & 1 == 1), "the filter denies an entry")?;
        }
    }
    Ok(())
}

// ---- Manifests

/// Decodes a manifest.
pub fn manifest(bytes: &[u8]) -> Result<Manifest> {
    preamble(bytes, b"IMGSMANI")?;
    let (content, hash) = sealed(bytes, "imgstore 2026-11 manifest v1")?;
    let header: ManifestHeader = at(content, 0)?;
    reserved(header.zero == 0 && header.key == 0, "the manifest's header")?;
    ensure(header.volume_bytes > 0, "a volume without bytes")?;
    let table = content.get(40..).unwrap_or_default();
    ensure(header.chunks.checked_mul(40) == Some(table.len() as u64), "the number of chunk references")?;
    let chunks = table.chunks(40).map(value).collect::<Result<Vec<ChunkRef>>>()?;
    let mut end = 0;
    for reference in &chunks {
        ensure((1..=256).contains(&reference.blocks), "a reference's length")?;
        ensure(reference.first >= end, "references overlap or do not ascend")?;
        end = reference.first + u64::from(reference.blocks);
    }
    ensure(end <= header.volume_bytes.div_ceil(BLOCK as u64), "a reference after the volume's end")?;
    Ok(Manifest { header, chunks, hash })
}

// ---- Log

fn insert<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V) -> Result<()> {
    ensure(map.insert(key, value).is_none(), "an operation makes what exists")
}

fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, key: &K) -> Result<V> {
    map.remove(key).ok_or_else(|| "damaged: an operation removes what does not exist".to_owned())
}

fn existing<'a, K: Ord, V>(map: &'a mut BTreeMap<K, V>, key: &K) -> Result<&'a mut V> {
    map.get_mut(key).ok_or_else(|| "damaged: an operation changes what does not exist".to_owned())
}

impl Image {
    fn snapshots(&self) -> impl Iterator<Item = ShortId> + '_ {
        self.devices.iter().filter_map(|device| match device.target {
            Target::Ebs(snapshot, ..) => snapshot,
            Target::Ephemeral(_) => None,
        })
    }

    fn uses(&self, snapshot: ShortId) -> bool {
        self.snapshots().any(|used| used == snapshot)
    }
}

impl Instance {
    fn is_terminated(&self) -> bool {
        self.state == InstanceState::Terminated
    }

    fn templates(&self) -> Vec<ShortId> {
        self.local_disks.iter().filter_map(|disk| disk.template_id).collect()
    }
}

impl Volume {
    fn is_attached_to(&self, instance: ShortId) -> bool {
        self.attachment.as_ref().is_some_and(|at| at.instance_id == instance)
    }
}

impl Catalog {
    /// Does what an operation does, if it applies. If it does not, what it leaves is not a catalogue.
    pub fn apply(&mut self, op: Op) -> Result<()> {
        match op {
            Op::NoOp => Ok(()),
            Op::RegisterPack(record) => {
                self.use_packs(&record.bases)?;
                insert(&mut self.packs, record.name.clone(), Pack { record, state: PackState::Live })
            }
            Op::RegisterSegment(record) => {
                record.replaces.iter().try_for_each(|name| remove(&mut self.segments, name).map(drop))?;
                insert(&mut self.segments, record.name.clone(), record)
            }
            Op::CreateSnapshot(snapshot, packs) => {
                let id = snapshot.id;
                let was =
                    self.binned_snapshots.contains_key(&id) || self.retained_snapshots.contains_key(&id);
                ensure(!was, "a snapshot that was deleted is made")?;
                self.use_packs(&packs)?;
                insert(&mut self.snapshots, id, *snapshot)
            }
            Op::DeleteSnapshot(id, bin) => self.delete_snapshot(id, bin),
            Op::RegisterImage(image) => {
                ensure(!self.binned_images.contains_key(&image.id), "an image in the bin is made")?;
                let has_template =
                    image.template.is_none_or(|template| self.templates.contains_key(&template));
                ensure(has_template, "an image without its template")?;
                self.add_image(*image)
            }
            Op::DeregisterImage(id, bin) => self.deregister_image(id, bin),
            Op::RunInstance(instance, volumes) => {
                ensure(!instance.is_terminated(), "a terminated instance is made")?;
                let all = instance.templates().iter().all(|template| self.templates.contains_key(template));
                ensure(all, "an instance without its template")?;
                insert(&mut self.instances, instance.id, *instance)?;
                volumes.into_iter().try_for_each(|volume| self.create_volume(volume))
            }
            Op::ModifyImage(id, change) => Self::modify_image(existing(&mut self.images, &id)?, change),
            Op::ModifySnapshot(id, change) => {
                let snapshot = existing(&mut self.snapshots, &id)?;
                match change {
                    SnapshotChange::CreateVolumePermissions(p) => snapshot.create_volume_permissions = p,
                    SnapshotChange::Tags(tags) => snapshot.tags = tags,
                }
                Ok(())
            }
            Op::CreateTemplate(template, packs) => {
                self.use_packs(&packs)?;
                insert(&mut self.templates, template.id, *template)
            }
            Op::RestoreImage(id) => {
                let image = remove(&mut self.binned_images, &id)?.item;
                self.deregistered.retain(|gone| gone.id != id);
                self.add_image(image)
            }
            Op::RestoreSnapshot(id) => {
                let snapshot = remove(&mut self.binned_snapshots, &id)?.item;
                insert(&mut self.snapshots, id, snapshot)
            }
            Op::ExpireImage(id) => {
                let template = remove(&mut self.binned_images, &id)?.item.template;
                self.end_uses(template);
                Ok(())
            }
            Op::ExpireSnapshot(id) => {
                let is_used = self.binned_images.values().any(|image| image.item.uses(id));
                ensure(!is_used, "a snapshot expires before an image in the bin")?;
                let snapshot = remove(&mut self.binned_snapshots, &id)?.item;
                self.drop_snapshot(snapshot)
            }
            Op::ModifyAccount(account, change) => self.modify_account(account, change),
            Op::CreateVolume(volume) => self.create_volume(*volume),
            Op::DeleteVolume(id) => self.delete_volume(id),
            Op::ModifyVolume(id, change) => self.modify_volume(id, change),
            Op::ModifyInstance(id, change) => self.modify_instance(id, change),
            Op::TerminateInstance(id, at) => self.terminate_instance(id, at),
            Op::ForgetInstance(id) => {
                let instance = remove(&mut self.instances, &id)?;
                ensure(instance.is_terminated(), "an instance that lives is forgotten")
            }
            Op::CondemnPacks(names, at) => {
                for name in &names {
                    let pack = existing(&mut self.packs, name)?;
                    ensure(pack.state == PackState::Live, "a pack that is not live is condemned")?;
                    pack.state = PackState::Condemned(at);
                }
                ensure(!self.hold_bases(&names, |state| *state == PackState::Live), "a base is condemned")
            }
            Op::SweepPacks(names) => {
                for name in &names {
                    let pack = existing(&mut self.packs, name)?;
                    let is_closed = matches!(pack.state, PackState::Condemned(_) | PackState::Quarantined(_));
                    ensure(is_closed, "a pack is swept that was not condemned")?;
                    pack.state = PackState::Sweeping;
                }
                ensure(!self.hold_bases(&names, |state| *state != PackState::Sweeping), "a base is swept")
            }
            Op::ForgetPacks(names) => names.iter().try_for_each(|name| {
                let pack = remove(&mut self.packs, name)?;
                ensure(pack.state == PackState::Sweeping, "a pack is forgotten that was not swept")
            }),
            Op::QuarantinePacks(names, at) => names.iter().try_for_each(|name| {
                let pack = existing(&mut self.packs, name)?;
                let is_usable = matches!(pack.state, PackState::Live | PackState::Condemned(_));
                ensure(is_usable, "a pack is quarantined that nothing uses")?;
                pack.state = PackState::Quarantined(at);
                Ok(())
            }),
            Op::FenceSessions(sessions) => {
                self.fenced_sessions.extend(sessions);
                Ok(())
            }
            Op::ReplaceManifest(lost, by) => self.replace_manifest(&lost, &by),
            Op::RebasePack(name, bases) => {
                ensure(!bases.contains(&name), "a pack is its own base")?;
                self.use_packs(&bases)?;
                let pack = existing(&mut self.packs, &name)?;
                ensure(pack.state == PackState::Live, "a pack that is not live gets other bases")?;
                pack.record.bases = bases;
                Ok(())
            }
        }
    }

    /// Whether a pack in a state that `keeps` its bases has one among these.
    fn hold_bases(&self, names: &[Name], keeps: impl Fn(&PackState) -> bool) -> bool {
        let mut bases =
            self.packs.values().filter(|pack| keeps(&pack.state)).flat_map(|pack| &pack.record.bases);
        bases.any(|base| names.contains(base))
    }

    fn replace_manifest(&mut self, lost: &Name, by: &ManifestRecord) -> Result<()> {
        let snapshots = self.snapshots.values_mut().chain(self.retained_snapshots.values_mut());
        let binned = self.binned_snapshots.values_mut().map(|binned| &mut binned.item);
        let of_snapshots = snapshots.chain(binned).map(|snapshot| &mut snapshot.manifest);
        let all = of_snapshots.chain(self.templates.values_mut().map(|template| &mut template.manifest));
        let mut replaced = 0;
        for manifest in all.filter(|manifest| manifest.name == *lost) {
            let is_alike = ManifestRecord { name: by.name.clone(), ..manifest.clone() } == *by;
            ensure(is_alike, "a manifest is replaced by another content")?;
            *manifest = by.clone();
            replaced += 1;
        }
        ensure(replaced > 0, "a manifest is replaced that nothing has")
    }

    fn use_packs(&mut self, names: &[Name]) -> Result<()> {
        for name in names {
            let pack = self.packs.get_mut(name).ok_or("damaged: a used pack")?;
            match pack.state {
                PackState::Live => {}
                PackState::Condemned(_) => {
                    pack.state = PackState::Live;
                    let bases = pack.record.bases.clone();
                    self.use_packs(&bases)?;
                }
                PackState::Sweeping | PackState::Quarantined(_) => return Err("damaged: a used pack".into()),
            }
        }
        Ok(())
    }

    fn delete_snapshot(&mut self, id: ShortId, bin: Option<BinStay>) -> Result<()> {
        ensure(!self.images.values().any(|image| image.uses(id)), "a snapshot of an image is deleted")?;
        let mut binned = self.binned_images.values().filter(|image| image.item.uses(id));
        let until = bin.as_ref().map(|bin| bin.until);
        let stays = binned.all(|image| until.is_some_and(|until| until >= image.stay.until));
        ensure(stays, "a snapshot of an image in the bin is deleted")?;
        let item = remove(&mut self.snapshots, &id)?;
        match bin {
            Some(stay) => insert(&mut self.binned_snapshots, id, Binned { item, stay }),
            None => self.drop_snapshot(item),
        }
    }

    fn drop_snapshot(&mut self, snapshot: Snapshot) -> Result<()> {
        if self.volumes.values().any(|volume| volume.snapshot_id == Some(snapshot.id)) {
            return insert(&mut self.retained_snapshots, snapshot.id, snapshot);
        }
        Ok(())
    }

    fn add_image(&mut self, image: Image) -> Result<()> {
        let all = image.snapshots().all(|snapshot| self.snapshots.contains_key(&snapshot));
        ensure(all, "an image without its snapshots")?;
        let mut others = self.images.values();
        let is_taken = others.any(|other| (other.owner, &other.name) == (image.owner, &image.name));
        ensure(!is_taken, "a second image of a name")?;
        insert(&mut self.images, image.id, image)
    }

    fn deregister_image(&mut self, id: ShortId, bin: Option<BinStay>) -> Result<()> {
        let item = remove(&mut self.images, &id)?;
        self.deregistered.push(Deregistered { id, owner: item.owner });
        if self.deregistered.len() > 4096 {
            self.deregistered.remove(0);
        }
        match bin {
            Some(stay) => insert(&mut self.binned_images, id, Binned { item, stay })?,
            None => self.end_uses(item.template),
        }
        Ok(())
    }

    /// After uses of templates have ended: those that have no other are gone.
    fn end_uses(&mut self, ended: impl IntoIterator<Item = ShortId>) {
        for id in ended {
            let mut images = self.images.values().chain(self.binned_images.values().map(|image| &image.item));
            let mut instances = self.instances.values().filter(|instance| !instance.is_terminated());
            let by_image = images.any(|image| image.template == Some(id));
            if !by_image && !instances.any(|instance| instance.templates().contains(&id)) {
                self.templates.remove(&id);
            }
        }
    }

    fn modify_image(image: &mut Image, change: ImageChange) -> Result<()> {
        match change {
            ImageChange::LaunchPermissions(permissions) => image.launch_permissions = permissions,
            ImageChange::Tags(tags) => image.tags = tags,
            ImageChange::Deprecation(at) => image.deprecation = at,
            ImageChange::Disable => {
                (image.state, image.launch_permissions) = (ImageState::Disabled, Vec::new());
            }
            ImageChange::Enable => image.state = ImageState::Available,
            ImageChange::Protection(protection) => image.deregistration_protection = protection,
            ImageChange::Description(description) => image.description = description,
            ImageChange::ProductCodes(codes) => image.product_codes = codes,
        }
        Ok(())
    }

    fn modify_account(&mut self, account: AccountId, change: AccountChange) -> Result<()> {
        let default = || AccountSettings {
            alias: None,
            block_public_images: false,
            block_public_snapshots: false,
            retention_rules: Vec::new(),
        };
        let mut settings = self.accounts.remove(&account).unwrap_or_else(default);
        let rules = &mut settings.retention_rules;
        match change {
            AccountChange::Alias(alias) => {
                let is_taken = alias.is_some() && self.accounts.values().any(|other| other.alias == alias);
                ensure(!is_taken, "a second account of an alias")?;
                settings.alias = alias;
            }
            AccountChange::BlockPublicImages(block) => settings.block_public_images = block,
            AccountChange::BlockPublicSnapshots(block) => settings.block_public_snapshots = block,
            AccountChange::AddRule(rule) => {
                ensure(rules.iter().all(|known| known.id != rule.id), "a rule that exists is added")?;
                rules.push(rule);
            }
            AccountChange::RemoveRule(id) => {
                let place = rules.iter().position(|rule| rule.id == id);
                rules.remove(place.ok_or("damaged: a rule that does not exist is removed")?);
            }
        }
        if settings != default() {
            self.accounts.insert(account, settings);
        }
        Ok(())
    }

    fn fits(&self, attachment: &Attachment) -> Result<()> {
        let Attachment { instance_id, device_name, .. } = attachment;
        let instance = self.instances.get(instance_id).filter(|instance| !instance.is_terminated());
        let disks = &instance.ok_or("damaged: a volume is attached to nothing")?.local_disks;
        let mut attachments = self.volumes.values().filter_map(|volume| volume.attachment.as_ref());
        let is_taken = disks.iter().any(|disk| disk.device_name == *device_name)
            || attachments.any(|at| (&at.instance_id, &at.device_name) == (instance_id, device_name));
        ensure(!is_taken, "a second disk of a name")
    }

    fn create_volume(&mut self, volume: Volume) -> Result<()> {
        let stands = volume.snapshot_id.is_none_or(|snapshot| self.snapshots.contains_key(&snapshot));
        ensure(stands, "a volume without its snapshot")?;
        volume.attachment.iter().try_for_each(|attachment| self.fits(attachment))?;
        insert(&mut self.volumes, volume.id, volume)
    }

    fn delete_volume(&mut self, id: ShortId) -> Result<()> {
        let snapshot = remove(&mut self.volumes, &id)?.snapshot_id;
        if !self.volumes.values().any(|other| other.snapshot_id == snapshot) {
            snapshot.and_then(|snapshot| self.retained_snapshots.remove(&snapshot));
        }
        Ok(())
    }

    fn modify_volume(&mut self, id: ShortId, change: VolumeChange) -> Result<()> {
        if let VolumeChange::Attachment(Some(attachment)) = &change {
            self.fits(attachment)?;
        }
        let volume = existing(&mut self.volumes, &id)?;
        match change {
            VolumeChange::Attachment(attachment) => {
                let is_free = attachment.is_none() || volume.attachment.is_none();
                ensure(is_free, "an attached volume is attached")?;
                volume.attachment = attachment;
            }
            VolumeChange::Tags(tags) => volume.tags = tags,
        }
        Ok(())
    }

    fn modify_instance(&mut self, id: ShortId, change: InstanceChange) -> Result<()> {
        let instance = existing(&mut self.instances, &id)?;
        let state = match change {
            InstanceChange::Start => InstanceState::Running,
            InstanceChange::Stop => InstanceState::Stopped,
            InstanceChange::Tags(tags) => {
                instance.tags = tags;
                return Ok(());
            }
        };
        ensure(!instance.is_terminated(), "a terminated instance is started or stopped")?;
        instance.state = state;
        Ok(())
    }

    fn terminate_instance(&mut self, id: ShortId, at: u64) -> Result<()> {
        let instance = existing(&mut self.instances, &id)?;
        ensure(!instance.is_terminated(), "a terminated instance is terminated")?;
        (instance.state, instance.terminated) = (InstanceState::Terminated, Some(at));
        let templates = instance.templates();
        self.end_uses(templates);
        let attached: Vec<_> =
            self.volumes.values().filter(|volume| volume.is_attached_to(id)).cloned().collect();
        for volume in attached {
            if volume.attachment.is_some_and(|at| at.delete_on_termination) {
                self.delete_volume(volume.id)?;
            } else {
                self.modify_volume(volume.id, VolumeChange::Attachment(None))?;
            }
        }
        Ok(())
    }
}

fn object(root: &Path, path: &str) -> Result<Vec<u8>> {
    std::fs::read(root.join(path)).map_err(|error| format!("{path}: {error}"))
}

/// Replays the whole log of a directory region: the region file, the last record's hash, and the catalogue.
pub fn replay(root: &Path) -> Result<(RegionHeader, Hash, Catalog)> {
    let (header, mut previous) = region_file(&object(root, "region")?)?;
    let mut catalog: Catalog = value(&[0; 14 * 8])?; // sequence 0, and 13 times nothing
    while root.join(record_path(catalog.sequence + 1)).exists() {
        catalog.sequence += 1;
        let bytes = object(root, &record_path(catalog.sequence))?;
        let (record, hash): (StoredRecord, Hash) = envelope(&bytes, RECORD)?;
        ensure(record.sequence == catalog.sequence, "a record has another's sequence")?;
        ensure(record.previous == previous, "a record does not follow the one before it")?;
        ensure(!catalog.fenced_sessions.contains(&record.author.session), "a record of a fenced session")?;
        let operations: Vec<Op> = match record.body {
            Body::Inline(operations) => operations,
            Body::Spilled(name, expected) => {
                let (operations, hash) = envelope(&object(root, &object_path("lists", &name))?, LIST)?;
                ensure(hash == expected, "a list is not the one its record names")?;
                operations
            }
        };
        operations.into_iter().try_for_each(|operation| catalog.apply(operation))?;
        previous = hash;
    }
    Ok((header, previous, catalog))
}

/// Reads a snapshot's volume out of a directory region. The id is 17 hex digits, after any prefix and `-`.
pub fn read_volume(root: &Path, snapshot_id: &str) -> Result<Vec<u8>> {
    let (header, _, catalog) = replay(root)?;
    let digits = snapshot_id.rsplit('-').next().unwrap_or_default();
    let id = u128::from_str_radix(digits, 16).map_err(|error| format!("{snapshot_id}: {error}"))?;
    let snapshot = catalog.snapshots.get(&ShortId(id)).ok_or("no such snapshot")?;
    let record = &snapshot.manifest;
    let bytes = object(root, &object_path("manifests", &record.name))?;
    let manifest = manifest(&bytes)?;
    let found = (bytes.len() as u64, manifest.hash, manifest.header.chunks, manifest.header.volume_bytes);
    let recorded = (record.len, record.hash, record.chunks, snapshot.volume_bytes);
    ensure(found == recorded, "a manifest is not the recorded one")?;
    let mut packs = BTreeMap::new();
    for (name, Pack { record, .. }) in &catalog.packs {
        let bytes = object(root, &object_path("packs", name))?;
        let pack = pack(&bytes)?;
        let found = (bytes.len() as u64, pack.footer.hash, pack.footer.frames, pack.footer.raw_bytes);
        let recorded = (record.len, record.trailer_hash, record.frames, record.raw_bytes);
        ensure(found == recorded, "a pack is not the recorded one")?;
        ensure((pack.header.region, &pack.header.name) == (header.id, name), "a pack's region or name")?;
        packs.insert(name.clone(), pack);
    }
    let mut places: BTreeMap<Hash, (Name, Entry)> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    for (name, record) in &catalog.segments {
        let Ok(bytes) = object(root, &object_path("index", name)) else { continue };
        let segment = segment(&bytes)?;
        let found = (bytes.len() as u64, segment.hash, segment.header.entries, segment.header.region);
        let recorded = (record.len, record.hash, record.entries, header.id);
        ensure(found == recorded, "a segment is not the recorded one")?;
        for entry in segment.entries {
            let pack = segment.packs.get(entry.pack as usize).filter(|name| packs.contains_key(name));
            places.extend(pack.map(|pack| (entry.id, (pack.clone(), Entry { pack: 0, ..entry }))));
        }
        listed.extend(segment.packs);
    }
    for (name, pack) in packs.iter().filter(|(name, _)| !listed.contains(name)) {
        places.extend(pack.entries.iter().map(|entry| (entry.id, (name.clone(), entry.clone()))));
    }

    let length = usize::try_from(snapshot.volume_bytes).unwrap_or(usize::MAX);
    let mut volume = Vec::new();
    volume.try_reserve_exact(length).map_err(|error| format!("the volume is too long: {error}"))?;
    volume.resize(length, 0);
    for ChunkRef { first, blocks, id } in manifest.chunks {
        let (name, entry) = places.get(&id).ok_or("damaged: a chunk is in no pack")?;
        let pack = packs.get(name).ok_or("damaged: a chunk's pack is not there")?;
        ensure(entry.blocks == blocks, "a reference's length is not its chunk's")?;
        ensure(pack.entries.contains(entry), "a segment's entry is not the trailer's")?;
        let chunk = match pack.deltas.get(&id) {
            None => pack.chunks.get(&id).ok_or("damaged: a chunk is not in its pack")?.clone(),
            Some(delta) => {
                let record = &catalog.packs.get(name).ok_or("damaged: no such pack")?.record;
                let mut holders = record.bases.iter().chain([name]).filter_map(|name| packs.get(name));
                let base = holders.find_map(|pack| pack.chunks.get(&delta.base));
                delta.chunk(base.ok_or("damaged: a base is in none of the packs that are named for it")?)?
            }
        };
        let (_, place) = volume.split_at_mut_checked(first as usize * BLOCK).ok_or("damaged: a place")?;
        let inside = place.len().min(chunk.len());
        place[..inside].copy_from_slice(&chunk[..inside]);
        // The last chunk may reach over the volume's end, with zeros.
        ensure(all_zero(&chunk[inside..]), "bytes after the volume's end")?;
    }
    Ok(volume)
}

// ---- Bundles

declare! {
    BundleManifest { name String, volume_bytes u64, part_bytes u64, attributes Vec<(String, String)>,
        parts Vec<BundlePart>, }
    BundlePart { number u64, raw_bytes u64, stored_bytes u64, blake3 String, }
}

/// A JSON string in the page's spelling.
fn spelled(text: &str) -> String {
    let inside = text.chars().map(|letter| match letter {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\u{8}' => "\\b".to_owned(),
        '\t' => "\\t".to_owned(),
        '\n' => "\\n".to_owned(),
        '\u{c}' => "\\f".to_owned(),
        '\r' => "\\r".to_owned(),
        '\0'..='\u{1f}' => format!("\\u{:04x}", u32::from(letter)),
        other => other.to_string(),
    });
    format!("\"{}\"", inside.collect::<String>())
}

impl BundleManifest {
    /// The one spelling, with a given hash.
    fn spell(&self, hash: &str) -> String {
        let Self { name, volume_bytes, part_bytes, attributes, parts } = self;
        let attributes = attributes.iter().map(|(key, value)| format!("{}:{}", spelled(key), spelled(value)));
        let parts = parts.iter().map(|BundlePart { number, raw_bytes, stored_bytes, blake3 }| {
            format!(
                "{{\"number\":{number},\"raw_bytes\":{raw_bytes},\"stored_bytes\":{stored_bytes},\
                 \"blake3\":\"{blake3}\"}}"
            )
        });
        format!(
            "{{\"format\":\"imgstore bundle\",\"version\":1,\"name\":{},\"volume_bytes\":{volume_bytes},\
             \"part_bytes\":{part_bytes},\"attributes\":{{{}}},\"parts\":[{}],\"blake3\":\"{hash}\"}}",
            spelled(name),
            attributes.collect::<Vec<_>>().join(","),
            parts.collect::<Vec<_>>().join(","),
        )
    }

    fn check(&self) -> Result<()> {
        let Self { name, volume_bytes, part_bytes, attributes, parts } = self;
        let is_good = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        let is_name = (1..=128).contains(&name.len()) && name.chars().all(is_good) && !name.starts_with('.');
        ensure(is_name, "the bundle's name")?;
        ensure((1..=70_368_744_177_664).contains(volume_bytes), "the volume's length")?;
        let is_size = (4096..=67_108_864).contains(part_bytes) && part_bytes % 4096 == 0;
        ensure(is_size, "the parts' size")?;
        ensure(attributes.len() <= 64 && parts.len() <= 393_216, "too many attributes or parts")?;
        let fit = attributes.iter().all(|(key, value)| key.len() <= 128 && value.len() <= 4096);
        ensure(fit, "an attribute's length")?;
        ensure(attributes.is_sorted_by(|one, next| one.0 < next.0), "the attributes do not ascend")?;
        ensure(parts.is_sorted_by(|one, next| one.number < next.number), "the parts do not ascend")?;
        for BundlePart { number, raw_bytes, stored_bytes, blake3 } in parts {
            ensure(*number < volume_bytes.div_ceil(*part_bytes), "a part behind the volume")?;
            ensure(
                *raw_bytes == *part_bytes.min(&(volume_bytes - number * part_bytes)),
                "a part's raw bytes",
            )?;
            ensure((1..=raw_bytes + raw_bytes / 64 + 1024).contains(stored_bytes), "a part's stored bytes")?;
            let is_digit = |letter| matches!(letter, b'0'..=b'9' | b'a'..=b'f');
            ensure(blake3.len() == 64 && blake3.bytes().all(is_digit), "a part's hash")?;
        }
        Ok(())
    }
}

/// Decodes a bundle's manifest.
pub fn bundle_manifest(bytes: &[u8]) -> Result<BundleManifest> {
    ensure(bytes.len() <= 67_108_864, "the manifest's length")?;
    let document: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| format!("damaged: JSON: {error}"))?;
    ensure(document["format"] == "imgstore bundle", "the format")?;
    let number = |from: &serde_json::Value, name: &str| {
        from[name].as_u64().ok_or_else(|| format!("damaged: {name} is no number"))
    };
    let text = |from: &serde_json::Value, name: &str| {
        from[name].as_str().map(str::to_owned).ok_or_else(|| format!("damaged: {name} is no string"))
    };
    reserved(number(&document, "version")? == 1, "the version")?;
    let pairs = document["attributes"].as_object().ok_or("damaged: no attributes")?;
    let pair = |(key, value): (&String, &serde_json::Value)| {
        Ok((key.clone(), value.as_str().ok_or("damaged: an attribute is no string")?.to_owned()))
    };
    let part = |part: &serde_json::Value| {
        Ok(BundlePart {
            number: number(part, "number")?,
            raw_bytes: number(part, "raw_bytes")?,
            stored_bytes: number(part, "stored_bytes")?,
            blake3: text(part, "blake3")?,
        })
    };
    let parts = document["parts"].as_array().ok_or("damaged: no parts")?;
    let manifest = BundleManifest {
        name: text(&document, "name")?,
        volume_bytes: number(&document, "volume_bytes")?,
        part_bytes: number(&document, "part_bytes")?,
        attributes: pairs.iter().map(pair).collect::<Result<_>>()?,
        parts: parts.iter().map(part).collect::<Result<_>>()?,
    };
    let hash = blake3::hash(manifest.spell("").as_bytes()).to_hex();
    ensure(text(&document, "blake3")? == hash.as_str(), "the manifest's hash is another")?;
    // So nothing is missing, more, twice or elsewhere.
    ensure(manifest.spell(&hash).as_bytes() == bytes, "the manifest is spelled otherwise")?;
    manifest.check()?;
    Ok(manifest)
}

/// Reads a bundle whole, by the path of its manifest: the manifest, and the volume's bytes.
pub fn bundle(path: &Path) -> Result<(BundleManifest, Vec<u8>)> {
    let directory = path.parent().ok_or("the manifest is in no directory")?;
    let file = |name: &str| {
        let kind = directory.join(name).symlink_metadata().map_err(|error| format!("{name}: {error}"))?;
        ensure(kind.is_file(), "not a regular file")?;
        object(directory, name)
    };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("the manifest has no name")?;
    let manifest = bundle_manifest(&file(name)?)?;
    ensure(format!("{}.manifest.json", manifest.name) == name, "the manifest is called otherwise")?;
    let length = usize::try_from(manifest.volume_bytes).unwrap_or(usize::MAX);
    let mut volume = Vec::new();
    volume.try_reserve_exact(length).map_err(|error| format!("the volume is too long: {error}"))?;
    volume.resize(length, 0);
    for part in &manifest.parts {
        let bytes = file(&format!("{}.part.{:05}", manifest.name, part.number))?;
        ensure(bytes.len() as u64 == part.stored_bytes, "a part's length")?;
        ensure(*part.blake3 == *blake3::hash(&bytes).to_hex(), "a part's hash is another")?;
        let raw = zstd_frame(&bytes, part.raw_bytes as usize, &[])?;
        ensure(raw.len() as u64 == part.raw_bytes, "a part's raw length")?;
        let begin = (part.number * manifest.part_bytes) as usize;
        volume[begin..begin + raw.len()].copy_from_slice(&raw);
    }
    Ok((manifest, volume))
}
