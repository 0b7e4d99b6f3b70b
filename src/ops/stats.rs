//! Stats: what a region holds, what things cost in it, and what deleting each would give back.

use super::bin::expire_all;
use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{AnyId, image as find_image, snapshot as find_snapshot};
use super::restore::check_named;
use crate::model::catalog::{Catalog, RootId};
use crate::model::ids::{ChunkId, SnapshotId, TemplateId};
use crate::model::objects::PackName;
use crate::region::Region;
use crate::region::error::RegionError;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A region's figures, in bytes unless they count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionStats {
    /// Length of the volumes of all snapshots and templates, with those in the bin or under volumes only.
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
    /// What could not be read and is left out of the figures: packs, block maps, and the caller's snapshots of which chunks
    /// are lost.
    pub unread: BTreeSet<String>,
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
    /// What keeps its content, whoever deletes it.
    pub kept_by: BTreeSet<Keeper>,
    /// As in [`RegionStats::unread`].
    pub unread: BTreeSet<String>,
}

/// What content stays for when an image or a snapshot is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keeper {
    /// Other images of its snapshots, also in the bin.
    Images,
    /// Volumes that were made from its snapshots, also deleted ones: those of instances are among them.
    Volumes,
    /// Instances of its template.
    Instances,
    /// The owner of its snapshots, who is another than the image's.
    Owner,
}

impl Keeper {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Volumes => "volumes",
            Self::Instances => "instances",
            Self::Owner => "owner",
        }
    }
}

/// How often references are read while others commit, before what could not be read is told.
const TRIES: usize = 3;

/// How often, and by whom, each chunk is referred to.
struct References {
    chunks: HashMap<ChunkId, Chunk>,
    /// Chunks that are only there since others are stored against them, by the leading bytes of their ids.
    bases: HashMap<u64, Chunk>,
    /// What each delta is stored against, by the leading bytes of its id.
    base_of: HashMap<ChunkId, u64>,
    /// Chunks of the roots that count as another one.
    own: BTreeSet<ChunkId>,
    unread: BTreeSet<String>,
}

struct Chunk {
    stored_bytes: u64,
    raw_bytes: u64,
    /// The one root that refers to it, or that there are several.
    owner: Owner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    One(RootId),
    Several,
}

/// The figures of a whole region.
pub fn region_stats(region: &Region, context: &Context<'_>) -> Result<RegionStats, OpsError> {
    let catalog = region.catalog()?;
    let references = References::of(region, &catalog, &BTreeMap::new(), context)?;
    let objects = region.objects()?;
    let sum = |prefix: &str| objects.iter().filter(|o| o.name.starts_with(prefix)).map(|o| o.len).sum();
    Ok(RegionStats {
        volume_bytes: catalog.roots().map(|root| root.volume_bytes).fold(0, u64::saturating_add),
        data_bytes: catalog.roots().map(|root| root.data_bytes).fold(0, u64::saturating_add),
        unique_bytes: references.chunks.values().map(|chunk| chunk.raw_bytes).sum(),
        store_bytes: sum(""),
        index_bytes: sum("index/"),
        images: catalog.images.len() as u64,
        snapshots: catalog.snapshots.len() as u64,
        chunks: references.chunks.len() as u64,
        packs: catalog.packs.len() as u64,
        unread: references.unread,
    })
}

/// What single images and snapshots cost.
pub fn item_stats(region: &Region, ids: &[AnyId], context: &Context<'_>) -> Result<Vec<ItemStats>, OpsError> {
    let catalog = without_overdue(&region.catalog()?, context)?;
    ids.iter().map(|id| item(region, &catalog, *id, context)).collect()
}

/// Without what is in the bin and can be restored no more: it keeps nothing.
fn without_overdue(catalog: &Catalog, context: &Context<'_>) -> Result<Catalog, OpsError> {
    let after = catalog.after(&expire_all(catalog, context));
    after.map_err(|rejection| RegionError::Rejected(rejection).into())
}

fn item(region: &Region, catalog: &Catalog, id: AnyId, context: &Context<'_>) -> Result<ItemStats, OpsError> {
    let mut kept_by = BTreeSet::new();
    let (name, roots, freed) = match id {
        AnyId::Image(id) => {
            let image = find_image(catalog, context.account, id)?;
            let other_image = |snapshot: SnapshotId| {
                catalog.images_using(snapshot).any(|user| user != id)
                    || catalog.binned_images_using(snapshot).next().is_some()
            };
            let is_owners = |id: SnapshotId| {
                catalog.snapshots.get(&id).is_some_and(|snapshot| snapshot.owner == image.owner)
            };
            let snapshots: BTreeSet<SnapshotId> = image.snapshot_ids().collect();
            kept_by.extend(snapshots.iter().any(|id| other_image(*id)).then_some(Keeper::Images));
            kept_by.extend(snapshots.iter().any(|id| !is_owners(*id)).then_some(Keeper::Owner));
            let alone = snapshots.iter().copied().filter(|id| !other_image(*id) && is_owners(*id));
            let freed = roots_of(alone, image.template);
            (id.to_string(), roots_of(snapshots.iter().copied(), image.template), freed)
        }
        AnyId::Snapshot(id) => {
            find_snapshot(catalog, context.account, id)?;
            let is_used = catalog.image_using(id).is_some();
            kept_by.extend(is_used.then_some(Keeper::Images));
            let freed = if is_used { vec![] } else { vec![RootId::Snapshot(id)] };
            (id.to_string(), vec![RootId::Snapshot(id)], freed)
        }
        AnyId::Volume(_) | AnyId::Instance(_) => {
            return Err(OpsError::rule(Code::InvalidParameterValue, "stats takes images and snapshots"));
        }
    };
    // The item's roots count as one: what two of its own devices share is still its own.
    let Some(&first) = roots.first() else {
        let unread = BTreeSet::new();
        let (unique_stored_bytes, shared_stored_bytes, freed_bytes) = (0, 0, 0);
        return Ok(ItemStats {
            id: name,
            unique_stored_bytes,
            shared_stored_bytes,
            freed_bytes,
            kept_by,
            unread,
        });
    };
    let one = roots.iter().map(|&root| (root, first)).collect();
    let references = References::of(region, catalog, &one, context)?;
    let (mut unique, mut shared) = (0, 0);
    let own = &references.own;
    for id in own {
        let Some(chunk) = references.chunks.get(id) else { continue };
        let sum = if chunk.owner == Owner::One(first) { &mut unique } else { &mut shared };
        *sum += chunk.stored_bytes;
    }
    unique += references.bases_alone(first);
    shared += references.bases_with_others(own, first);
    unique += manifest_bytes(catalog, &roots);
    kept_by.extend(roots.iter().filter_map(|root| keeper(catalog, *root)));
    let freed: Vec<_> = freed.into_iter().filter(|root| keeper(catalog, *root).is_none()).collect();
    let freed_bytes = if freed == roots { unique } else { freed_with(region, catalog, &freed, context)?.0 };
    let (unique_stored_bytes, shared_stored_bytes, unread) = (unique, shared, references.unread);
    Ok(ItemStats { id: name, unique_stored_bytes, shared_stored_bytes, freed_bytes, kept_by, unread })
}

/// What removing snapshots and templates gives back after collection and repacking. What volumes and live
/// instances stand on gives back nothing. The watcher is told what could not be read and is left out.
pub(super) fn freed_bytes(
    region: &Region,
    catalog: &Catalog,
    snapshots: &[SnapshotId],
    templates: &[TemplateId],
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let catalog = &without_overdue(catalog, context)?;
    let mut roots = roots_of(snapshots.iter().copied(), templates.iter().copied());
    roots.retain(|root| keeper(catalog, *root).is_none());
    let (freed_bytes, unread) = freed_with(region, catalog, &roots, context)?;
    if !unread.is_empty() {
        context.progress.note(&unread_sentence(&unread));
    }
    Ok(freed_bytes)
}

/// That figures leave something out.
pub fn unread_sentence(unread: &BTreeSet<String>) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<&str> = unread.iter().take(SHOWN).map(String::as_str).collect();
    let more = format!("{} more", unread.len().saturating_sub(SHOWN));
    if unread.len() > SHOWN {
        names.push(&more);
    }
    format!(
        "the figures leave out what cannot be read now: {}; `imgstore verify` says what is affected",
        names.join(", ")
    )
}

fn roots_of(
    snapshots: impl IntoIterator<Item = SnapshotId>,
    templates: impl IntoIterator<Item = TemplateId>,
) -> Vec<RootId> {
    let snapshots = snapshots.into_iter().map(RootId::Snapshot);
    snapshots.chain(templates.into_iter().map(RootId::Template)).collect()
}

/// What removing roots gives back, and what could not be read for it.
fn freed_with(
    region: &Region,
    catalog: &Catalog,
    freed: &[RootId],
    context: &Context<'_>,
) -> Result<(u64, BTreeSet<String>), OpsError> {
    let Some(&first) = freed.first() else { return Ok((0, BTreeSet::new())) };
    let one = freed.iter().map(|&root| (root, first)).collect();
    let references = References::of(region, catalog, &one, context)?;
    let alone = |chunk: &&Chunk| chunk.owner == Owner::One(first);
    let chunks: u64 = references.chunks.values().filter(alone).map(|chunk| chunk.stored_bytes).sum();
    let freed_bytes = chunks + references.bases_alone(first) + manifest_bytes(catalog, freed);
    Ok((freed_bytes, references.unread))
}

/// Whether a volume or a live instance stands on a root.
fn keeper(catalog: &Catalog, root: RootId) -> Option<Keeper> {
    match root {
        RootId::Snapshot(id) => catalog.is_under_volume(id).then_some(Keeper::Volumes),
        RootId::Template(id) => catalog.is_under_instance(id).then_some(Keeper::Instances),
    }
}

/// Bytes of manifests that only these roots have.
fn manifest_bytes(catalog: &Catalog, roots: &[RootId]) -> u64 {
    let (mut own, mut elsewhere) = (BTreeMap::new(), BTreeSet::new());
    for root in catalog.roots() {
        if roots.contains(&root.id) {
            own.insert(root.manifest.name, root.manifest.len);
        } else {
            elsewhere.insert(root.manifest.name);
        }
    }
    own.iter().filter(|(name, _)| !elsewhere.contains(name)).map(|(_, len)| len).sum()
}

/// Whether a root was deleted since its state was read. If it is among those that are asked about, that is the answer.
fn has_gone(region: &Region, root: RootId, one: &BTreeMap<RootId, RootId>) -> Result<bool, OpsError> {
    match check_named(region, root) {
        Err(gone @ OpsError::Rule { .. }) => {
            if one.contains_key(&root) {
                Err(gone)
            } else {
                Ok(true)
            }
        }
        named => named.map(|()| false),
    }
}

impl References {
    /// Every chunk that a root refers to. Roots in `one` count as the root that they are mapped to.
    fn of(
        region: &Region,
        catalog: &Catalog,
        one: &BTreeMap<RootId, RootId>,
        context: &Context<'_>,
    ) -> Result<Self, OpsError> {
        for _ in 1..TRIES {
            let before = region.catalog()?.sequence;
            let references = Self::read(region, catalog, one, context)?;
            // What others moved meanwhile is where it is now.
            if references.unread.is_empty() || region.catalog()?.sequence == before {
                return Ok(references);
            }
        }
        Self::read(region, catalog, one, context)
    }

    fn read(
        region: &Region,
        catalog: &Catalog,
        one: &BTreeMap<RootId, RootId>,
        context: &Context<'_>,
    ) -> Result<Self, OpsError> {
        let mut own = BTreeSet::new();
        let mut chunks: HashMap<ChunkId, Chunk> = HashMap::new();
        let mut deltas: BTreeMap<PackName, Vec<ChunkId>> = BTreeMap::new();
        let mut unread = BTreeSet::new();
        let told = |root: RootId| match root {
            RootId::Snapshot(id)
                if catalog.snapshots.get(&id).is_some_and(|s| s.owner == context.account) =>
            {
                id.to_string()
            }
            _ => "something of others, or that was deleted".to_owned(),
        };
        for root in catalog.roots() {
            context.check_cancelled()?;
            let owner = Owner::One(one.get(&root.id).copied().unwrap_or(root.id));
            let map = match region.load_root(&root) {
                Ok(map) => map,
                Err(error) if error.is_loss() => {
                    if !has_gone(region, root.id, one)? {
                        unread.insert(root.manifest.name.to_string());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
            if one.contains_key(&root.id) {
                own.extend(ids.iter().copied());
            }
            let unknown: Vec<ChunkId> = ids.iter().filter(|id| !chunks.contains_key(id)).copied().collect();
            let places = region.try_locate_usable(&unknown)?;
            for (id, location) in unknown.into_iter().zip(places) {
                let Some(location) = location else {
                    let name = told(root.id);
                    if unread.contains(&name) {
                        continue;
                    }
                    if has_gone(region, root.id, one)? {
                        break;
                    }
                    let missing = region.missing(id);
                    // What a pack may hold that is out of reach is left out and told of, too.
                    if !matches!(missing, RegionError::MissingChunk { .. }) {
                        return Err(missing.into());
                    }
                    unread.insert(name);
                    continue;
                };
                let stored_bytes = location.frame_bytes();
                let raw_bytes = location.raw_bytes();
                if !location.codec.is_plain() {
                    deltas.entry(location.pack).or_default().push(id);
                }
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
        let mut references = Self { chunks, bases: HashMap::new(), base_of: HashMap::new(), own, unread };
        references.add_bases(region, &deltas)?;
        Ok(references)
    }

    /// Whoever refers to a delta refers to its base, too.
    fn add_bases(
        &mut self,
        region: &Region,
        deltas: &BTreeMap<PackName, Vec<ChunkId>>,
    ) -> Result<(), OpsError> {
        if deltas.is_empty() {
            return Ok(());
        }
        let by_leading: HashMap<u64, ChunkId> = self.chunks.keys().map(|id| (id.leading(), *id)).collect();
        for (pack, ids) in deltas {
            let bases = match region.bases_in(pack) {
                Ok(bases) => bases,
                Err(error) if error.is_loss() => {
                    self.unread.insert(pack.to_string());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for id in ids {
                let Some(owner) = self.chunks.get(id).map(|chunk| chunk.owner) else { continue };
                let Some(leading) = bases.get(id) else {
                    // The pack has gone since.
                    self.unread.insert(pack.to_string());
                    continue;
                };
                self.base_of.insert(*id, *leading);
                let base = match by_leading.get(leading).and_then(|id| self.chunks.get_mut(id)) {
                    Some(base) => base,
                    None => {
                        let stored_bytes =
                            region.find_base(*leading)?.map_or(0, |(_, place)| place.frame_bytes());
                        self.bases.entry(*leading).or_insert(Chunk { stored_bytes, raw_bytes: 0, owner })
                    }
                };
                if base.owner != owner {
                    base.owner = Owner::Several;
                }
            }
        }
        Ok(())
    }

    /// Stored bytes of what deltas among some chunks of a root are stored against, is not among them, and is there for others,
    /// too.
    fn bases_with_others(&self, own: &BTreeSet<ChunkId>, root: RootId) -> u64 {
        let needed: BTreeSet<u64> = own.iter().filter_map(|id| self.base_of.get(id)).copied().collect();
        let own: BTreeSet<u64> = own.iter().map(ChunkId::leading).collect();
        let of_others: BTreeSet<u64> = needed.difference(&own).copied().collect();
        if of_others.is_empty() {
            return 0;
        }
        let only_bases = of_others.iter().filter_map(|leading| self.bases.get(leading));
        let shared = only_bases.filter(|base| base.owner != Owner::One(root)).map(|base| base.stored_bytes);
        let referred = self.chunks.iter().filter(|(id, _)| of_others.contains(&id.leading()));
        shared.sum::<u64>() + referred.map(|(_, chunk)| chunk.stored_bytes).sum::<u64>()
    }

    /// Stored bytes of bases that nothing else refers to and only deltas of one root need.
    fn bases_alone(&self, root: RootId) -> u64 {
        self.bases.values().filter(|base| base.owner == Owner::One(root)).map(|base| base.stored_bytes).sum()
    }
}
