//! What a caller may count on as being there already, where it does not own the place.
//!
//! Who knows the hash of a chunk does not have its content. A copy from somebody who is only let in may therefore leave
//! out a chunk only if that caller could read it there anyway; whatever else is there is sent and proved like anything
//! new, and so nobody learns from what is asked for what others have.

use super::context::Context;
use super::error::OpsError;
use super::transfer::ASKED_AT_ONCE;
use crate::model::account::AccountId;
use crate::model::blockmap::{BlockMap, distinct_chunks};
use crate::model::catalog::Catalog;
use crate::model::ids::{ChunkId, SnapshotId};
use crate::model::objects::{ManifestName, ManifestRecord};
use crate::model::op::Op;
use crate::model::units::TimeMs;
use crate::region::Region;
use std::collections::{BTreeSet, HashMap, HashSet};

/// How many records back packs of the caller's own, unfinished copies are looked for.
const RECORDS_BACK: u64 = 10_000;

/// Bytes of block maps of others that are looked at, the newest first: of some 700 GB.
const OTHERS_MAPS_BYTES: u64 = 256 << 20;

/// The chunks of some maps that are there: others cannot be counted on, whoever asks.
fn present(target: &Region, maps: &[BlockMap], context: &Context<'_>) -> Result<HashSet<ChunkId>, OpsError> {
    let mut present = HashSet::new();
    for ids in distinct_chunks(maps).chunks(ASKED_AT_ONCE) {
        context.check_cancelled()?;
        present.extend(ids.iter().zip(target.has_chunks(ids)?).filter_map(|(id, has)| has.then_some(*id)));
    }
    Ok(present)
}

/// A block map that an account may read.
struct Readable<'a> {
    is_own: bool,
    created_ms: TimeMs,
    /// Of a snapshot; none of a template.
    id: Option<SnapshotId>,
    manifest: &'a ManifestRecord,
}

/// The block maps that an account may read, the newest first; its own come before others'.
fn readable(catalog: &Catalog, account: AccountId) -> Vec<Readable<'_>> {
    let snapshots = catalog.snapshots.values().filter(|snapshot| snapshot.readable_by(account));
    let snapshots = snapshots.map(|s| Readable {
        is_own: s.owner == account,
        created_ms: s.created_ms,
        id: Some(s.id),
        manifest: &s.manifest,
    });
    let own = catalog.templates.values().filter(|template| template.owner == account);
    let own =
        own.map(|t| Readable { is_own: true, created_ms: t.created_ms, id: None, manifest: &t.manifest });
    let mut found: Vec<_> = snapshots.chain(own).collect();
    found.sort_by_key(|readable| std::cmp::Reverse((readable.is_own, readable.created_ms)));
    found
}

/// Chunks that a caller may count on, of those that it wants to.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    /// Those that it may read, and those that it brought before.
    there: HashSet<ChunkId>,
    /// Others' snapshots that some of these are in.
    shown_in: BTreeSet<SnapshotId>,
    /// Those that it has shown to have since.
    shown: HashSet<ChunkId>,
}

impl Trusted {
    /// Of the chunks of some maps those that are in a snapshot which the caller may read, or that the caller itself has
    /// brought, in a copy that was not finished. What is not told is brought again: so of what others show, only so many maps
    /// are looked at, for whose sake nobody's copy shall take long.
    pub fn of(target: &Region, maps: &[BlockMap], context: &Context<'_>) -> Result<Self, OpsError> {
        let mut open = present(target, maps, context)?;
        let (mut trusted, mut others_bytes) = (Self::default(), 0_u64);
        let catalog = target.catalog()?;
        let mut seen = BTreeSet::<ManifestName>::new();
        for Readable { is_own, id, manifest, .. } in readable(&catalog, context.account) {
            if open.is_empty() {
                return Ok(trusted);
            }
            context.check_cancelled()?;
            if !seen.insert(manifest.name) {
                continue;
            }
            if !is_own {
                others_bytes = others_bytes.saturating_add(manifest.len);
                if others_bytes > OTHERS_MAPS_BYTES {
                    break;
                }
            }
            let map = match target.load_map(manifest) {
                Ok(map) => map,
                // What cannot be told of one is brought again.
                Err(error) if error.is_damage() || error.is_failed_read() => continue,
                Err(error) => return Err(error.into()),
            };
            let before = trusted.there.len();
            trusted.there.extend(map.chunks().iter().map(|chunk| chunk.id).filter(|id| open.remove(id)));
            if trusted.there.len() > before && !is_own {
                trusted.shown_in.extend(id);
            }
        }
        trusted.add_brought(target, catalog.sequence, &open, context)?;
        Ok(trusted)
    }

    /// Chunks in packs that the caller's own commands registered not long ago.
    fn add_brought(
        &mut self,
        target: &Region,
        sequence: u64,
        open: &HashSet<ChunkId>,
        context: &Context<'_>,
    ) -> Result<(), OpsError> {
        let open: Vec<ChunkId> = open.iter().copied().collect();
        let places = target.try_locate_usable(&open)?;
        if places.iter().all(Option::is_none) {
            return Ok(());
        }
        let (mut brought, mut upkeep) = (HashMap::new(), HashSet::new());
        for sequence in (sequence.saturating_sub(RECORDS_BACK) + 1..=sequence).rev() {
            context.check_cancelled()?;
            let record = match target.record(sequence) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                // Nor can it be told whether another moved something: it is brought again.
                Err(error) if error.is_loss() => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for op in &record.ops {
                match op {
                    Op::RegisterPack(pack) if record.author.account == context.account => {
                        brought.insert(pack.name, record.author.session);
                    }
                    Op::CondemnPacks { .. } | Op::QuarantinePacks { .. } | Op::RebasePack { .. } => {
                        upkeep.insert(record.author.session);
                    }
                    _ => {}
                }
            }
        }
        // What collecting, repacking and repairing move is everybody's.
        brought.retain(|_, session| !upkeep.contains(session));
        let in_brought = open.iter().zip(&places);
        let in_brought = in_brought.filter(|(_, place)| place.is_some_and(|p| brought.contains_key(&p.pack)));
        self.there.extend(in_brought.map(|(id, _)| *id));
        Ok(())
    }

    /// Whether the caller may count on a chunk.
    pub fn has(&self, id: ChunkId) -> bool {
        self.there.contains(&id) || self.shown.contains(&id)
    }

    /// The caller has shown that it has a chunk.
    pub fn add(&mut self, id: ChunkId) {
        self.shown.insert(id);
    }

    /// Whether somebody takes back what the caller was to count on.
    pub fn is_withdrawn(&self, catalog: &Catalog, account: AccountId) -> bool {
        let may_read = |id| catalog.snapshots.get(id).is_some_and(|snapshot| snapshot.readable_by(account));
        !self.shown_in.iter().all(may_read)
    }

    /// The same by what the caller may read now, if something was taken back; what it has shown to have stays.
    pub fn renew(
        &mut self,
        target: &Region,
        maps: &[BlockMap],
        context: &Context<'_>,
    ) -> Result<(), OpsError> {
        if self.is_withdrawn(&target.catalog()?, context.account) {
            *self = Self { shown: std::mem::take(&mut self.shown), ..Self::of(target, maps, context)? };
        }
        Ok(())
    }
}
