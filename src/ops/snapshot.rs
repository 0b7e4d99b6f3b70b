//! Snapshot: a disk becomes a snapshot of a region.

use super::changed::{Changed, changed_map, differences, is_as_parent, was_cut_with};
use super::context::Context;
use super::encode::Compression;
use super::error::{Code, OpsError};
use super::find::{check_description, check_manifests, check_packs, check_tags, snapshot as find_snapshot};
use super::gc::despite_collection;
use super::ingest::{Ingested, ingest, ingest_changed, ingest_like};
use crate::disk::DiskRead;
use crate::model::account::Tag;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::Catalog;
use crate::model::changes::Changes;
use crate::model::ids::SnapshotId;
use crate::model::op::Op;
use crate::model::snapshot::Snapshot;
use crate::model::words::SnapshotState;
use crate::region::Region;
use crate::region::session::Session;
use std::ops::Range;

/// Chunks that are looked up at once.
const LOOKED_UP_AT_ONCE: usize = 64 << 10;

/// What is said of a new snapshot.
#[derive(Debug, Clone, Default)]
pub struct SnapshotOptions {
    /// What its owner says of it.
    pub description: String,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// The snapshot that it follows.
    pub parent: Option<SnapshotId>,
    /// Where the disk may differ from that snapshot.
    pub hint: Option<Hint>,
    /// How its new chunks are stored.
    pub compression: Compression,
}

/// Where a disk may differ from the parent snapshot.
#[derive(Debug, Clone)]
pub struct Hint {
    /// What may have changed. It is believed: content that changed elsewhere is not in the snapshot.
    pub changes: Changes,
    /// Read everything all the same, and tell where the hint was wrong.
    pub verify: bool,
}

/// What became of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HintUse {
    /// Only what is near changes was read.
    Believed,
    /// Everything was read, because the hint cannot be used.
    Unusable {
        /// Why not.
        why: String,
    },
    /// Everything was read, and compared with what the hint would have given.
    Verified {
        /// Bytes in which that would have been wrong: chunks that differ. Empty if the hint is right.
        wrong: Vec<Range<u64>>,
    },
}

/// A snapshot that was taken, and what it cost.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What bringing it in has given.
    pub ingested: Ingested,
    /// What became of the hint, if there was one.
    pub hint: Option<HintUse>,
}

/// Brings a disk into the region as a snapshot owned by the caller.
pub fn snapshot(
    region: &Region,
    disk: &dyn DiskRead,
    options: &SnapshotOptions,
    context: &Context<'_>,
) -> Result<Taken, OpsError> {
    check_description(&options.description)?;
    check_tags(&options.tags)?;
    if let Some(parent) = options.parent {
        find_snapshot(&region.catalog()?, context.account, parent)?;
    } else if options.hint.is_some() {
        let why = "a hint says what changed since a snapshot: name that as the parent";
        return Err(OpsError::rule(Code::MissingParameter, why));
    }
    context.end_dry_run_in(region)?;
    despite_collection(|| store(region, disk, options, context))
}

fn store(
    region: &Region,
    disk: &dyn DiskRead,
    options: &SnapshotOptions,
    context: &Context<'_>,
) -> Result<Taken, OpsError> {
    let mut session = region.begin_unread(context.account)?;
    let known = region.known_catalog();
    let parent = options.parent.and_then(|parent| known.snapshots.get(&parent));
    let is_of_another = parent.is_some_and(|parent| parent.owner != context.account);
    context.progress.begin("snapshot", disk.len_bytes());
    let (ingested, hint) = bring_in(&mut session, disk, options, context)?;
    let snapshot = describe(region, &ingested, options, context)?;
    region.commit::<_, OpsError>(context.account, |catalog| {
        check_manifests(catalog, &session)?;
        // What was not read is the parent's: who may not have that any more gets no more of it.
        if let (Some(HintUse::Believed), Some(parent), true) = (&hint, options.parent, is_of_another) {
            // Then all is read, as if it had been so from the beginning.
            find_snapshot(catalog, context.account, parent)
                .map_err(|_| OpsError::ContentGone { what: parent.to_string() })?;
        }
        Ok((vec![create(catalog, &snapshot, &ingested)?], ()))
    })?;
    Ok(Taken { snapshot, ingested, hint })
}

/// Brings the disk in, with the hint if there is one that can be used.
fn bring_in(
    session: &mut Session,
    disk: &dyn DiskRead,
    options: &SnapshotOptions,
    context: &Context<'_>,
) -> Result<(Ingested, Option<HintUse>), OpsError> {
    let how = &options.compression;
    let Some(hint) = &options.hint else {
        return Ok((ingest_like(session, disk, options.parent, how, context)?, None));
    };
    let parent = match usable_parent(session.region(), disk, options, context)? {
        Ok(parent) => parent,
        Err(why) => return Ok((ingest(session, disk, how, context)?, Some(HintUse::Unusable { why }))),
    };
    let changes = hint.changes.clone().with(not_stored(session.region(), &parent)?);
    let changed = Changed { parent: &parent, changes: &changes };
    if !hint.verify && !is_as_parent(disk, changed, context)? {
        let why = "the disk differs from the parent where the hint says that nothing changed".to_owned();
        return Ok((ingest(session, disk, how, context)?, Some(HintUse::Unusable { why })));
    }
    if !hint.verify {
        return Ok((ingest_changed(session, disk, changed, how, context)?, Some(HintUse::Believed)));
    }
    let params = session.region().header().chunker;
    let hinted = changed_map(disk, params, changed, context)?;
    let ingested = ingest(session, disk, how, context)?;
    let map = session.region().load_map(&ingested.manifest).map_err(|error| match error.is_not_found() {
        // It was another snapshot's, which others have deleted.
        true => OpsError::ContentGone { what: ingested.manifest.name.to_string() },
        false => error.into(),
    })?;
    let wrong = differences(&map, &hinted);
    Ok((ingested, Some(HintUse::Verified { wrong })))
}

/// The parent's block map, if this disk's can be made from it; or why it cannot.
fn usable_parent(
    region: &Region,
    disk: &dyn DiskRead,
    options: &SnapshotOptions,
    context: &Context<'_>,
) -> Result<Result<BlockMap, String>, OpsError> {
    let catalog = region.catalog()?;
    let parent = match options.parent {
        // It was there when the command began.
        Some(id) => match find_snapshot(&catalog, context.account, id) {
            Ok(parent) => parent,
            Err(error) => return Ok(Err(error.to_string())),
        },
        None => return Ok(Err("there is no parent".into())),
    };
    let id = parent.id;
    if parent.volume_bytes != disk.len_bytes() {
        let (bytes, now) = (parent.volume_bytes, disk.len_bytes());
        return Ok(Err(format!("{id} has {bytes} bytes, the disk {now}")));
    }
    if parent.source.is_some() {
        return Ok(Err(format!("{id} is a copy, and may have been cut otherwise where it comes from")));
    }
    match region.load_map(&parent.manifest) {
        Ok(map) if was_cut_with(&map, region.header().chunker) => Ok(Ok(map)),
        Ok(_) => Ok(Err(format!("{id} was cut otherwise than this region cuts"))),
        Err(error) => Ok(Err(format!("the block map of {id} cannot be read: {error}"))),
    }
}

/// What has to be read although it did not change, because its chunks are lost: they are stored anew.
fn not_stored(region: &Region, map: &BlockMap) -> Result<Changes, OpsError> {
    let mut missing = Changes::default();
    for chunks in map.chunks().chunks(LOOKED_UP_AT_ONCE) {
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
        let is_there = region.has_chunks(&ids)?;
        for (chunk, _) in chunks.iter().zip(is_there).filter(|(_, is_there)| !is_there) {
            missing.add_blocks(chunk.start_block..chunk.end_block());
        }
    }
    Ok(missing)
}

/// The snapshot that an ingested volume will be.
pub(super) fn describe(
    region: &Region,
    ingested: &Ingested,
    options: &SnapshotOptions,
    context: &Context<'_>,
) -> Result<Snapshot, OpsError> {
    Ok(Snapshot {
        id: SnapshotId::from_random(region.random_id()?),
        owner: context.account,
        description: options.description.clone(),
        volume_bytes: ingested.volume_bytes,
        data_bytes: ingested.data_bytes,
        state: SnapshotState::Completed,
        created_ms: context.now_ms,
        tags: options.tags.clone(),
        parent: options.parent,
        volume: None,
        source: None,
        create_volume_permissions: Vec::new(),
        client_token: None,
        manifest: ingested.manifest.clone(),
    })
}

/// The operation that makes an ingested volume's snapshot exist, in a record that follows this state.
pub(super) fn create(catalog: &Catalog, snapshot: &Snapshot, ingested: &Ingested) -> Result<Op, OpsError> {
    let packs = check_packs(catalog, &ingested.packs)?;
    Ok(Op::CreateSnapshot { snapshot: Box::new(snapshot.clone()), packs })
}
