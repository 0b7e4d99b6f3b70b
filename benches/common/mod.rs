//! Content like that of a file system, the same at every run: a benchmark's figures compare only if its input
//! does, and random or constant bytes would show a chunker and a codec nothing of what they meet.

use imgstore::model::units::BLOCK_BYTES;

/// Words of the vocabulary that text is made of.
const WORDS: usize = 4096;
/// Logarithm of the blocks of the largest file: 1 MiB.
const FILE_BLOCKS_LOG2_MAX: usize = 8;

/// A small generator (splitmix64): no dependency, and every value depends on the seed alone.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        let scaled = (u128::from(self.bits()) * end as u128) >> 64;
        usize::try_from(scaled).expect("below a usize")
    }
}

/// Fills `bytes` with what no codec can compress.
pub fn fill_noise(bytes: &mut [u8], random: &mut Random) {
    for piece in bytes.chunks_mut(8) {
        let bits = random.bits().to_le_bytes();
        piece.copy_from_slice(&bits[..piece.len()]);
    }
}

/// Writes text: words of which few are frequent, as in prose, source and configuration. zstd at level 3 leaves
/// a little less than half of it.
pub struct Text {
    words: Vec<Vec<u8>>,
}

impl Text {
    /// A vocabulary.
    pub fn new() -> Self {
        let mut random = Random::new(0x7e47);
        let word = |_| {
            let len = 2 + random.below(9);
            let mut word: Vec<u8> =
                (0..len).map(|_| b"etaoinshrdlucmfwypvbgkjqxz_/-."[random.below(30)]).collect();
            word.push(if random.below(8) == 0 { b'\n' } else { b' ' });
            word
        };
        Self { words: (0..WORDS).map(word).collect() }
    }

    /// Fills `bytes` with text.
    pub fn fill(&self, bytes: &mut [u8], random: &mut Random) {
        let mut at = 0;
        while at < bytes.len() {
            // The product of two uniform numbers makes low places, the frequent words, likely.
            let place = random.below(WORDS) * random.below(WORDS) / WORDS;
            let word = &self.words[place];
            let count = word.len().min(bytes.len() - at);
            bytes[at..at + count].copy_from_slice(&word[..count]);
            at += count;
        }
    }
}

/// A file system of `blocks` blocks: files of 1 byte to 1 MiB that begin at blocks and end in zeros, most of
/// them text, some of them noise, some the copy of an earlier one, with holes between them.
pub fn file_system(blocks: usize, seed: u64) -> Vec<u8> {
    let (text, mut random) = (Text::new(), Random::new(seed));
    let mut disk = vec![0; blocks * BLOCK_BYTES];
    let mut files: Vec<(usize, usize)> = Vec::new();
    let mut block = 0;
    while block < blocks {
        if random.below(12) == 0 {
            // Free space: shorter and longer than a zero run, and long enough to be a hole of the file.
            block += 1 << random.below(10);
            continue;
        }
        let limit = 1 << random.below(1 + FILE_BLOCKS_LOG2_MAX);
        let most = (1 + random.below(limit)).min(blocks - block);
        let (start, len) = (block * BLOCK_BYTES, most * BLOCK_BYTES - random.below(BLOCK_BYTES));
        match random.below(16) {
            0 if !files.is_empty() => {
                let (from, from_len) = files[random.below(files.len())];
                let len = from_len.min((blocks - block) * BLOCK_BYTES);
                disk.copy_within(from..from + len, start);
                block += len.div_ceil(BLOCK_BYTES);
                continue;
            }
            1 | 2 => fill_noise(&mut disk[start..start + len], &mut random),
            _ => text.fill(&mut disk[start..start + len], &mut random),
        }
        files.push((start, len));
        block += most;
    }
    disk
}
