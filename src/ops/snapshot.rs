//! Snapshot: a disk becomes a snapshot of a region.

use super::context::Context;
use super::encode::Compression;
use super::error::OpsError;
use super::find::{check_description, check_manifests, check_tags, snapshot as find_snapshot};
use super::gc::despite_collection;
use super::ingest::{Ingested, ingest};
use crate::disk::DiskRead;
use crate::model::account::Tag;
use crate::model::ids::SnapshotId;
use crate::model::op::Op;
use crate::model::snapshot::Snapshot;
use crate::model::words::SnapshotState;
use crate::region::Region;

/// What is said of a new snapshot.
#[derive(Debug, Clone, Default)]
pub struct SnapshotOptions {
    /// What its owner says of it.
    pub description: String,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// The snapshot that it follows.
    pub parent: Option<SnapshotId>,
    /// How its new chunks are stored.
    pub compression: Compression,
}

/// A snapshot that was taken, and what it cost.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What bringing it in has given.
    pub ingested: Ingested,
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
    }
    context.end_dry_run()?;
    despite_collection(|| store(region, disk, options, context))
}

fn store(
    region: &Region,
    disk: &dyn DiskRead,
    options: &SnapshotOptions,
    context: &Context<'_>,
) -> Result<Taken, OpsError> {
    let mut session = region.begin(context.account)?;
    context.progress.begin("snapshot", disk.len_bytes());
    let ingested = ingest(&mut session, disk, &options.compression, context)?;
    let snapshot = describe(region, &ingested, options, context)?;
    region.commit::<_, OpsError>(context.account, |catalog| {
        check_manifests(catalog, &session)?;
        Ok((vec![create(&snapshot, &ingested)], ()))
    })?;
    Ok(Taken { snapshot, ingested })
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

/// The operation that makes an ingested volume's snapshot exist.
pub(super) fn create(snapshot: &Snapshot, ingested: &Ingested) -> Op {
    Op::CreateSnapshot { snapshot: Box::new(snapshot.clone()), packs: ingested.packs.clone() }
}
