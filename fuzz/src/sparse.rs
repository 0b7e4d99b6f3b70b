//! Files of disk formats, made by hand: a length and the few places that are not zeros, so that a file of many
//! MiB is a small seed, and a mutation of it changes what matters.
#![allow(dead_code, reason = "each of the tests that include this file uses a part of it")]

use imgstore::disk::{DiskError, DiskRead, Extent};

/// A file that is zeros but for some pieces; later ones lie over earlier ones.
#[derive(Clone, Default)]
pub struct Sparse {
    pub len: u64,
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    /// Reads a seed: the length, and of each piece its place, its length and its bytes. Anything is a seed.
    pub fn parse(data: &[u8]) -> Self {
        const LEN_MAX: u64 = 1 << 52;
        let Some((len, mut rest)) = data.split_first_chunk() else { return Self::default() };
        let mut file = Self { len: u64::from_le_bytes(*len) % LEN_MAX, pieces: Vec::new() };
        while let Some((at, behind)) = rest.split_first_chunk()
            && let Some((len, behind)) = behind.split_first_chunk()
        {
            let (piece, behind) = behind.split_at(usize::from(u16::from_le_bytes(*len)).min(behind.len()));
            file.put(u64::from_le_bytes(*at) % LEN_MAX, piece);
            rest = behind;
        }
        file
    }

    /// A seed of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut seed = self.len.to_le_bytes().to_vec();
        for (at, bytes) in &self.pieces {
            seed.extend(at.to_le_bytes());
            seed.extend(u16::try_from(bytes.len()).expect("a short piece").to_le_bytes());
            seed.extend(bytes);
        }
        seed
    }

    /// Writes bytes.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.pieces.push((at, bytes.to_vec()));
    }

    /// Bytes of a place; zeros behind the end.
    pub fn get(&self, start: u64, len: usize) -> Vec<u8> {
        let mut found = vec![0; len];
        self.copy(start, &mut found);
        found
    }

    /// Copies what is not zero of a place into zeros.
    fn copy(&self, start: u64, found: &mut [u8]) {
        let end = start + found.len() as u64;
        for (at, bytes) in &self.pieces {
            let (from, to) = (start.max(*at), end.min(at + bytes.len() as u64));
            if from < to {
                let piece = &bytes[(from - at) as usize..(to - at) as usize];
                found[(from - start) as usize..(to - start) as usize].copy_from_slice(piece);
            }
        }
    }
}

impl DiskRead for Sparse {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let ranges = || self.pieces.iter().map(|(at, bytes)| (*at, at + bytes.len() as u64));
        let is_zero = !ranges().any(|(start, end)| (start..end).contains(&offset));
        let borders = ranges().flat_map(|(start, end)| [start, end]).filter(|&border| border > offset);
        Ok(Extent { start: offset, end: borders.min().unwrap_or(self.len).min(self.len), is_zero })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        assert!(offset + buffer.len() as u64 <= self.len, "a read outside of the file");
        buffer.fill(0);
        self.copy(offset, buffer);
        Ok(())
    }
}

const MIB: u64 = 1 << 20;
/// Where [`vhdx`] has its metadata and its table.
pub const VHDX_METADATA_AT: u64 = 2 * MIB;
pub const VHDX_TABLE_AT: u64 = 3 * MIB;

/// A GUID as it is stored.
pub fn guid(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let mut bytes = u128::from_str_radix(&digits, 16).expect("a GUID").to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes.to_vec()
}

/// An entry of a VHDX region table.
pub fn vhdx_region(id: &str, start: u64, len: u32, required: u32) -> Vec<u8> {
    [guid(id), start.to_le_bytes().into(), len.to_le_bytes().into(), required.to_le_bytes().into()].concat()
}

/// An entry of a VHDX metadata table.
pub fn vhdx_item(id: &str, offset: u32, len: u32, flags: u32) -> Vec<u8> {
    let numbers = [offset, len, flags, 0].map(u32::to_le_bytes);
    [guid(id), numbers.concat()].concat()
}

pub const VHDX_TABLE: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
pub const VHDX_METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
pub const VHDX_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
pub const VHDX_SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
pub const VHDX_ID: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
pub const VHDX_LOGICAL: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
pub const VHDX_PHYSICAL: &str = "cda348c7-445d-4471-9cc9-e9885251c556";
pub const VHDX_PARENT: &str = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";

/// A VHDX file of 3.5 MiB with blocks of 1 MiB: the first holds `first` at its byte 1000, the third ends in
/// `third`, the others are zeros. Log at MiB 1, metadata at 2, table at 3, blocks at 4 and 5.
pub fn vhdx() -> Sparse {
    let mut file = Sparse { len: 6 * MIB, pieces: Vec::new() };
    file.put(0, b"vhdxfile");
    for (at, sequence) in [(64 << 10, 7u64), (128 << 10, 8)] {
        let mut header = vec![0; 80];
        header[..4].copy_from_slice(b"head");
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..48].fill(0x11);
        header[66] = 1;
        header[68..72].copy_from_slice(&(1u32 << 20).to_le_bytes());
        header[72..80].copy_from_slice(&MIB.to_le_bytes());
        file.put(at, &header);
    }
    for at in [192 << 10, 256 << 10] {
        file.put(at, b"regi\0\0\0\0\x02\0\0\0\0\0\0\0");
        file.put(at + 16, &vhdx_region(VHDX_TABLE, VHDX_TABLE_AT, 1 << 20, 1));
        file.put(at + 48, &vhdx_region(VHDX_METADATA, VHDX_METADATA_AT, 1 << 20, 1));
    }
    file.put(VHDX_METADATA_AT, b"metadata\0\0\x05\0");
    let items = [
        vhdx_item(VHDX_PARAMETERS, 65536, 8, 4),
        vhdx_item(VHDX_SIZE, 65544, 8, 6),
        vhdx_item(VHDX_ID, 65552, 16, 6),
        vhdx_item(VHDX_LOGICAL, 65568, 4, 6),
        vhdx_item(VHDX_PHYSICAL, 65572, 4, 6),
    ];
    file.put(VHDX_METADATA_AT + 32, &items.concat());
    let values = [0x10_0000u32, 0, 0x38_0000, 0, 1, 2, 3, 4, 512, 4096].map(u32::to_le_bytes);
    file.put(VHDX_METADATA_AT + 65536, &values.concat());
    let entries = [(4 * MIB) | 6, 2, (5 * MIB) | 6, 0].map(u64::to_le_bytes);
    file.put(VHDX_TABLE_AT, &entries.concat());
    file.put(4 * MIB + 1000, b"first");
    file.put(6 * MIB - 5, b"third");
    seal_vhdx(&mut file);
    file
}

/// Gives headers and region tables the checksums that fit.
pub fn seal_vhdx(file: &mut Sparse) {
    for (at, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)] {
        let mut bytes = file.get(at, len);
        bytes[4..8].fill(0);
        file.put(at + 4, &crc32c::crc32c(&bytes).to_le_bytes());
    }
}

/// The footer of a VHD.
pub fn vhd_footer(kind: u32, bytes: u64, geometry: [u8; 4]) -> Vec<u8> {
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[11] = 2;
    footer[13] = 1;
    footer[16..24].copy_from_slice(&if kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
    footer[28..32].copy_from_slice(b"win ");
    footer[40..48].copy_from_slice(&bytes.to_be_bytes());
    footer[48..56].copy_from_slice(&bytes.to_be_bytes());
    footer[56..60].copy_from_slice(&geometry);
    footer[60..64].copy_from_slice(&kind.to_be_bytes());
    footer
}

/// A dynamic VHD of 8704 bytes with blocks of 4096: the first holds `first` in its second sector, the last one
/// `third`; of the first block the third sector is marked as never written, but is not zeros in the file.
pub fn vhd_dynamic() -> Sparse {
    let mut file = Sparse { len: 2048 + 2 * (512 + 4096) + 512, pieces: Vec::new() };
    let footer = vhd_footer(3, 8704, [0, 17, 1, 1]);
    file.put(0, &footer);
    file.put(file.len - 512, &footer);
    let mut header = vec![0; 64];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[25] = 1;
    header[28..32].copy_from_slice(&3u32.to_be_bytes());
    header[32..36].copy_from_slice(&4096u32.to_be_bytes());
    file.put(512, &header);
    let entries = [4u32, u32::MAX, 13].map(u32::to_be_bytes);
    file.put(1536, &entries.concat());
    file.put(2048, &[0b0100_0000]);
    file.put(2048 + 512 + 512, b"first");
    file.put(2048 + 512 + 1024, b"never");
    file.put(6656, &[0x80]);
    file.put(6656 + 512, b"third");
    seal_vhd(&mut file);
    file
}

/// A fixed VHD of 4096 bytes which begins with `fixed`.
pub fn vhd_fixed() -> Sparse {
    let mut file = Sparse { len: 4096 + 512, pieces: Vec::new() };
    file.put(0, b"fixed");
    file.put(4096, &vhd_footer(2, 4096, [0, 2, 2, 2]));
    seal_vhd(&mut file);
    file
}

/// Gives the footers and the second header the checksums that fit.
pub fn seal_vhd(file: &mut Sparse) {
    let end = file.len.saturating_sub(512);
    for (at, len, stored) in [(0, 512, 64), (end, 512, 64), (512, 1024, 36)] {
        let bytes = file.get(at, len);
        if !bytes.starts_with(b"conectix") && !bytes.starts_with(b"cxsparse") {
            continue;
        }
        let counted = bytes[..stored].iter().chain(&bytes[stored + 4..]);
        let sum: u32 = counted.map(|&byte| u32::from(byte)).sum();
        file.put(at + stored as u64, &(!sum).to_be_bytes());
    }
}

/// A VDI of 14848 bytes with blocks of 4096: the first holds `first` at its byte 100, the last one ends in `third`
/// with the disk, the second was never written, the third discarded. The last one comes first in the file.
pub fn vdi() -> Sparse {
    let mut file = Sparse { len: 1024 + 2 * 4096, pieces: Vec::new() };
    file.put(0, b"<<< a VDI made by hand >>>\n");
    let words = [
        (0x40, 0xbeda_107f_u32),
        (0x44, 0x1_0001),
        (0x48, 0x180),
        (0x4c, 1),
        (0x154, 512),
        (0x158, 1024),
        (0x168, 512),
        (0x170, 14848),
        (0x178, 4096),
        (0x180, 4),
        (0x184, 2),
    ];
    for (at, word) in words {
        file.put(at, &word.to_le_bytes());
    }
    file.put(0x188, &[7; 32]);
    file.put(512, &[1, u32::MAX, u32::MAX - 1, 0].map(u32::to_le_bytes).concat());
    file.put(1024 + 2560 - 5, b"third");
    file.put(1024 + 4096 + 100, b"first");
    file
}
