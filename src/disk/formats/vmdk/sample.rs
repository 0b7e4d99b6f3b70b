//! Small VMDK files made by hand, for tests and as the fuzzer's seeds: `tests/fuzz_replay.rs` includes this
//! file, so it stands alone.

/// Bytes of a sample's grains, the format's least.
pub const GRAIN: usize = 4096;
/// The grains of both samples: nothing for zeros, else what each byte of the grain is.
pub const GRAINS: [Option<u8>; 4] = [None, Some(0x5a), Some(0xa5), None];
/// Sectors of both samples: the last grain is a part of one.
pub const SECTORS: u64 = 27;
/// Where the sparse sample has its directory, table and grains, in sectors.
pub const SPARSE: [u64; 3] = [2, 3, 7];
/// Where the compressed sample's first grain is, in sectors.
pub const STREAM_GRAIN: u64 = 2;

/// Writes a number's bytes.
pub fn put<const N: usize>(bytes: &mut [u8], at: usize, number: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&number);
}

/// The bytes that both samples' disks have.
pub fn disk() -> Vec<u8> {
    let mut bytes: Vec<u8> = GRAINS.iter().flat_map(|fill| [fill.unwrap_or(0); GRAIN]).collect();
    bytes.truncate(SECTORS as usize * 512);
    bytes
}

/// A descriptor as programs write it.
pub fn descriptor(kind: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=88fd69b6\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
         # Extent description\nRW {SECTORS} SPARSE \"/etc/hostname\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n"
    )
}

/// Replaces the descriptor, which is in the second sector.
pub fn describe(bytes: &mut [u8], text: &str) {
    bytes[512..1024].fill(0);
    bytes[512..][..text.len()].copy_from_slice(text.as_bytes());
}

fn header(version: u32, flags: u32, directory: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    put(&mut bytes, 0, *b"KDMV");
    put(&mut bytes, 4, version.to_le_bytes());
    put(&mut bytes, 8, flags.to_le_bytes());
    put(&mut bytes, 12, SECTORS.to_le_bytes());
    put(&mut bytes, 20, (GRAIN as u64 / 512).to_le_bytes());
    put(&mut bytes, 28, 1u64.to_le_bytes());
    put(&mut bytes, 36, 1u64.to_le_bytes());
    put(&mut bytes, 44, 512u32.to_le_bytes());
    put(&mut bytes, 56, directory.to_le_bytes());
    put(&mut bytes, 73, *b"\n \r\n");
    bytes
}

fn table(entries: &[u32], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    bytes.resize(len, 0);
    bytes
}

/// `monolithicSparse`, version 2 so that the last grain is one of the explicit zeros. Two grains are in the
/// file in the other order.
pub fn sparse() -> Vec<u8> {
    let [directory, tables, grains] = SPARSE.map(|sector| u32::try_from(sector).unwrap());
    let mut bytes = header(2, 0b101, directory.into());
    bytes.resize(1024, 0);
    describe(&mut bytes, &descriptor("monolithicSparse"));
    bytes.extend(table(&[tables], 512));
    bytes.extend(table(&[0, grains + 8, grains, 1], 2048));
    bytes.extend([GRAINS[2], GRAINS[1]].iter().flat_map(|fill| [fill.unwrap(); GRAIN]));
    bytes
}

/// A zlib stream of one stored block.
pub fn stored(raw: &[u8]) -> Vec<u8> {
    let len = u16::try_from(raw.len()).unwrap();
    let (mut low, mut high) = (1u32, 0u32);
    for &byte in raw {
        low = (low + u32::from(byte)) % 65521;
        high = (high + low) % 65521;
    }
    let sum = (high << 16 | low).to_be_bytes();
    [&[0x78, 1, 1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), raw, &sum].concat()
}

/// A marker of `sectors` sectors of metadata.
fn marker(sectors: u64, kind: u32) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    put(&mut bytes, 0, sectors.to_le_bytes());
    put(&mut bytes, 12, kind.to_le_bytes());
    bytes
}

/// A compressed grain behind its marker, as sectors.
pub fn grain(lba: u64, stream: &[u8]) -> Vec<u8> {
    let len = u32::try_from(stream.len()).unwrap();
    let mut bytes = [&lba.to_le_bytes()[..], &len.to_le_bytes(), stream].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// `streamOptimized`, its tables after its data and its directory known to the footer alone.
pub fn stream() -> Vec<u8> {
    stream_of(|number, fill| grain(number * 8, &stored(&[fill; GRAIN])))
}

/// The same with other grains: `make` is given a grain's number and its bytes.
pub fn stream_of(make: impl Fn(u64, u8) -> Vec<u8>) -> Vec<u8> {
    let flags = 1 | 1 << 16 | 1 << 17;
    let mut bytes = header(3, flags, u64::MAX);
    put(&mut bytes, 77, 1u16.to_le_bytes());
    bytes.resize(1024, 0);
    describe(&mut bytes, &descriptor("streamOptimized"));
    let mut entries = Vec::new();
    for (number, fill) in (0..).zip(GRAINS) {
        entries.push(if fill.is_some() { u32::try_from(bytes.len() / 512).unwrap() } else { 0 });
        bytes.extend(fill.map(|fill| make(number, fill)).unwrap_or_default());
    }
    bytes.extend(marker(4, 1));
    let tables = u32::try_from(bytes.len() / 512).unwrap();
    bytes.extend(table(&entries, 2048));
    bytes.extend(marker(1, 2));
    let directory = bytes.len() as u64 / 512;
    bytes.extend(table(&[tables], 512));
    bytes.extend(marker(1, 3));
    let mut footer = bytes[..512].to_vec();
    put(&mut footer, 56, directory.to_le_bytes());
    bytes.extend(footer);
    bytes.extend([0; 512]);
    bytes
}
