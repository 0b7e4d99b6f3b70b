//! What repair takes from damaged objects, and how caches are made anew.

use super::Region;
use super::bases::Content;
use super::error::RegionError;
use super::log::usable_checkpoint;
use super::session::Session;
use crate::chunk::frame::Frame;
use crate::format::manifest;
use crate::format::pack::{HEADER_BYTES, PACK_BYTES_MAX};
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::ids::ChunkId;
use crate::model::objects::{ManifestRecord, PackName, PackState, SegmentName};
use crate::model::op::Op;
use crate::pack::scan::{Scan, read_what_can_be};
use crate::pack::trailer::read_trailer;
use std::collections::{BTreeSet, HashMap};

/// Frames that are taken of a pack beyond twice those that it was made with.
const FRAMES_MORE: usize = 1024;

/// What is to be known of a pack that was gone through frame by frame.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Whether it may have more frames: what the device did not give it may give later.
    pub may_have_more: bool,
    /// Whether there may be more, since that is so, or bases of its deltas cannot be read now.
    pub is_unread: bool,
    /// Bases of its deltas that are nowhere to be had: what those are is not known without.
    pub lacking: BTreeSet<ChunkId>,
    /// Other packs in which there are bases of its deltas, or may be.
    pub based_on: BTreeSet<PackName>,
    /// Bases of its deltas that are deltas themselves there.
    pub deltas: BTreeSet<ChunkId>,
}

/// A base, and where it was found as what.
struct ListedBase {
    pack: PackName,
    content: Content,
    is_plain: bool,
}

impl Region {
    /// Puts packs that hold damage in quarantine: what something new would use of them is stored anew from now on.
    /// Gives those that were not there before.
    pub fn quarantine(
        &self,
        packs: &BTreeSet<PackName>,
        account: AccountId,
        at_ms: u64,
    ) -> Result<Vec<PackName>, RegionError> {
        self.quarantine_if(packs, account, at_ms, |state| {
            matches!(state, PackState::Live | PackState::Condemned { .. })
        })
    }

    /// The same of packs with deltas whose bases are nowhere, if they are live: a collection lets go of others with their bases.
    pub fn quarantine_baseless(
        &self,
        packs: &BTreeSet<PackName>,
        account: AccountId,
        at_ms: u64,
    ) -> Result<Vec<PackName>, RegionError> {
        self.quarantine_if(packs, account, at_ms, |state| state == PackState::Live)
    }

    fn quarantine_if(
        &self,
        packs: &BTreeSet<PackName>,
        account: AccountId,
        at_ms: u64,
        is_open: impl Fn(PackState) -> bool,
    ) -> Result<Vec<PackName>, RegionError> {
        self.commit(account, |catalog| {
            let is_open = |pack: &&PackName| catalog.packs.get(*pack).is_some_and(|pack| is_open(pack.state));
            let packs: Vec<PackName> = packs.iter().filter(is_open).copied().collect();
            let op = Op::QuarantinePacks { packs: packs.clone(), at_ms };
            Ok((if packs.is_empty() { vec![] } else { vec![op] }, packs))
        })
    }

    /// Goes through a pack whose own index cannot be read, as far as its frames can be told apart: `take` gets each chunk, named by
    /// its content, and what gives a plain frame of it. Nothing if the index can be read. An error if nobody knows where things
    /// are.
    pub fn salvage(
        &self,
        pack: PackName,
        mut take: impl FnMut(ChunkId, &dyn Fn() -> Option<Frame>),
    ) -> Result<Option<Salvaged>, RegionError> {
        let catalog = self.catalog()?;
        let Some(known) = catalog.packs.get(&pack) else { return Ok(Some(Salvaged::default())) };
        if read_trailer(&*self.0.storage, self.0.header.id, &known.record).is_ok() {
            if !self.index()?.lists(&pack) {
                self.forget_index();
            }
            return Ok(None);
        }
        let object = match self.0.storage.open(&pack.to_string()) {
            Err(error) if error.is_not_found() => return Ok(Some(Salvaged::default())),
            Err(_) => {
                return Ok(Some(Salvaged { may_have_more: true, is_unread: true, ..Salvaged::default() }));
            }
            Ok(object) => object,
        };
        let (bytes, is_unread) = read_what_can_be(&*object, PACK_BYTES_MAX);
        let mut scan = Scan::new(bytes.get(HEADER_BYTES..).unwrap_or_default());
        let count = known.record.frames as usize;
        // In the body of a damaged one there may be others.
        let count_max = count.saturating_mul(2).saturating_add(FRAMES_MORE);
        let frames: Vec<Frame> = scan.by_ref().take(count_max).collect();
        let is_whole = !scan.has_gap() && frames.len() == count;
        let may_be_more = is_unread || scan.is_cut_short() || frames.len() == count_max;
        let may_have_more = may_be_more && !is_whole;
        let mut salvaged = Salvaged { may_have_more, is_unread: may_have_more, ..Salvaged::default() };
        let (plain, deltas): (Vec<Frame>, Vec<Frame>) =
            frames.into_iter().partition(|frame| frame.codec.is_plain());
        let mut here = HashMap::new();
        for frame in plain {
            if let Ok((id, _)) = self.0.codecs.identify(&frame, None) {
                take(id, &|| Some(frame.clone()));
                here.insert(id, frame);
            }
        }
        let mut cannot_be_read = BTreeSet::new();
        // Their bases are in this pack as a rule, which no index lists any more.
        for delta in deltas {
            let Some(base) = delta.base() else { continue };
            if cannot_be_read.contains(&base) || salvaged.lacking.contains(&base) {
                continue;
            }
            let mut identify = |content: &[u8]| {
                if let Ok((id, raw)) = self.0.codecs.identify(&delta, Some(content)) {
                    take(id, &|| self.encode(&raw, id, i32::from(self.0.header.zstd_level)).ok());
                }
            };
            if let Some(content) = here.get(&base).and_then(|frame| self.decode(base, frame)) {
                identify(&content);
                continue;
            }
            match self.listed_base(base) {
                Ok(Some(found)) => {
                    salvaged.based_on.insert(found.pack);
                    salvaged.deltas.extend((!found.is_plain).then_some(base));
                    identify(&found.content);
                }
                Ok(None) => {
                    salvaged.lacking.insert(base);
                }
                Err(_) => {
                    let places = self.with_index(|index| index.places_of(base))?;
                    salvaged.based_on.extend(places.iter().map(|place| place.pack));
                    cannot_be_read.insert(base);
                }
            }
        }
        salvaged.is_unread |= !cannot_be_read.is_empty();
        Ok(Some(salvaged))
    }

    /// A base that the index lists; none if it is nowhere intact. That it cannot be read now is an error.
    fn listed_base(&self, id: ChunkId) -> Result<Option<ListedBase>, RegionError> {
        let find = || {
            let plain = self.intact_base_in(id).map(|found| (found, true));
            // As a delta it is no base, but a repair makes one of it.
            let ((pack, content), is_plain) =
                plain.or_else(|| self.intact_content_in(id).map(|found| (found, false)))?;
            Some(ListedBase { pack, content, is_plain })
        };
        if let Some(found) = find() {
            return Ok(Some(found));
        }
        for place in self.with_index(|index| index.places_of(id))? {
            match self.prove_at((id, place)) {
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
                // It is there after all: what failed before was not it.
                Ok(()) => return find().map(Some).ok_or_else(|| self.missing(id)),
            }
        }
        Ok(None)
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
        let audit = self.audit_log()?;
        if audit.caches.is_empty() {
            return Ok(renewed);
        }
        for listed in self.0.storage.list("checkpoints")? {
            // They cost only time. But where a record is lost, or will be, one is all that opens the region: those that fit the log
            // stay, unless one says something else than it. Nor does what cannot be read now go where one is needed.
            let stays = match usable_checkpoint(&*self.0.storage, &listed.name) {
                Ok(Some(_)) => !audit.lost.is_empty() || !audit.is_contradicted,
                Ok(None) => false,
                Err(_) => !audit.lost.is_empty(),
            };
            if stays {
                continue;
            }
            self.0.storage.delete(&listed.name)?;
            renewed += 1;
        }
        if audit.is_contradicted {
            // What comes back after a crash would be believed again.
            self.0.storage.persist("checkpoints")?;
        }
        Ok(renewed)
    }
}
