//! Whether the log of an XFS is clean: whether the last record in it says that the file system was unmounted.
//!
//! The log is a ring of sectors. Each begins with the number of the turn in which it was written (in a record's
//! first sector, behind a magic number), so that the place where the number falls is the end of what was
//! written last (Linux, fs/xfs/xfs_log_recover.c: xlog_find_head, xlog_check_unmount_rec). All sectors are
//! looked at: a log in which the number changes in any other way is not taken for clean.

use super::bytes::{View, be16, be32, byte, slice};
use super::xfs::Super;
use super::{Found, doubt};

const SECTOR: u64 = 512;
const WINDOW_BYTES: u64 = 1 << 20;
const LOG_BYTES_MAX: u64 = 4 << 30;
const MAGIC: [u8; 4] = [0xfe, 0xed, 0xba, 0xbe];
/// What a record's header tells the turns of: longer records have further headers.
const HEADER_COVERS: u64 = 32 << 10;
const DIRTY: &str = "its log is not clean; mount and unmount it once, or run xfs_repair";

/// What the sectors of a log say.
#[derive(Default)]
struct Ring {
    /// The turn of the sector looked at last.
    turn: Option<u32>,
    /// The first turn, which is the last one written.
    newest: u32,
    /// The sector where the turn falls.
    head: Option<u64>,
    /// The sectors of the last record's header before the head, and of the last one of all.
    record: Option<u64>,
    last_record: Option<u64>,
}

impl Ring {
    fn sector(&mut self, number: u64, bytes: &[u8]) -> Found<()> {
        let is_record = bytes.starts_with(&MAGIC);
        let turn = be32(bytes, if is_record { 4 } else { 0 });
        match self.turn {
            None => self.newest = turn,
            Some(before) if before == turn => {}
            Some(before) if before.checked_sub(1) == Some(turn) && self.head.is_none() => {
                self.head = Some(number)
            }
            Some(_) => return doubt(DIRTY),
        }
        self.turn = Some(turn);
        if is_record {
            self.last_record = Some(number);
            if self.head.is_none() {
                self.record = Some(number);
            }
        }
        Ok(())
    }
}

/// In doubt unless the log is clean.
pub(super) fn check(view: View<'_>, fs: &Super) -> Found<()> {
    let (start, len) = (fs.log_at(), fs.log_blocks.saturating_mul(fs.block_bytes));
    if len > LOG_BYTES_MAX {
        return doubt("its log is too large");
    }
    let sectors = len / SECTOR;
    let ring = read_ring(view, start, len)?;
    // Turn 0 is that of a log which was never written.
    if ring.newest == 0 {
        return doubt(DIRTY);
    }
    let head = ring.head.unwrap_or(0);
    // The head at the start: the record before it is at the end.
    let Some(record) =
        (if ring.head.is_some() { ring.record.or(ring.last_record) } else { ring.last_record })
    else {
        return doubt(DIRTY);
    };
    let sector = |number: u64| view.read(start + number % sectors * SECTOR, 512);
    let header = sector(record)?;
    let (version, bytes) = (be32(&header, 8), u64::from(be32(&header, 12)));
    let size = u64::from(be32(&header, 320));
    let headers = if version & 2 != 0 && size > HEADER_COVERS { size.div_ceil(HEADER_COVERS) } else { 1 };
    if ![1, 2].contains(&version) || slice(&header, 304, 16) != fs.uuid || bytes > len || headers > 64 {
        return doubt(DIRTY);
    }
    let behind = record + headers + bytes.div_ceil(SECTOR);
    if behind % sectors != head || be32(&header, 40) != 1 {
        return doubt(DIRTY);
    }
    // One operation: of the log itself, that it was unmounted. The turn's number is where its first field was.
    let operation = sector(record + headers)?;
    const OF_THE_LOG: u8 = 0xaa;
    const UNMOUNT: u8 = 0x20;
    let is_unmount = byte(&operation, 8) == OF_THE_LOG && byte(&operation, 9) & UNMOUNT != 0;
    if !is_unmount || ![0x6e55, 0x556e].contains(&be16(&operation, 12)) {
        return doubt(DIRTY);
    }
    Ok(())
}

/// Looks at the first words of all sectors. Holes of the disk are not read: they are of turn 0.
fn read_ring(view: View<'_>, start: u64, len: u64) -> Found<Ring> {
    let mut ring = Ring::default();
    let mut at = 0;
    while at < len {
        let zeros = view.zeros_from(start + at)?.min(len - at) / SECTOR * SECTOR;
        if zeros > 0 {
            ring.sector(at / SECTOR, &[0; 8])?;
            at += zeros;
            continue;
        }
        let window = WINDOW_BYTES.min(len - at);
        let bytes = view.read(start + at, usize::try_from(window).unwrap_or(0))?;
        for (sector, number) in bytes.chunks(512).zip(at / SECTOR..) {
            ring.sector(number, sector)?;
        }
        at += window;
    }
    Ok(ring)
}
