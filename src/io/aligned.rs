//! Memory for pieces of disks, which begins where a page does.
//!
//! Large ones lie in huge pages where the system has them: a piece is then one place in memory, not hundreds, for who reads or
//! writes it as for the device. On a virtual machine, where each small page is looked up twice and named to its host, an
//! export is a fifth quicker for it (docs/BENCHMARKS.md).

use memmap2::MmapMut;

/// What the address, the place and the length of a direct write are multiples of: enough for every usual device.
pub const ALIGN: usize = 4096;
/// A huge page of usual processors.
const HUGE_BYTES: usize = 2 << 20;
/// What is shorter would waste more than a quarter of one: it takes memory whole.
const HUGE_MIN: usize = HUGE_BYTES / 4 * 3;
/// Shorter ones have room for a multiple of this: pieces of a disk, which are all a little longer or shorter, need not be made
/// again for each that is longer than all before. What is never used costs addresses only.
const ROOM_BYTES: usize = 64 << 10;

/// Bytes that begin where direct writes can.
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    memory: Memory,
    start: usize,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    /// Of the allocator.
    Heap(Vec<u8>),
    /// Of nobody's file, in huge pages if there are any.
    Huge(MmapMut),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl Memory {
    /// Zeros, so many and what it takes to begin where they should.
    fn new(len: usize) -> Self {
        let huge = Some(len).filter(|len| *len >= HUGE_MIN).and_then(|len| Self::huge(len).ok());
        huge.unwrap_or_else(|| Self::Heap(vec![0; (len + ALIGN).next_multiple_of(ROOM_BYTES)]))
    }

    /// A map may begin between two huge pages, so it is one longer. What lies outside is never touched.
    fn huge(len: usize) -> std::io::Result<Self> {
        let memory = Self::Huge(MmapMut::map_anon(len.next_multiple_of(HUGE_BYTES) + HUGE_BYTES)?);
        // Without them it is memory as any other.
        #[cfg(target_os = "linux")]
        if let Self::Huge(map) = &memory {
            let (start, huge) = (memory.start(), in_huge_pages(len));
            let _ = map.advise_range(memmap2::Advice::HugePage, start, huge);
            let _ = map.advise_range(memmap2::Advice::NoHugePage, start + huge, map.len() - start - huge);
        }
        Ok(memory)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Huge(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Huge(map) => map,
        }
    }

    /// Its first byte that is aligned.
    fn start(&self) -> usize {
        let (alignment, room) = match self {
            Self::Heap(_) => (ALIGN, ALIGN),
            Self::Huge(_) => (HUGE_BYTES, HUGE_BYTES),
        };
        // Not to be had is allowed by its contract; then nothing is written directly.
        Some(self.bytes().as_ptr().align_offset(alignment)).filter(|at| *at < room).unwrap_or(0)
    }
}

/// So much of what is so long lies in huge pages: none for a rest that is short, as the room of a piece for a chunk that began
/// before it.
fn in_huge_pages(len: usize) -> usize {
    let rest = len % HUGE_BYTES;
    if rest < HUGE_MIN { len - rest } else { len.next_multiple_of(HUGE_BYTES) }
}

impl AlignedBuffer {
    /// Makes it so long. What is in it afterwards is unspecified.
    pub fn resize(&mut self, len: usize) {
        if self.memory.bytes().len() - self.start < len {
            self.memory = Memory::new(len);
            self.start = self.memory.start();
        }
        self.len = len;
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.start..self.start + self.len]
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len;
        &mut self.memory.bytes_mut()[range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_however_it_grows_and_shrinks() {
        let mut buffer = AlignedBuffer::default();
        for len in [1, 5000, 1 << 20, HUGE_MIN - 1, HUGE_MIN, 4096, HUGE_BYTES, HUGE_BYTES + 1, 9 << 20] {
            let mut fresh = AlignedBuffer::default();
            let huge = if len < HUGE_MIN { ALIGN } else { HUGE_BYTES };
            for (buffer, alignment) in [(&mut buffer, ALIGN), (&mut fresh, huge)] {
                buffer.resize(len);
                assert_eq!(buffer.bytes().len(), len);
                assert_eq!(buffer.bytes().as_ptr().align_offset(alignment), 0, "{len}");
                buffer.bytes_mut().fill(1);
            }
        }
    }

    #[test]
    fn a_rest_takes_a_huge_page_only_if_it_needs_most_of_one() {
        let lengths =
            [(0, 0), (HUGE_MIN - 1, 0), (HUGE_MIN, 1), (HUGE_BYTES, 1), (HUGE_BYTES + HUGE_MIN - 1, 1)];
        for (len, pages) in lengths.into_iter().chain([(HUGE_BYTES + HUGE_MIN, 2), (8 << 20, 4)]) {
            assert_eq!(in_huge_pages(len), pages * HUGE_BYTES, "{len}");
        }
    }

    #[test]
    fn memory_is_kept_while_there_is_room() {
        let mut buffer = AlignedBuffer::default();
        // What each is made for, and what still fits.
        for (len, fits) in
            [(5000, ROOM_BYTES - ALIGN), (HUGE_MIN, HUGE_BYTES), (HUGE_BYTES + 1, 2 * HUGE_BYTES)]
        {
            buffer.resize(len);
            let place = buffer.bytes().as_ptr();
            for len in [1, fits] {
                buffer.resize(len);
                assert_eq!(buffer.bytes().as_ptr(), place, "{len}");
            }
            buffer.resize(4 * HUGE_BYTES);
            assert_ne!(buffer.bytes().as_ptr(), place);
            buffer = AlignedBuffer::default();
        }
    }
}
