//! What repair takes from damaged objects, and how caches are made anew.

use super::Region;
use super::error::RegionError;
use super::session::Session;
use crate::chunk::frame::Frame;
use crate::format::manifest;
use crate::format::pack::{HEADER_BYTES, PACK_BYTES_MAX, scan_frame};
use crate::io::storage::read_whole;
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::ids::ChunkId;
use crate::model::objects::{ManifestRecord, PackName, SegmentName};
use crate::model::op::Op;
use crate::pack::trailer::read_trailer;
use std::collections::{BTreeSet, HashMap};

impl Region {
    /// Puts packs that hold damage in quarantine: what something new would use of them is stored anew from now on.
    /// Gives those that were not there before.
    pub fn quarantine(
        &self,
        packs: &BTreeSet<PackName>,
        account: AccountId,
        at_ms: u64,
    ) -> Result<Vec<PackName>, RegionError> {
        use crate::model::objects::PackState::{Condemned, Live};
        self.commit(account, |catalog| {
            let is_open = |pack: &&PackName| {
                catalog.packs.get(*pack).is_some_and(|pack| matches!(pack.state, Live | Condemned { .. }))
            };
            let packs: Vec<PackName> = packs.iter().filter(is_open).copied().collect();
            let op = Op::QuarantinePacks { packs: packs.clone(), at_ms };
            Ok((if packs.is_empty() { vec![] } else { vec![op] }, packs))
        })
    }

    /// Chunks in a pack whose own index cannot be read: its frames one by one as far as they can be told apart, each
    /// named by its content, and plain. None of a pack that is gone; that it cannot be read now is an error.
    pub fn salvage(&self, pack: PackName) -> Result<Vec<(ChunkId, Frame)>, RegionError> {
        let catalog = self.catalog()?;
        let Some(known) = catalog.packs.get(&pack) else { return Ok(Vec::new()) };
        if read_trailer(&*self.0.storage, self.0.header.id, &known.record).is_ok() {
            return Ok(Vec::new());
        }
        let bytes = match read_whole(&*self.0.storage, &pack.to_string(), PACK_BYTES_MAX) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            bytes => bytes?,
        };
        let (mut found, mut deltas): (Vec<(ChunkId, Frame)>, Vec<Frame>) = (Vec::new(), Vec::new());
        let mut at = HEADER_BYTES;
        // The end shows in bytes that are no frame.
        while let Some(Ok((frame, len))) = bytes.get(at..).map(scan_frame) {
            at += len;
            if !frame.codec.is_plain() {
                deltas.push(frame);
            } else if let Ok((id, _)) = self.0.codecs.identify(&frame, None) {
                found.push((id, frame));
            }
        }
        // Their bases are in this pack as a rule, which no index lists any more.
        let places: HashMap<ChunkId, usize> = found.iter().map(|(id, _)| *id).zip(0..).collect();
        for delta in deltas {
            let Some(base) = delta.base() else { continue };
            let here = places.get(&base).and_then(|&at| self.decode(base, &found[at].1));
            let content = here.or_else(|| Some(self.intact_base(base)?.to_vec()));
            if let Ok((id, raw)) = self.0.codecs.identify(&delta, content.as_deref())
                && let Ok(plain) = self.encode(&raw, id, i32::from(self.0.header.zstd_level))
            {
                found.push((id, plain));
            }
        }
        Ok(found)
    }

    /// Whether a block map is the one that a manifest held.
    pub fn is_map(map: &BlockMap, manifest: &ManifestRecord) -> bool {
        map.chunks().len() as u64 == manifest.chunks && manifest::encode(map).1 == manifest.hash
    }

    /// Names a manifest in the place of one with the same content that was lost; whether it was named still. `session`
    /// has placed it: if it is another's, that must be named still, too.
    pub fn replace_manifest(
        &self,
        lost: &ManifestRecord,
        by: &ManifestRecord,
        session: &Session,
        account: AccountId,
    ) -> Result<bool, RegionError> {
        self.commit(account, |catalog| {
            let is_named = session.lost_manifest(catalog).is_none()
                && catalog.roots().any(|root| root.manifest.name == lost.name);
            let op = Op::ReplaceManifest { lost: lost.name, by: by.clone() };
            Ok((if is_named { vec![op] } else { vec![] }, is_named))
        })
    }

    /// Makes index segments anew out of the packs' own indexes, and removes checkpoints that do not say what the log
    /// says. Gives how many of both.
    pub fn renew_caches(
        &self,
        segments: &BTreeSet<SegmentName>,
        account: AccountId,
    ) -> Result<u64, RegionError> {
        let mut renewed = segments.len() as u64;
        for name in segments {
            self.leave_out_segment(&name.to_string());
        }
        if !segments.is_empty() {
            self.compact_index(account)?;
        }
        let (_, findings) = self.audit_log()?;
        if findings.is_empty() {
            return Ok(renewed);
        }
        for listed in self.0.storage.list("checkpoints")? {
            // All of them: they cost only time.
            self.0.storage.delete(&listed.name)?;
            renewed += 1;
        }
        Ok(renewed)
    }
}
