//! What a caller may count on as being there already, where it does not own the place.
//!
//! Who knows the hash of a chunk does not have its content. A copy from somebody who is only let in may therefore leave
//! out a chunk only if that caller could read it there anyway; whatever else is there is sent and proved like anything
//! new, and so nobody learns from what is asked for what others have.

use super::context::Context;
use super::error::OpsError;
use crate::model::blockmap::BlockMap;
use crate::model::ids::ChunkId;
use crate::model::objects::ManifestName;
use crate::model::op::Op;
use crate::region::Region;
use std::collections::{BTreeSet, HashMap, HashSet};

/// How many records back packs of the caller's own, unfinished copies are looked for.
const RECORDS_BACK: u64 = 10_000;

/// Chunks that a caller may count on, of those that it wants to.
#[derive(Debug, Clone, Default)]
pub struct Trusted(HashSet<ChunkId>);

impl Trusted {
    /// Of the chunks of some maps those that are in a snapshot which the caller may read, or that the caller itself has
    /// brought, in a copy that was not finished.
    pub fn of(target: &Region, maps: &[BlockMap], context: &Context<'_>) -> Result<Self, OpsError> {
        let wanted: HashSet<ChunkId> =
            maps.iter().flat_map(|map| map.chunks()).map(|chunk| chunk.id).collect();
        let catalog = target.catalog()?;
        let readable = catalog.snapshots.values().filter(|snapshot| snapshot.readable_by(context.account));
        let own = catalog.templates.values().filter(|template| template.owner == context.account);
        let manifests = readable.map(|s| &s.manifest).chain(own.map(|template| &template.manifest));
        let (mut trusted, mut seen) = (Self::default(), BTreeSet::<ManifestName>::new());
        for manifest in manifests {
            context.check_cancelled()?;
            if trusted.0.len() == wanted.len() {
                return Ok(trusted);
            }
            if !seen.insert(manifest.name) {
                continue;
            }
            let map = match target.load_map(manifest) {
                Ok(map) => map,
                // What cannot be told of one is brought again.
                Err(error) if error.is_damage() || error.is_failed_read() => continue,
                Err(error) => return Err(error.into()),
            };
            trusted.0.extend(map.chunks().iter().map(|chunk| chunk.id).filter(|id| wanted.contains(id)));
        }
        trusted.add_brought(target, catalog.sequence, &wanted, context)?;
        Ok(trusted)
    }

    /// Chunks in packs that the caller's own commands registered not long ago.
    fn add_brought(
        &mut self,
        target: &Region,
        sequence: u64,
        wanted: &HashSet<ChunkId>,
        context: &Context<'_>,
    ) -> Result<(), OpsError> {
        let open: Vec<ChunkId> = wanted.iter().filter(|id| !self.0.contains(id)).copied().collect();
        let places = target.try_locate_usable(&open)?;
        if places.iter().all(Option::is_none) {
            return Ok(());
        }
        let (mut brought, mut upkeep) = (HashMap::new(), HashSet::new());
        for sequence in (sequence.saturating_sub(RECORDS_BACK) + 1..=sequence).rev() {
            context.check_cancelled()?;
            let Some(record) = target.record(sequence)? else { continue };
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
        self.0.extend(in_brought.map(|(id, _)| *id));
        Ok(())
    }

    /// Whether the caller may count on a chunk.
    pub fn has(&self, id: ChunkId) -> bool {
        self.0.contains(&id)
    }

    /// The caller has shown that it has a chunk.
    pub fn add(&mut self, id: ChunkId) {
        self.0.insert(id);
    }
}
