//! Copy: an image or a snapshot into another region, or the same. Rules: EC2's CopyImage and CopySnapshot.
//!
//! The copy belongs to whoever makes it, has ids of its own, names its source, and stands alone: afterwards
//! the source region may vanish.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{check_description, image as find_image, snapshot as find_snapshot};
use super::modify::check_available;
use super::register::check_name_free;
use super::transfer::{Missing, find_missing, transfer};
use crate::model::account::Tag;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, ObjectHash, SnapshotId};
use crate::model::image::{DeviceTarget, Image, ImageSource, is_image_name};
use crate::model::objects::ManifestRecord;
use crate::model::op::Op;
use crate::model::snapshot::{Snapshot, SnapshotSource};
use crate::region::Region;
use crate::region::session::Session;
use std::collections::{BTreeMap, BTreeSet};

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyWhat {
    /// An image with its snapshots.
    Image(ImageId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// What is said of the copy.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// The name by which the caller knows the source region.
    pub source_region: String,
    /// The copy's name; none for the source's.
    pub name: Option<String>,
    /// The copy's description; none for the source's.
    pub description: Option<String>,
    /// Whether tags are copied, too.
    pub copy_tags: bool,
    /// The same request again gives the same copy.
    pub client_token: Option<String>,
}

/// What a copy will do and move. Nothing is changed yet.
pub struct CopyPlan {
    what: CopyWhat,
    image: Option<Image>,
    snapshots: Vec<Snapshot>,
    maps: Vec<BlockMap>,
    source_sequence: u64,
    missing: Missing,
    /// Bytes of manifests that the target lacks.
    manifest_bytes: u64,
}

impl CopyPlan {
    /// Bytes that will be moved: stored frames and manifests that the target lacks.
    pub fn transfer_bytes(&self) -> u64 {
        self.missing.stored_bytes + self.manifest_bytes
    }

    /// Chunks that will be moved.
    pub fn new_chunks(&self) -> u64 {
        self.missing.chunks()
    }

    /// Raw bytes of those.
    pub fn new_bytes(&self) -> u64 {
        self.missing.raw_bytes
    }

    /// Chunk references of all snapshots.
    pub fn chunks(&self) -> u64 {
        self.maps.iter().map(|map| map.chunks().len() as u64).sum()
    }

    /// Length of all volumes.
    pub fn volume_bytes(&self) -> u64 {
        self.maps.iter().map(BlockMap::volume_bytes).sum()
    }

    /// Bytes of all volumes outside zero runs.
    pub fn data_bytes(&self) -> u64 {
        self.maps.iter().map(BlockMap::data_bytes).sum()
    }
}

/// A copy that was made.
#[derive(Debug, Clone)]
pub struct Copied {
    /// The image, if one was copied.
    pub image: Option<Image>,
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Bytes that were moved.
    pub transferred_bytes: u64,
    /// Bytes that this added to the target.
    pub stored_bytes: u64,
    /// Whether an earlier request with the same token had made it.
    pub was_made_before: bool,
}

/// Plans a copy of something that the caller may use at the source.
pub fn plan(
    source: &Region,
    target: &Region,
    what: CopyWhat,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<CopyPlan, OpsError> {
    check_options(options)?;
    let catalog = source.catalog()?;
    let (image, snapshots) = select(&catalog, what, context)?;
    let maps = snapshots.iter().map(|s| source.load_map(&s.manifest)).collect::<Result<Vec<_>, _>>()?;
    let missing = find_missing(source, target, &maps, context)?;
    let there = target.catalog()?;
    let lacking =
        snapshots.iter().map(|s| &s.manifest).filter(|m| known_manifest(target, &there, m).is_none());
    let lacking: BTreeMap<ObjectHash, u64> = lacking.map(|manifest| (manifest.hash, manifest.len)).collect();
    let manifest_bytes = lacking.values().sum();
    Ok(CopyPlan { what, image, snapshots, maps, source_sequence: catalog.sequence, missing, manifest_bytes })
}

/// Carries out a plan.
pub fn apply(
    source: &Region,
    target: &Region,
    plan: &CopyPlan,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Copied, OpsError> {
    // Without operations a commit makes durable what it saw, and appends nothing.
    let made = target.commit::<_, OpsError>(context.account, |catalog| {
        Ok((vec![], made_before(catalog, plan, source, options, context)?))
    })?;
    if let Some(made) = made {
        return Ok(made);
    }
    if let Some(image) = &plan.image {
        let renamed = Image { name: copy_name(image, options), owner: context.account, ..image.clone() };
        check_name_free(&target.catalog()?, &renamed)?;
    }
    let mut session = target.begin(context.account)?;
    context.progress.begin("copy", plan.missing.stored_bytes);
    let mut transferred_bytes = transfer(source, &mut session, &plan.missing, context)?;
    let used = reserve_all(&mut session, plan)?;
    let (manifests, manifest_bytes) = place_manifests(&mut session, target, plan)?;
    transferred_bytes += manifest_bytes;
    session.flush()?;
    let snapshots = copied_snapshots(source, target, plan, &manifests, options, context)?;
    let image =
        plan.image.as_ref().map(|i| copied_image(source, target, i, plan, &snapshots, options, context));
    let image = image.transpose()?;
    let made = target.commit::<_, OpsError>(context.account, |catalog| {
        // The same request may have been faster, from another process.
        if let Some(made) = made_before(catalog, plan, source, options, context)? {
            return Ok((vec![], Some(made)));
        }
        let create = |s: &Snapshot| Op::CreateSnapshot { snapshot: Box::new(s.clone()), packs: used.clone() };
        let mut ops: Vec<Op> = snapshots.iter().map(create).collect();
        if let Some(image) = &image {
            check_name_free(catalog, image)?;
            ops.push(Op::RegisterImage(Box::new(image.clone())));
        }
        Ok((ops, None))
    })?;
    if let Some(made) = made {
        return Ok(made);
    }
    let stored_bytes = session.stored_bytes();
    Ok(Copied { image, snapshots, transferred_bytes, stored_bytes, was_made_before: false })
}

/// The manifests at the target: those that it has, the others written, each once.
fn place_manifests(
    session: &mut Session,
    target: &Region,
    plan: &CopyPlan,
) -> Result<(Vec<ManifestRecord>, u64), OpsError> {
    let there = target.catalog()?;
    let (mut placed, mut written_bytes): (Vec<ManifestRecord>, u64) = (Vec::new(), 0);
    for (snapshot, map) in plan.snapshots.iter().zip(&plan.maps) {
        let same = |known: &&ManifestRecord| known.hash == snapshot.manifest.hash;
        let known = placed.iter().find(same).cloned();
        placed.push(match known.or_else(|| known_manifest(target, &there, &snapshot.manifest)) {
            Some(known) => known,
            None => {
                written_bytes += snapshot.manifest.len;
                session.write_manifest(map)?
            }
        });
    }
    Ok((placed, written_bytes))
}

/// Makes sure that every chunk of every map is at the target now, and gives the packs that hold them.
fn reserve_all(
    session: &mut Session,
    plan: &CopyPlan,
) -> Result<Vec<crate::model::objects::PackName>, OpsError> {
    session.flush()?;
    for map in &plan.maps {
        let ids: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
        let lacking = session.reserve(&ids)?.iter().position(|is_new| *is_new);
        if let Some(at) = lacking {
            // Collected at the target between plan and now; the next try carries it over.
            let chunk = ids[at];
            return Err(session.region().missing(chunk).into());
        }
    }
    Ok(session.used_packs())
}

fn check_options(options: &CopyOptions) -> Result<(), OpsError> {
    if let Some(name) = options.name.as_deref().filter(|name| !is_image_name(name)) {
        return Err(OpsError::rule(Code::ImageNameMalformed, format!("AMI name '{name}' is not allowed")));
    }
    if options.client_token.as_ref().is_some_and(|token| token.is_empty() || token.len() > 64) {
        return Err(OpsError::rule(Code::InvalidParameterValue, "a client token has 1 to 64 bytes"));
    }
    options.description.as_deref().map_or(Ok(()), check_description)
}

/// The image and snapshots to copy, if the caller may.
fn select(
    catalog: &Catalog,
    what: CopyWhat,
    context: &Context<'_>,
) -> Result<(Option<Image>, Vec<Snapshot>), OpsError> {
    match what {
        CopyWhat::Snapshot(id) => Ok((None, vec![find_snapshot(catalog, context.account, id)?.clone()])),
        CopyWhat::Image(id) => {
            let image = find_image(catalog, context.account, id)?;
            check_available(image)?;
            let snapshots = image.snapshot_ids().map(|id| {
                find_snapshot(catalog, context.account, id).cloned().map_err(|_| {
                    let why = "You do not have permission to access the storage of this ami";
                    OpsError::rule(Code::AuthFailure, why)
                })
            });
            Ok((Some(image.clone()), snapshots.collect::<Result<_, _>>()?))
        }
    }
}

/// The record of a manifest with the same bytes at the target, if it can be read there.
fn known_manifest(target: &Region, catalog: &Catalog, manifest: &ManifestRecord) -> Option<ManifestRecord> {
    let same = catalog.roots().map(|snapshot| &snapshot.manifest).filter(|known| known.hash == manifest.hash);
    let mut seen = BTreeSet::new();
    let mut once = same.filter(|known| seen.insert(known.name));
    once.find(|known| target.load_map(known).is_ok()).cloned()
}

fn copy_name(image: &Image, options: &CopyOptions) -> String {
    options.name.clone().unwrap_or_else(|| image.name.clone())
}

/// What an earlier request with the same token made. With other arguments the token is refused.
fn made_before(
    catalog: &Catalog,
    plan: &CopyPlan,
    source: &Region,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Option<Copied>, OpsError> {
    let Some(token) = &options.client_token else { return Ok(None) };
    let mismatch = || {
        let why = "The client token was used before with other parameters";
        Err(OpsError::rule(Code::IdempotentParameterMismatch, why))
    };
    let region_id = source.header().id;
    let made = |image: Option<Image>, snapshots: Vec<Snapshot>| {
        Ok(Some(Copied { image, snapshots, transferred_bytes: 0, stored_bytes: 0, was_made_before: true }))
    };
    match (plan.what, &plan.image) {
        (CopyWhat::Image(id), Some(image)) => {
            let used = |i: &&Image| i.owner == context.account && i.client_token.as_ref() == Some(token);
            let Some(copy) = catalog.images.values().find(used) else { return Ok(None) };
            let same = copy.source.as_ref().is_some_and(|s| s.image_id == id && s.region_id == region_id);
            let described = options.description.as_ref().unwrap_or(&image.description);
            if !same || copy.name != copy_name(image, options) || copy.description != *described {
                return mismatch();
            }
            let snapshots =
                copy.snapshot_ids().filter_map(|id| catalog.snapshots.get(&id).cloned()).collect();
            made(Some(copy.clone()), snapshots)
        }
        (CopyWhat::Snapshot(id), _) => {
            let used = |s: &&Snapshot| s.owner == context.account && s.client_token.as_ref() == Some(token);
            let Some(copy) = catalog.snapshots.values().find(used) else { return Ok(None) };
            let described = options.description.as_ref().or(plan.snapshots.first().map(|s| &s.description));
            match &copy.source {
                Some(s)
                    if s.snapshot_id == id
                        && s.region_id == region_id
                        && described == Some(&copy.description) =>
                {
                    made(None, vec![copy.clone()])
                }
                _ => mismatch(),
            }
        }
        (CopyWhat::Image(_), None) => Ok(None),
    }
}

fn copied_tags(tags: &[Tag], options: &CopyOptions) -> Vec<Tag> {
    if options.copy_tags { tags.to_vec() } else { Vec::new() }
}

fn copied_snapshots(
    source: &Region,
    target: &Region,
    plan: &CopyPlan,
    manifests: &[ManifestRecord],
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Vec<Snapshot>, OpsError> {
    let copy = |(snapshot, manifest): (&Snapshot, &ManifestRecord)| {
        let is_image = plan.image.is_some();
        let described = options.description.clone().filter(|_| !is_image);
        Ok(Snapshot {
            id: SnapshotId::from_random(target.random_id()?),
            owner: context.account,
            description: described.unwrap_or_else(|| snapshot.description.clone()),
            created_ms: target.now_ms(),
            tags: copied_tags(&snapshot.tags, options),
            parent: None,
            volume: None,
            source: Some(SnapshotSource {
                region_id: source.header().id,
                region: options.source_region.clone(),
                snapshot_id: snapshot.id,
                sequence: plan.source_sequence,
            }),
            create_volume_permissions: Vec::new(),
            client_token: options.client_token.clone().filter(|_| !is_image),
            manifest: manifest.clone(),
            ..snapshot.clone()
        })
    };
    plan.snapshots.iter().zip(manifests).map(copy).collect()
}

fn copied_image(
    source: &Region,
    target: &Region,
    image: &Image,
    plan: &CopyPlan,
    snapshots: &[Snapshot],
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Image, OpsError> {
    let new_id = |old: SnapshotId| {
        plan.snapshots.iter().zip(snapshots).find(|(from, _)| from.id == old).map(|(_, to)| to.id)
    };
    let mut devices = image.devices.clone();
    for device in &mut devices {
        if let DeviceTarget::Ebs(ebs) = &mut device.target {
            ebs.snapshot_id = ebs.snapshot_id.and_then(new_id);
        }
    }
    Ok(Image {
        id: ImageId::from_random(target.random_id()?),
        name: copy_name(image, options),
        description: options.description.clone().unwrap_or_else(|| image.description.clone()),
        owner: context.account,
        devices,
        launch_permissions: Vec::new(),
        tags: copied_tags(&image.tags, options),
        created_ms: target.now_ms(),
        deprecation_ms: None,
        deregistration_protected: false,
        source: Some(ImageSource {
            region_id: source.header().id,
            region: options.source_region.clone(),
            image_id: image.id,
            owner: image.owner,
        }),
        source_instance: None,
        predecessor: None,
        client_token: options.client_token.clone(),
        ..image.clone()
    })
}
