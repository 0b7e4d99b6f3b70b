//! The frames of a pack whose own index is lost, told apart without it: what repair takes from it.

use crate::chunk::frame::Frame;
use crate::format::pack::{claimed_len, scan_frame};
use crate::io::storage::Object;
use std::collections::VecDeque;

/// Bytes that are read at once, and those that are given up together where the device fails.
const READ_BYTES: usize = 64 << 10;
const SECTOR_BYTES: usize = 4 << 10;
/// Sectors, one behind the other, that are tried in vain from either end, and those in all: each may take a dying disk seconds.
const FAILED_MAX: usize = 64;
const FAILED_IN_ALL_MAX: usize = 1024;
/// How often the bytes that were passed may be summed up in search of a frame: what looks like one may be so long each time.
const SUMMED_MAX: usize = 16;
/// Bytes that count as passed at the start: more than any frame has.
const PASSED_AT_START: usize = 2 << 20;

/// Goes through frames, one behind the other. Behind damage the next one is where the damaged one says that it ends, or
/// else is searched for byte by byte.
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes that were summed up in vain.
    summed: usize,
    has_gap: bool,
    is_cut_short: bool,
}

impl<'a> Scan<'a> {
    /// Over what comes behind a pack's header.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, summed: 0, has_gap: false, is_cut_short: false }
    }

    /// Whether the search was given up, since too much had looked like a frame: there may be more.
    pub const fn is_cut_short(&self) -> bool {
        self.is_cut_short
    }

    /// Whether something was left out before a frame that was found.
    pub const fn has_gap(&self) -> bool {
        self.has_gap
    }

    /// The frame at a place, and its length. What only looks like one counts: one chunk that was made so uses up what it
    /// is itself worth, and not what is behind it.
    fn frame_at(&mut self, at: usize) -> Option<(Frame, usize)> {
        let rest = self.bytes.get(at..)?;
        let len = claimed_len(rest).filter(|len| *len <= rest.len())?;
        let most = (PASSED_AT_START + at).saturating_mul(SUMMED_MAX);
        if self.summed + len > most {
            self.is_cut_short = true;
            return None;
        }
        let frame = scan_frame(rest).ok();
        if frame.is_none() {
            self.summed += len;
        }
        frame
    }

    /// The next frame, when what is here is none: where this says that it ends, or anywhere behind.
    fn find_behind(&mut self, here: usize) -> Option<(Frame, usize)> {
        let after = claimed_len(&self.bytes[here..]).map(|len| here + len);
        let found = after.into_iter().chain(here + 1..self.bytes.len()).find_map(|at| {
            self.at = at;
            self.frame_at(at)
        });
        self.has_gap |= found.is_some();
        found
    }
}

impl Iterator for Scan<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let here = self.at;
        let found = self.frame_at(here).or_else(|| self.find_behind(here));
        let (frame, len) = found?;
        self.at += len;
        Some(frame)
    }
}

/// Reads what can be read of an object, at most so many bytes, and zeros for the rest. Says whether there is such a rest.
/// From the front, and from the end down to where that was given up: one dead zone hides nothing but itself.
pub fn read_what_can_be(object: &dyn Object, bytes_max: u64) -> (Vec<u8>, bool) {
    let mut bytes = vec![0; usize::try_from(object.len().min(bytes_max)).unwrap_or(usize::MAX)];
    let mut is_unread = object.len() > bytes_max;
    let mut pieces: VecDeque<(u64, &mut [u8])> =
        (0..).step_by(READ_BYTES).zip(bytes.chunks_mut(READ_BYTES)).collect();
    let mut failed = Failed::default();
    for take in [VecDeque::pop_front, VecDeque::pop_back] {
        failed.in_a_row = 0;
        while failed.in_a_row < FAILED_MAX
            && failed.in_all < FAILED_IN_ALL_MAX
            && let Some((offset, piece)) = take(&mut pieces)
        {
            is_unread |= !read_piece(object, offset, piece, &mut failed);
        }
    }
    let is_left = !pieces.is_empty();
    (bytes, is_unread || is_left)
}

/// Sectors that could not be read.
#[derive(Default)]
struct Failed {
    in_a_row: usize,
    in_all: usize,
}

/// Reads a piece, sector by sector if it must be; whether all could be read.
fn read_piece(object: &dyn Object, offset: u64, piece: &mut [u8], failed: &mut Failed) -> bool {
    if object.read_at(offset, piece).is_ok() {
        failed.in_a_row = 0;
        return true;
    }
    let mut is_whole = true;
    for (at, sector) in (offset..).step_by(SECTOR_BYTES).zip(piece.chunks_mut(SECTOR_BYTES)) {
        if object.read_at(at, sector).is_ok() {
            failed.in_a_row = 0;
        } else {
            sector.fill(0);
            failed.in_a_row += 1;
            failed.in_all += 1;
            is_whole = false;
        }
    }
    is_whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::format::pack::{FRAME_HEADER_BYTES, encode_frame_header};
    use crate::io::map::Bytes;
    use crate::io::storage::StorageError;
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Frames of one to three blocks that are stored raw, as in a pack, and where each begins.
    fn laid_out(count: usize) -> (Vec<Frame>, Vec<u8>, Vec<usize>) {
        let (mut frames, mut bytes, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let blocks = 1 + number % 3;
            let body: Vec<u8> = (0..blocks * 4096).map(|at| (at * 7 + number * 31) as u8).collect();
            let frame = Frame { codec: Codec::Raw, raw_blocks: blocks as u16, body };
            places.push(bytes.len());
            bytes.extend(encode_frame_header(&frame).unwrap());
            bytes.extend(&frame.body);
            frames.push(frame);
        }
        (frames, bytes, places)
    }

    #[test]
    fn all_but_the_damaged_frames_are_found() {
        let (frames, bytes, places) = laid_out(9);
        assert!(Scan::new(&bytes).eq(frames.iter().cloned()));
        // In a body; in a length, such that it leads elsewhere; both, in frames beside each other; the first and the last.
        let cases: [&[(usize, usize)]; 5] =
            [&[(4, 500)], &[(4, 0)], &[(4, 500), (5, 1)], &[(0, 0)], &[(8, 12)]];
        for case in cases {
            let mut damaged = bytes.clone();
            case.iter().for_each(|(number, at)| damaged[places[*number] + at] ^= 0x55);
            let is_sound = |number: &usize| !case.iter().any(|(damaged, _)| damaged == number);
            let left: Vec<Frame> = (0..9).filter(is_sound).map(|number| frames[number].clone()).collect();
            damaged.extend([0xff; 5000]);
            let mut scan = Scan::new(&damaged);
            assert_eq!(scan.by_ref().collect::<Vec<_>>(), left, "{case:?}");
            assert_eq!((scan.has_gap(), scan.is_cut_short()), (case != [(8, 12)], false), "{case:?}");
        }
        assert_eq!(Scan::new(&[]).count() + Scan::new(&[7; 3]).count() + Scan::new(&[0; 9000]).count(), 0);
    }

    #[test]
    fn what_the_device_does_not_give_is_zeros() {
        struct Bad(Vec<u8>, Range<u64>, AtomicUsize);
        impl Object for Bad {
            fn len(&self) -> u64 {
                self.0.len() as u64
            }
            fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
                let end = offset + buffer.len() as u64;
                if offset < self.1.end && self.1.start < end {
                    self.2.fetch_add(1, Ordering::Relaxed);
                    return Err(StorageError::NotFound { name: "a sector".into() });
                }
                buffer.copy_from_slice(&self.0[offset as usize..end as usize]);
                Ok(())
            }
            fn bytes(&self) -> Result<Bytes, StorageError> {
                unreachable!("it is read piece by piece")
            }
        }
        let bytes: Vec<u8> = (0..200_001_u32).map(|at| 1 | at as u8).collect();
        for (bad, zeros) in
            [(0..0, 0..0), (70_000..70_001, 69_632..73_728), (199_999..200_000, 196_608..200_001)]
        {
            let mut expected = bytes.clone();
            expected[zeros.clone()].fill(0);
            let bad = Bad(bytes.clone(), bad, AtomicUsize::new(0));
            assert_eq!(read_what_can_be(&bad, 1 << 20), (expected, !zeros.is_empty()));
        }
        let (read, is_unread) = read_what_can_be(&Bad(bytes.clone(), 0..0, AtomicUsize::new(0)), 150_000);
        assert!(is_unread && read == bytes[..150_000]);

        // Zones that are longer than is tried: what is before and behind is read, and no more than that is tried in it.
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|at| 1 | at as u8).collect();
        for zone in [0..900_000, 300_000..1_500_000, 1_000_000..2_000_000, 300_000..562_144] {
            let mut expected = bytes.clone();
            let first = zone.start / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
            let end = zone.end.next_multiple_of(SECTOR_BYTES as u64).min(2_000_000);
            expected[first as usize..end as usize].fill(0);
            let bad = Bad(bytes.clone(), zone, AtomicUsize::new(0));
            assert!(read_what_can_be(&bad, 4 << 20) == (expected, true), "{first} to {end}");
            let tried = bad.2.into_inner();
            assert!((FAILED_MAX..4 * FAILED_MAX).contains(&tried), "{tried} reads failed");
        }
    }

    /// Everywhere the beginning of a frame: the search ends all the same.
    #[test]
    fn what_looks_like_frames_everywhere_does_not_take_for_ever() {
        let (_, header, _) = laid_out(1);
        let bytes: Vec<u8> = header[..12].iter().copied().cycle().take(4 << 20).collect();
        let mut scan = Scan::new(&bytes);
        assert!(scan.next().is_none());
        let most = SUMMED_MAX * (PASSED_AT_START + bytes.len());
        assert!(scan.is_cut_short() && scan.summed <= most && scan.summed + (1 << 20) > most);
    }

    /// A chunk in which there are beginnings of longest frames everywhere, whose own header is damaged: those behind it are found.
    #[test]
    fn a_chunk_that_looks_like_frames_hides_none_behind_it() {
        let longest = Frame { codec: Codec::Raw, raw_blocks: 256, body: vec![5; 1 << 20] };
        let mut crafted = longest.clone();
        for part in crafted.body.chunks_exact_mut(400) {
            part[..FRAME_HEADER_BYTES].copy_from_slice(&encode_frame_header(&longest).unwrap());
        }
        let mut bytes = encode_frame_header(&crafted).unwrap().to_vec();
        bytes[0] ^= 0x55;
        bytes.extend(crafted.body);
        for _ in 0..7 {
            bytes.extend(encode_frame_header(&longest).unwrap());
            bytes.extend(&longest.body);
        }
        let mut scan = Scan::new(&bytes);
        let found: Vec<Frame> = scan.by_ref().collect();
        assert!(scan.is_cut_short() && scan.summed > 8 << 20, "much was summed up in vain");
        assert!(found.len() >= 6 && found.iter().all(|frame| *frame == longest), "{}", found.len());
    }
}
