//! Stats: what a region holds, what things cost in it, and what deleting each would give back.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{AnyId, image as find_image, snapshot as find_snapshot};
use crate::model::catalog::Catalog;
use crate::model::ids::{ChunkId, SnapshotId};
use crate::region::Region;
use std::collections::{BTreeMap, HashMap};

/// A region's figures, in bytes unless they count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionStats {
    /// Length of the volumes of all snapshots.
    pub volume_bytes: u64,
    /// Of it what is not in zero runs.
    pub data_bytes: u64,
    /// Raw bytes of all different chunks that snapshots refer to.
    pub unique_bytes: u64,
    /// All files of the region.
    pub store_bytes: u64,
    /// Of it the index segments.
    pub index_bytes: u64,
    /// Number of images.
    pub images: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Number of different chunks that snapshots refer to.
    pub chunks: u64,
    /// Number of packs.
    pub packs: u64,
}

/// What one image or snapshot costs, in stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemStats {
    /// Its id, as it was given.
    pub id: String,
    /// Stored bytes of chunks that nothing else refers to, and its manifests that nothing else has.
    pub unique_stored_bytes: u64,
    /// Stored bytes of its other chunks.
    pub shared_stored_bytes: u64,
    /// What deleting it, and for an image its snapshots, would give back after collection and repacking. Less
    /// than its unique bytes if something keeps it.
    pub freed_bytes: u64,
}

/// How often, and by whom, each chunk is referred to.
struct References {
    chunks: HashMap<ChunkId, Chunk>,
}

struct Chunk {
    stored_bytes: u64,
    raw_bytes: u64,
    /// The one root that refers to it, or that there are several.
    owner: Owner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    One(SnapshotId),
    Several,
}

/// The figures of a whole region.
pub fn region_stats(region: &Region, context: &Context<'_>) -> Result<RegionStats, OpsError> {
    let catalog = region.catalog()?;
    let references = References::of(region, &catalog, &BTreeMap::new(), context)?;
    let objects = region.objects()?;
    let sum = |prefix: &str| objects.iter().filter(|o| o.name.starts_with(prefix)).map(|o| o.len).sum();
    Ok(RegionStats {
        volume_bytes: catalog.snapshots.values().map(|s| s.volume_bytes).fold(0, u64::saturating_add),
        data_bytes: catalog.snapshots.values().map(|s| s.data_bytes).fold(0, u64::saturating_add),
        unique_bytes: references.chunks.values().map(|chunk| chunk.raw_bytes).sum(),
        store_bytes: sum(""),
        index_bytes: sum("index/"),
        images: catalog.images.len() as u64,
        snapshots: catalog.snapshots.len() as u64,
        chunks: references.chunks.len() as u64,
        packs: catalog.packs.len() as u64,
    })
}

/// What single images and snapshots cost.
pub fn item_stats(region: &Region, ids: &[AnyId], context: &Context<'_>) -> Result<Vec<ItemStats>, OpsError> {
    let catalog = region.catalog()?;
    ids.iter().map(|id| item(region, &catalog, *id, context)).collect()
}

fn item(region: &Region, catalog: &Catalog, id: AnyId, context: &Context<'_>) -> Result<ItemStats, OpsError> {
    let (name, snapshots, kept) = match id {
        AnyId::Image(id) => {
            let snapshots: Vec<_> = find_image(catalog, context.account, id)?.snapshot_ids().collect();
            let other_image = |snapshot: &SnapshotId| {
                catalog.images.values().any(|i| i.id != id && i.snapshot_ids().any(|s| s == *snapshot))
            };
            let kept: Vec<_> =
                snapshots.iter().filter(|s| other_image(s) || under_volume(catalog, **s)).copied().collect();
            (id.to_string(), snapshots, kept)
        }
        AnyId::Snapshot(id) => {
            find_snapshot(catalog, context.account, id)?;
            let in_use = catalog.image_using(id).is_some() || under_volume(catalog, id);
            (id.to_string(), vec![id], if in_use { vec![id] } else { vec![] })
        }
        AnyId::Volume(_) | AnyId::Instance(_) => {
            return Err(OpsError::rule(Code::InvalidParameterValue, "stats takes images and snapshots"));
        }
    };
    // The item's snapshots count as one root: what two of its own devices share is still its own.
    let Some(&first) = snapshots.first() else {
        return Ok(ItemStats { id: name, unique_stored_bytes: 0, shared_stored_bytes: 0, freed_bytes: 0 });
    };
    let freed = snapshots.iter().copied().find(|s| !kept.contains(s));
    let one: BTreeMap<_, _> = snapshots.iter().map(|&snapshot| (snapshot, first)).collect();
    let references = References::of(region, catalog, &one, context)?;
    let (mut unique, mut shared) = (0, 0);
    for id in own_chunks(region, catalog, &snapshots)? {
        let Some(chunk) = references.chunks.get(&id) else { continue };
        let sum = if chunk.owner == Owner::One(first) { &mut unique } else { &mut shared };
        *sum += chunk.stored_bytes;
    }
    unique += manifest_bytes(catalog, &snapshots);
    let freed_bytes = match freed {
        None => 0,
        Some(_) if kept.is_empty() => unique,
        Some(freed) => freed_beside(region, catalog, &snapshots, &kept, freed, context)?,
    };
    Ok(ItemStats { id: name, unique_stored_bytes: unique, shared_stored_bytes: shared, freed_bytes })
}

/// What deleting some of an item's snapshots frees while others are kept.
fn freed_beside(
    region: &Region,
    catalog: &Catalog,
    snapshots: &[SnapshotId],
    kept: &[SnapshotId],
    representative: SnapshotId,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let freed: Vec<_> = snapshots.iter().filter(|s| !kept.contains(s)).copied().collect();
    let one: BTreeMap<_, _> = freed.iter().map(|&snapshot| (snapshot, representative)).collect();
    let references = References::of(region, catalog, &one, context)?;
    let alone = |chunk: &&Chunk| chunk.owner == Owner::One(representative);
    let chunks: u64 = references.chunks.values().filter(alone).map(|chunk| chunk.stored_bytes).sum();
    Ok(chunks + manifest_bytes(catalog, &freed))
}

fn under_volume(catalog: &Catalog, id: SnapshotId) -> bool {
    catalog.volumes.values().any(|volume| volume.snapshot_id == Some(id))
}

/// Bytes of manifests that only these snapshots have.
fn manifest_bytes(catalog: &Catalog, snapshots: &[SnapshotId]) -> u64 {
    let mut own = BTreeMap::new();
    for snapshot in snapshots.iter().filter_map(|id| catalog.snapshots.get(id)) {
        let name = snapshot.manifest.name;
        let elsewhere =
            catalog.roots().any(|other| other.manifest.name == name && !snapshots.contains(&other.id));
        if !elsewhere {
            own.insert(name, snapshot.manifest.len);
        }
    }
    own.values().sum()
}

fn own_chunks(
    region: &Region,
    catalog: &Catalog,
    snapshots: &[SnapshotId],
) -> Result<std::collections::BTreeSet<ChunkId>, OpsError> {
    let mut ids = std::collections::BTreeSet::new();
    for snapshot in snapshots.iter().filter_map(|id| catalog.snapshots.get(id)) {
        ids.extend(region.load_map(&snapshot.manifest)?.chunks().iter().map(|chunk| chunk.id));
    }
    Ok(ids)
}

impl References {
    /// Every chunk that a root refers to. Roots in `one` count as the root that they are mapped to.
    fn of(
        region: &Region,
        catalog: &Catalog,
        one: &BTreeMap<SnapshotId, SnapshotId>,
        context: &Context<'_>,
    ) -> Result<Self, OpsError> {
        let mut chunks: HashMap<ChunkId, Chunk> = HashMap::new();
        for root in catalog.roots() {
            context.check_cancelled()?;
            let owner = Owner::One(one.get(&root.id).copied().unwrap_or(root.id));
            let map = region.load_map(&root.manifest)?;
            let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
            let unknown: Vec<ChunkId> = ids.iter().filter(|id| !chunks.contains_key(id)).copied().collect();
            for (id, location) in region.locate(&unknown)? {
                let stored_bytes = location.frame_bytes();
                let raw_bytes = location.raw_bytes();
                chunks.insert(id, Chunk { stored_bytes, raw_bytes, owner });
            }
            for id in ids {
                if let Some(chunk) = chunks.get_mut(&id)
                    && chunk.owner != owner
                {
                    chunk.owner = Owner::Several;
                }
            }
        }
        Ok(Self { chunks })
    }
}
