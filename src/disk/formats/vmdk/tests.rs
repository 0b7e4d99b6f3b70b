//! Every refusal, on files made by hand; and reading in pieces and in parallel.

use super::sample::{
    GRAIN, SPARSE, STREAM_GRAIN, describe, descriptor, disk, grain, put, sparse, stored, stream,
};
use super::*;

/// A file in memory. What is read outside it fails the test.
struct Bytes(Vec<u8>);

impl DiskRead for Bytes {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let start = offset as usize;
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }
}

fn open_with(bytes: Vec<u8>, limits: &Limits) -> Result<Vmdk, DiskError> {
    open(Arc::new(Bytes(bytes)), Path::new("disk.vmdk"), limits)
}

/// All of the disk, by its extents.
fn read(bytes: Vec<u8>) -> Result<Vec<u8>, DiskError> {
    let disk = open_with(bytes, &Limits::default())?;
    let mut all = vec![0xee; disk.len_bytes() as usize];
    let mut at = 0;
    while at < disk.len_bytes() {
        let extent = disk.extent_at(at)?;
        assert!(extent.start == at && extent.end > at && extent.end <= disk.len_bytes());
        let piece = &mut all[at as usize..extent.end as usize];
        if extent.is_zero {
            piece.fill(0)
        } else {
            disk.read_at(at, piece)?
        }
        at = extent.end;
    }
    Ok(all)
}

/// A change of a sample, and a part of the message that refuses it.
type Case<'a> = (&'a str, Box<dyn Fn(&mut Vec<u8>) + 'a>);

fn set<const N: usize>(why: &str, at: usize, number: [u8; N]) -> Case<'_> {
    (why, Box::new(move |bytes| put(bytes, at, number)))
}

fn by(why: &str, change: impl Fn(&mut Vec<u8>) + 'static) -> Case<'_> {
    (why, Box::new(change))
}

/// A file that has another piece of text in its descriptor.
fn text<'a>(why: &'a str, from: &'a str, to: &'a str) -> Case<'a> {
    let change = move |bytes: &mut Vec<u8>| {
        let kind = if bytes[10] == 3 { "streamOptimized" } else { "monolithicSparse" };
        let changed = descriptor(kind).replace(from, to);
        assert_ne!(changed, descriptor(kind));
        describe(bytes, &changed);
    };
    (why, Box::new(change))
}

fn all_refused(sample: fn() -> Vec<u8>, cases: impl IntoIterator<Item = Case<'static>>) {
    for (why, change) in cases {
        let mut bytes = sample();
        change(&mut bytes);
        match read(bytes).map(|_| ()).unwrap_err() {
            DiskError::Refused { why: found, format: "VMDK", .. } => {
                assert!(found.contains(why), "{found:?} instead of {why:?}");
            }
            other => panic!("{other} instead of {why}"),
        }
    }
}

const TABLE: usize = SPARSE[1] as usize * 512;
const ENTRY: usize = TABLE + 4;
const MARKER: usize = STREAM_GRAIN as usize * 512;

#[test]
fn the_samples_are_read() {
    assert_eq!(read(sparse()).unwrap(), disk());
    assert_eq!(read(stream()).unwrap(), disk());
    // The last of two grains of a table that has no sector is cut off, too, where the disk ends.
    let mut bytes = sparse();
    put(&mut bytes, SPARSE[0] as usize * 512, [0; 4]);
    assert_eq!(read(bytes).unwrap(), vec![0; disk().len()]);
}

#[test]
fn what_programs_spell_otherwise_is_read_as_well() {
    // VirtualBox: whole grains in the header, what the guest saw in the descriptor.
    let mut bytes = sparse();
    put(&mut bytes, 12, 32u64.to_le_bytes());
    assert_eq!(read(bytes).unwrap(), disk());
    let mut bytes = stream();
    let crlf = descriptor("streamOptimized")
        .replace('\n', "\r\n")
        .replace("=\"", " = \"")
        .replace("ffffffff", "FFFFFFFF");
    describe(&mut bytes, &crlf);
    assert_eq!(read(bytes).unwrap(), disk());
    // The last grain of a stream has only what the disk has.
    let short = sample::stream_of(|number, fill| grain(number * 8, &stored(&[fill; GRAIN])));
    let tables = short.len() - 1536 - 512 - 512 - 2048;
    let mut bytes = short.clone();
    let place = u32::try_from(MARKER / 512 + 9).unwrap();
    put(&mut bytes, tables + 12, place.to_le_bytes());
    put(&mut bytes, tables + 8, [0; 4]);
    let last = grain(24, &stored(&[7; 3 * 512]));
    bytes[MARKER + 9 * 512..][..last.len()].copy_from_slice(&last);
    let expected = [&disk()[..2 * GRAIN], &[0; GRAIN], &[7; 3 * 512]].concat();
    assert_eq!(read(bytes).unwrap(), expected);
}

#[test]
fn headers_are_refused() {
    all_refused(
        sparse,
        [
            set("signature", 0, *b"KDMW"),
            set("COWD", 0, *b"COWD"),
            set("only a descriptor", 0, *b"# Disk DescriptorFile"),
            set("version is 0", 4, 0u32.to_le_bytes()),
            set("version is 4", 4, 4u32.to_le_bytes()),
            set("unknown flags", 8, (1u32 << 18).to_le_bytes()),
            set("unknown flags", 8, (1u32 << 31).to_le_bytes()),
            set("without markers", 8, (1u32 << 16).to_le_bytes()),
            set("markers without", 8, (1u32 << 17).to_le_bytes()),
            set("compression 0", 8, (3u32 << 16).to_le_bytes()),
            set("compression 1", 77, 1u16.to_le_bytes()),
            set("line ends", 73, *b"\r\n"),
            set("line ends", 75, *b"\n"),
            set("not closed", 72, [1]),
            set("7 sectors", 20, 7u64.to_le_bytes()),
            set("4 sectors", 20, 4u64.to_le_bytes()),
            set("0 sectors", 20, 0u64.to_le_bytes()),
            set("24 sectors", 20, 24u64.to_le_bytes()),
            set("4096 sectors", 20, 4096u64.to_le_bytes()),
            set("511 entries", 44, 511u32.to_le_bytes()),
            set("0 entries", 44, 0u32.to_le_bytes()),
            set("limit is", 12, (1u64 << 40).to_le_bytes()),
            set("limit is", 12, u64::MAX.to_le_bytes()),
            set("28 sectors, its descriptor says 27", 12, 28u64.to_le_bytes()),
            set("descriptor says 27", 12, 40u64.to_le_bytes()),
            by("inside its header", |bytes| bytes.truncate(511)),
            by("signature", |bytes| bytes.clear()),
        ],
    );
    let mut none = sparse();
    put(&mut none, 12, [0; 8]);
    assert!(matches!(read(none), Err(DiskError::Empty { .. })));
}

#[test]
fn what_stands_behind_the_descriptors_end_is_nobodys() {
    for sample in [sparse, stream] {
        let (expected, mut bytes) = (read(sample()).unwrap(), sample());
        // As QEMU leaves it when a new CID has a digit less than the old one.
        put(&mut bytes, 1023, [b'\n']);
        assert!(read(bytes).unwrap() == expected);
    }
}

#[test]
fn descriptors_are_refused() {
    for sample in [sparse, stream] {
        all_refused(
            sample,
            [
                set("one of several files", 28, 0u64.to_le_bytes()),
                set("one of several files", 36, 0u64.to_le_bytes()),
                set("over the limit", 36, 2049u64.to_le_bytes()),
                set("over the limit", 36, u64::MAX.to_le_bytes()),
                set("outside the file", 28, 100_000u64.to_le_bytes()),
                set("outside the file", 28, u64::MAX.to_le_bytes()),
                set("does not begin", 512, *b"; disk"),
                set("not text", 520, [7]),
                text("type is \"monolithicflat\"", "createType=\"", "createType=\"monolithicFlat\"\n#"),
                text(
                    "type is \"twogbmaxextentsparse\"",
                    "createType=\"",
                    "createType=\"twoGbMaxExtentSparse\"\n#",
                ),
                text("type is \"vmfs\"", "createType=\"", "createType=\"vmfs\"\n#"),
                text("type is missing", "createType", "type"),
                text("more than one createType", "CID=88", "createType=vmfs\nCID=88"),
                text("parentCID is \"88fd69b6\"", "ffffffff", "88fd69b6"),
                text("parentCID is missing", "parentCID=ffffffff", ""),
                text("more than one parentCID", "CID=88", "parentCID=ffffffff\nCID=88"),
                text("names a parent", "CID=88", "parentFileNameHint=\"/etc/hostname\"\nCID=88"),
                text("encrypted", "CID=88", "encryption.keySafe = \"vmware:key\"\nCID=88"),
                text("version is \"4\"", "version=1", "version=4"),
                text("version is missing", "version=1", ""),
                text("more than one extent", "# The Disk Data Base", "RW 27 SPARSE \"other.vmdk\""),
                text("no extent", "RW ", "#"),
                text("access is \"NOACCESS\"", "RW ", "NOACCESS "),
                text("extent is \"FLAT\"", "SPARSE", "FLAT"),
                text("extent is \"ZERO\"", "SPARSE", "ZERO"),
                text("extent is missing", "SPARSE \"/etc/hostname\"", ""),
                text("length is \"-1\"", "RW 27", "RW -1"),
                text("descriptor says 28", "RW 27", "RW 28"),
                text("descriptor says 0", "RW 27", "RW 0"),
                text("has the line", "CID=88fd69b6\nparent", "RW\u{e4} 27 \nparent"),
            ],
        );
    }
    all_refused(sparse, [text("differ", "monolithicSparse", "streamOptimized")]);
    all_refused(stream, [text("differ", "streamOptimized", "monolithicSparse")]);
}

/// As VirtualBox, VMware's OVF Tool and converters of streams write it.
#[test]
fn descriptors_of_other_makers_are_read() {
    for (from, to) in [
        ("RW ", "RDONLY "),
        ("# Disk DescriptorFile", "# Description file created by VMDK stream converter"),
        ("CID=", "isNativeSnapshot=\"no\"\nddb.uuid.image=\"9dd2f7f2\"\nCID="),
    ] {
        let mut bytes = stream();
        let changed = descriptor("streamOptimized").replacen(from, to, 1);
        assert_ne!(changed, descriptor("streamOptimized"));
        describe(&mut bytes, &changed);
        assert_eq!(read(bytes).unwrap(), read(stream()).unwrap());
    }
    // A flag for redundant tables, and no place for them.
    for place in [0, u64::MAX] {
        let mut bytes = stream();
        for header in [0, bytes.len() - 1024] {
            bytes[header + 8] |= 2;
            bytes[header + 48..header + 56].copy_from_slice(&place.to_le_bytes());
        }
        assert_eq!(read(bytes).unwrap(), read(stream()).unwrap());
    }
}

#[test]
fn directories_and_tables_are_refused() {
    let directory = SPARSE[0] as usize * 512;
    all_refused(
        sparse,
        [
            set("directory is outside", 56, 23u64.to_le_bytes()),
            set("directory is outside", 56, 0u64.to_le_bytes()),
            set("directory is outside", 56, 1u64.to_le_bytes()),
            set("directory is outside", 56, (u64::MAX - 1).to_le_bytes()),
            set("which only markers allow", 56, u64::MAX.to_le_bytes()),
            // Redundant tables that are nowhere.
            set("redundant grain directory", 8, 0b111u32.to_le_bytes()),
            set("table is outside", directory, 20u32.to_le_bytes()),
            set("table is outside", directory, u32::MAX.to_le_bytes()),
            set("table is outside", directory, 1u32.to_le_bytes()),
            set("table is outside", directory, 2u32.to_le_bytes()),
            set("grain 1 is outside", ENTRY, 16u32.to_le_bytes()),
            set("grain 1 is outside", ENTRY, u32::MAX.to_le_bytes()),
            set("grain 1 is outside", ENTRY, 2u32.to_le_bytes()),
            set("grain 1 is outside", ENTRY, 6u32.to_le_bytes()),
            // Zeros by the entry 1 without the flag for it.
            set("grain 3 is outside", 8, 1u32.to_le_bytes()),
        ],
    );
    // Two tables at one place.
    let two = move |bytes: &mut Vec<u8>, second: u32| {
        put(bytes, 12, (513 * 8u64).to_le_bytes());
        describe(bytes, &descriptor("monolithicSparse").replace("RW 27", "RW 4104"));
        put(bytes, directory + 4, second.to_le_bytes());
    };
    all_refused(
        sparse,
        [
            by("overlap", move |bytes| two(bytes, 3)),
            by("overlap", move |bytes| two(bytes, 6)),
            by("grain 2 is outside", move |bytes| two(bytes, 7)),
        ],
    );
    let mut bytes = sparse();
    two(&mut bytes, 0);
    assert_eq!(read(bytes).unwrap().len(), 513 * GRAIN);
}

#[test]
fn footers_are_refused() {
    let end = stream().len();
    let footer = end - 1024;
    all_refused(
        stream,
        [
            by("cut off", |bytes| bytes.truncate(bytes.len() - 512)),
            by("cut off", |bytes| bytes.truncate(bytes.len() - 1)),
            by("cut off", |bytes| bytes.truncate(1024)),
            set("cut off", end - 512, [1]),
            set("cut off", end - 500, [1]),
            set("cut off", footer - 500, [2]),
            set("cut off", footer - 512, [2]),
            set("signature", footer, *b"COWE"),
            set("something else", footer + 12, 28u64.to_le_bytes()),
            set("something else", footer + 20, 16u64.to_le_bytes()),
            set("does not say where", footer + 56, u64::MAX.to_le_bytes()),
            set("directory is outside", footer + 56, (footer as u64 / 512 - 1).to_le_bytes()),
        ],
    );
}

#[test]
fn compressed_grains_are_refused() {
    let len = stored(&[0; GRAIN]).len() as u32;
    all_refused(
        stream,
        [
            set("marker of another", MARKER, 16u64.to_le_bytes()),
            set("marker of another", MARKER, u64::MAX.to_le_bytes()),
            set("does not fit", MARKER + 8, 0u32.to_le_bytes()),
            set("does not fit", MARKER + 8, u32::MAX.to_le_bytes()),
            set("does not fit", MARKER + 8, (2 * GRAIN as u32 + 1).to_le_bytes()),
            set("bytes after", MARKER + 8, (len + 1).to_le_bytes()),
            set("cannot be", MARKER + 8, (len - 1).to_le_bytes()),
            set("cannot be", MARKER + 12, [0x79]),
            set("cannot be", MARKER + 100, [0x5b]),
            set("cannot be", MARKER + 12 + len as usize - 1, [0]),
        ],
    );
    // From the second grain on a length within the limit reaches into the tables.
    let second = MARKER + 9 * 512;
    all_refused(stream, [set("grain 2 has a length", second + 8, (11 * 512u32).to_le_bytes())]);
    let with = |len: usize| move |number, fill| grain(number * 8, &stored(&vec![fill; len]));
    for (why, len) in [("fewer", GRAIN - 1), ("fewer", 0), ("more", GRAIN + 1), ("more", GRAIN + 400)] {
        let error = read(sample::stream_of(with(len))).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_limits_hold() {
    let limits = Limits { virtual_bytes: 27 * 512, metadata_bytes: 16 };
    assert_eq!(open_with(sparse(), &limits).unwrap().len_bytes(), 27 * 512);
    let less = Limits { virtual_bytes: 27 * 512 - 1, ..limits };
    assert!(open_with(sparse(), &less).err().unwrap().to_string().contains("limit"));
    let less = Limits { metadata_bytes: 15, ..limits };
    assert!(open_with(sparse(), &less).err().unwrap().to_string().contains("too many to hold"));
}

#[test]
fn what_is_outside_the_disk_is_not_read() {
    let disk = open_with(sparse(), &Limits::default()).unwrap();
    let len = disk.len_bytes();
    assert!(disk.extent_at(len).is_err() && disk.extent_at(u64::MAX).is_err());
    assert!(disk.read_at(len, &mut [0]).is_err() && disk.read_at(u64::MAX, &mut [0; 2]).is_err());
    assert!(disk.read_at(len, &mut []).is_ok() && disk.read_at(len - 1, &mut [0]).is_ok());
}

#[test]
fn pieces_and_threads_read_the_same() {
    let expected = disk();
    for bytes in [sparse(), stream()] {
        let disk = open_with(bytes, &Limits { metadata_bytes: 2200, ..Limits::default() }).unwrap();
        std::thread::scope(|scope| {
            for step in [1usize, 7, 511, 4096, 5000, 14000] {
                let (disk, expected) = (&disk, &expected);
                scope.spawn(move || {
                    for start in (0..expected.len()).step_by(step) {
                        let end = (start + step).min(expected.len());
                        let mut piece = vec![0xee; end - start];
                        disk.read_at(start as u64, &mut piece).unwrap();
                        assert_eq!(piece, expected[start..end]);
                    }
                });
            }
        });
    }
}
