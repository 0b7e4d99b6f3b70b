//! Writing VHDX files, dynamic ones.
//!
//! A MiB of headers, a MiB of log without changes, a MiB of metadata, the block allocation table, and the blocks
//! in the order in which they got their first bytes. Blocks without any are marked as zeros rather than as not
//! present, which by the specification may read as anything.

use super::header::{
    DISK_BYTES, DISK_BYTES_MAX, DISK_ID, FILE_PARAMETERS, HEADERS_AT, ITEMS_AT, LOGICAL_SECTOR,
    METADATA_REGION, MIB, Metadata, PHYSICAL_SECTOR, REGION_TABLES_AT, TABLE_BYTES, TABLE_REGION, guid, seal,
};
use super::{FORMAT, header::HEADER_BYTES};
use crate::disk::formats::VolumeLimit;
use crate::disk::formats::growing::{Growing, Shape};
use crate::io::disk::{DiskError, DiskWrite, FileWrite};
use std::path::Path;

/// Blocks of a disk at most: of each, four bytes are held in memory, and more by readers.
const BLOCKS_MAX: u64 = 1 << 21;
const LOGICAL_SECTOR_BYTES: u32 = 512;
const PHYSICAL_SECTOR_BYTES: u32 = 4096;
const LOG_AT: u64 = MIB;
const LOG_BYTES: u32 = 1 << 20;
const METADATA_AT: u64 = 2 * MIB;
const TABLE_AT: u64 = 3 * MIB;

/// The states of blocks that are written, in the lowest bits of an entry; above them is the place.
const ZERO: u64 = 2;
const PRESENT: u64 = 6;

/// The volumes that the format holds.
pub const LIMIT: VolumeLimit = VolumeLimit { format: FORMAT, bytes: DISK_BYTES_MAX };

/// A file that becomes a dynamic VHDX of a volume, of whole sectors of 512 bytes. `id`, which is random, tells it
/// from all others. A volume of more than 64 TiB is refused.
pub fn create<'a>(
    file: Box<dyn FileWrite + 'a>,
    path: &Path,
    volume_bytes: u64,
    id: u128,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    LIMIT.check(path, volume_bytes)?;
    let sector_bytes = u64::from(LOGICAL_SECTOR_BYTES);
    let metadata = Metadata {
        disk_bytes: volume_bytes.next_multiple_of(sector_bytes),
        block_bytes: block_bytes_for(volume_bytes),
        sector_bytes,
    };
    let table_bytes = (metadata.table_entries() * 8).next_multiple_of(MIB);
    let shape = Shape {
        volume_bytes,
        block_bytes: metadata.block_bytes,
        head_end: TABLE_AT + table_bytes,
        first_at: TABLE_AT + table_bytes,
        stride_bytes: metadata.block_bytes,
        lead: Vec::new(),
    };
    Ok(Box::new(Dynamic { blocks: Growing::new(file, path, shape), metadata, table_bytes, id }))
}

/// The smallest block size from 1 MiB on of which a disk has not too many.
const fn block_bytes_for(volume_bytes: u64) -> u64 {
    let least = volume_bytes.div_ceil(BLOCKS_MAX).next_power_of_two();
    if least < MIB { MIB } else { least }
}

/// A disk in the making.
struct Dynamic<'a> {
    blocks: Growing<'a>,
    metadata: Metadata,
    table_bytes: u64,
    id: u128,
}

impl DiskWrite for Dynamic<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.blocks.write(offset, bytes)
    }

    /// What is not written reads as zeros.
    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.blocks.check_inside(offset, len)
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        let Self { blocks, metadata, table_bytes, id } = &mut *self;
        blocks.put(0, &identifier())?;
        for (at, sequence) in HEADERS_AT.into_iter().zip(1..) {
            blocks.put(at, &header(sequence, *id))?;
        }
        for at in REGION_TABLES_AT {
            blocks.put(at, &region_table(*table_bytes))?;
        }
        let (table, values) = metadata_region(metadata, *id);
        blocks.put(METADATA_AT, &table)?;
        blocks.put(METADATA_AT + ITEMS_AT, &values)?;
        let chunk_ratio = metadata.chunk_ratio();
        blocks.put_table(TABLE_AT, |number, place| {
            // After as many blocks as a sector bitmap covers comes the entry of that bitmap, which is not there.
            let bitmap = (number > 0 && number % chunk_ratio == 0).then_some([0; 8]);
            (bitmap, place.map_or(ZERO, |place| place | PRESENT).to_le_bytes())
        })?;
        blocks.fill_end()?;
        self.blocks.close()
    }
}

/// The signature, and in UTF-16 who made the file.
fn identifier() -> Vec<u8> {
    let creator = "imgstore".encode_utf16().flat_map(u16::to_le_bytes);
    b"vhdxfile".iter().copied().chain(creator).collect()
}

/// A header. Its log has no id, so nothing in it counts.
fn header(sequence: u64, id: u128) -> Vec<u8> {
    let mut bytes = b"head\0\0\0\0".to_vec();
    bytes.extend(sequence.to_le_bytes());
    // Ids of what the file and the disk have in them, which change when either is written.
    bytes.extend(guid(id.wrapping_add(1)));
    bytes.extend(guid(id.wrapping_add(2)));
    bytes.extend([0; 16]);
    // The versions of the log and of the format.
    bytes.extend([0, 0, 1, 0]);
    bytes.extend(LOG_BYTES.to_le_bytes());
    bytes.extend(LOG_AT.to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    seal(&mut bytes);
    bytes
}

fn region_table(table_bytes: u64) -> Vec<u8> {
    let mut bytes = b"regi\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
    for (id, at, len) in [(TABLE_REGION, TABLE_AT, table_bytes), (METADATA_REGION, METADATA_AT, MIB)] {
        bytes.extend(id);
        bytes.extend(at.to_le_bytes());
        // The length, and a flag: who does not know the region cannot read the file.
        bytes.extend((len | 1 << 32).to_le_bytes());
    }
    bytes.resize(TABLE_BYTES, 0);
    seal(&mut bytes);
    bytes
}

/// The metadata table, and the values of its items.
fn metadata_region(metadata: &Metadata, id: u128) -> (Vec<u8>, Vec<u8>) {
    // Items that must be understood, of the file and of the disk on it.
    const OF_FILE: u64 = 4;
    const OF_DISK: u64 = 6;
    let items: [([u8; 16], u64, &[u8]); 5] = [
        // The block size is below 2^32; no flag is set: absent blocks may stay so, and there is no parent.
        (FILE_PARAMETERS, OF_FILE, &metadata.block_bytes.to_le_bytes()),
        (DISK_BYTES, OF_DISK, &metadata.disk_bytes.to_le_bytes()),
        (DISK_ID, OF_DISK, &guid(id)),
        (LOGICAL_SECTOR, OF_DISK, &LOGICAL_SECTOR_BYTES.to_le_bytes()),
        (PHYSICAL_SECTOR, OF_DISK, &PHYSICAL_SECTOR_BYTES.to_le_bytes()),
    ];
    let mut table = b"metadata\0\0".to_vec();
    table.extend(u16::try_from(items.len()).unwrap_or(0).to_le_bytes());
    table.resize(32, 0);
    let mut values = Vec::new();
    for (item, flags, value) in items {
        let (at, len) = (ITEMS_AT + values.len() as u64, value.len() as u64);
        table.extend(item);
        table.extend((at | len << 32).to_le_bytes());
        table.extend(flags.to_le_bytes());
        values.extend(value);
    }
    (table, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_small_as_their_number_allows() {
        let mib = |volume_bytes| block_bytes_for(volume_bytes) / MIB;
        assert_eq!([mib(1), mib(2 << 40), mib((2 << 40) + 1), mib(3 << 40)], [1, 1, 2, 2]);
        assert_eq!([mib(32 << 40), mib((32 << 40) + 1), mib(64 << 40)], [16, 32, 32]);
    }
}
