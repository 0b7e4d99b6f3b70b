//! The frames of a pack whose own index is lost, told apart without it: what repair takes from it.

use crate::chunk::frame::Frame;
use crate::format::pack::{claimed_len, scan_frame};
use crate::io::storage::Object;

/// Bytes that are read at once, and those that are given up together where the device fails.
const READ_BYTES: usize = 64 << 10;
const SECTOR_BYTES: usize = 4 << 10;
/// Sectors that are tried in vain before nothing more is read: each may take a dying disk seconds.
const FAILED_MAX: usize = 64;
/// How often all bytes may be summed up in search of a frame: what looks like one may be so long each time.
const SUMMED_MAX: usize = 16;

/// Goes through frames, one behind the other. Behind damage the next one is where the damaged one says that it ends, or
/// else is searched for byte by byte.
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes that the search may still sum up.
    to_sum: usize,
    has_gap: bool,
    is_cut_short: bool,
}

impl<'a> Scan<'a> {
    /// Over what comes behind a pack's header.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            to_sum: bytes.len().saturating_mul(SUMMED_MAX),
            has_gap: false,
            is_cut_short: false,
        }
    }

    /// Whether the search was given up, since too much had looked like a frame: there may be more.
    pub const fn is_cut_short(&self) -> bool {
        self.is_cut_short
    }

    /// Whether something was left out before a frame that was found.
    pub const fn has_gap(&self) -> bool {
        self.has_gap
    }

    /// The frame at a place, and its length. What only looks like one counts.
    fn frame_at(&mut self, at: usize) -> Option<(Frame, usize)> {
        let rest = self.bytes.get(at..)?;
        let len = claimed_len(rest).filter(|len| *len <= rest.len())?;
        if len > self.to_sum {
            self.is_cut_short = true;
            return None;
        }
        let frame = scan_frame(rest).ok();
        if frame.is_none() {
            self.to_sum -= len;
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
pub fn read_what_can_be(object: &dyn Object, bytes_max: u64) -> (Vec<u8>, bool) {
    let mut bytes = vec![0; usize::try_from(object.len().min(bytes_max)).unwrap_or(usize::MAX)];
    let (mut is_unread, mut failed) = (object.len() > bytes_max, 0);
    for (number, piece) in bytes.chunks_mut(READ_BYTES).enumerate() {
        let offset = (number * READ_BYTES) as u64;
        if failed < FAILED_MAX && object.read_at(offset, piece).is_ok() {
            continue;
        }
        for (number, sector) in piece.chunks_mut(SECTOR_BYTES).enumerate() {
            let at = offset + (number * SECTOR_BYTES) as u64;
            if failed >= FAILED_MAX || object.read_at(at, sector).is_err() {
                sector.fill(0);
                failed += 1;
                is_unread = true;
            }
        }
    }
    (bytes, is_unread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::format::pack::encode_frame_header;
    use crate::io::map::Bytes;
    use crate::io::storage::StorageError;
    use std::ops::Range;

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
        struct Bad(Vec<u8>, Range<u64>);
        impl Object for Bad {
            fn len(&self) -> u64 {
                self.0.len() as u64
            }
            fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
                let end = offset + buffer.len() as u64;
                if offset < self.1.end && self.1.start < end {
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
            assert_eq!(read_what_can_be(&Bad(bytes.clone(), bad), 1 << 20), (expected, !zeros.is_empty()));
        }
        let (read, is_unread) = read_what_can_be(&Bad(bytes.clone(), 0..0), 150_000);
        assert!(is_unread && read == bytes[..150_000]);
    }

    /// Everywhere the beginning of a frame: the search ends all the same.
    #[test]
    fn what_looks_like_frames_everywhere_does_not_take_for_ever() {
        let (_, header, _) = laid_out(1);
        let bytes: Vec<u8> = header[..12].iter().copied().cycle().take(4 << 20).collect();
        let mut scan = Scan::new(&bytes);
        assert!(scan.next().is_none());
        assert!(scan.is_cut_short() && scan.to_sum < 8192, "as much was summed up as may be");
    }
}
