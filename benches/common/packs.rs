//! The packs of a region with their frames, and decompressing them with nothing else: what readers are compared with.

use imgstore::chunk::frame::{BASE_ID_BYTES, Codec, base_of};
use imgstore::format::entry::Entry;
use imgstore::format::pack::FRAME_HEADER_BYTES;
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::ids::ChunkId;
use imgstore::model::units::BLOCK_BYTES;
use imgstore::pack::trailer::read_trailer;
use imgstore::region::{Region, directory_storage};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use zstd::zstd_safe::DCtx;

/// A pack with its frames.
pub struct Pack {
    /// Its file.
    pub path: PathBuf,
    /// Its frames.
    pub entries: Vec<Entry>,
}

/// Every pack of a region of which the catalogue knows.
pub fn packs(root: &Path, region: &Region) -> Vec<Pack> {
    let (storage, _) = directory_storage(root, DirectoryOptions::default()).expect("storage");
    let catalog = region.catalog().expect("catalogue");
    let pack = |record| {
        let trailer = read_trailer(&storage, region.header().id, record).expect("a whole pack");
        Pack { path: root.join(record.name.to_string()), entries: trailer.entries }
    };
    catalog.packs.values().map(|pack_of| pack(&pack_of.record)).collect()
}

/// Bytes of content in some packs.
pub fn raw_bytes(packs: &[Pack]) -> u64 {
    packs.iter().flat_map(|pack| &pack.entries).map(|entry| raw_len(entry) as u64).sum()
}

/// The content of every chunk that a delta needs, by its id.
pub type Bases = HashMap<ChunkId, Vec<u8>>;

/// The bases of all deltas. `contents` are the packs' bytes.
pub fn bases(packs: &[Pack], contents: &[Vec<u8>]) -> Bases {
    let both = || packs.iter().zip(contents);
    let frames =
        || both().flat_map(|(pack, bytes)| pack.entries.iter().map(|entry| (entry, body(bytes, entry))));
    let wanted: HashSet<ChunkId> = frames().filter_map(|(entry, body)| base_of(entry.codec, body)).collect();
    let mut context = DCtx::create();
    let base = |(entry, body): (&Entry, &[u8])| {
        let mut raw = vec![0; raw_len(entry)];
        decode(&mut context, entry, body, &Bases::new(), &mut raw);
        (entry.id, raw)
    };
    frames().filter(|(entry, _)| entry.codec.is_plain() && wanted.contains(&entry.id)).map(base).collect()
}

/// Decompresses every frame, and nothing else: no checksums, no hashes.
pub fn decompress_all(packs: &[Pack], contents: &[Vec<u8>], bases: &Bases) {
    packs.par_iter().zip(contents).for_each(|(pack, bytes)| {
        let mut context = DCtx::create();
        let mut raw = vec![0; 1 << 20];
        for entry in &pack.entries {
            decode(&mut context, entry, body(bytes, entry), bases, &mut raw[..raw_len(entry)]);
        }
    });
}

fn raw_len(entry: &Entry) -> usize {
    usize::from(entry.raw_blocks) * BLOCK_BYTES
}

fn body<'a>(pack: &'a [u8], entry: &Entry) -> &'a [u8] {
    let start = entry.offset as usize + FRAME_HEADER_BYTES;
    &pack[start..start + entry.stored_len as usize]
}

fn decode(context: &mut DCtx<'static>, entry: &Entry, body: &[u8], bases: &Bases, raw: &mut [u8]) {
    let decoded = match entry.codec {
        Codec::Raw => {
            raw.copy_from_slice(body);
            return;
        }
        Codec::Zstd => context.decompress(raw, body),
        Codec::Delta => {
            let base = base_of(entry.codec, body).and_then(|id| bases.get(&id)).expect("the delta's base");
            context.decompress_using_dict(raw, &body[BASE_ID_BYTES..], base)
        }
    };
    assert_eq!(decoded.expect("a whole frame"), raw_len(entry));
}
