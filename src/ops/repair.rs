//! Repair: damaged packs are put in quarantine, and what was in them is stored again, from wherever it can be had: what
//! is intact in them, other regions, the disks that it came from. What nobody has is said.
//!
//! Nothing is written over and nothing removed: a pack in quarantine goes with a later collection, once nothing needs
//! it. An interrupted repair is gone on with by the next one.

use super::context::Context;
use super::error::{Code, OpsError};
use super::gaps::join_ranges;
use super::reread::{Reread, reread};
use super::verify::{Damage, Finding, VerifyOptions, readable, survey};
use crate::chunk::CHUNKS_AT_ONCE;
use crate::chunk::frame::Frame;
use crate::disk::DiskRead;
use crate::model::catalog::{Catalog, RootId};
use crate::model::ids::{ChunkId, ImageId, SnapshotId};
use crate::model::image::DeviceTarget;
use crate::model::objects::{ManifestRecord, PackName, PackState};
use crate::model::units::block_offset;
use crate::region::Region;
use crate::region::audit::CheckBuffers;
use crate::region::session::Session;
use rayon::prelude::*;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::time::Instant;

/// Chunks that are looked for together.
const ASKED_AT_ONCE: usize = 256;

/// Where what is lost may be had.
#[derive(Default)]
pub struct RepairSources<'a> {
    /// Regions that may have copies.
    pub regions: &'a [Region],
    /// Disks that damaged snapshots may have been taken of.
    pub disks: &'a [Box<dyn DiskRead>],
    /// Go on even if most packs are not there, as they are not when a disk is not mounted.
    pub force: bool,
}

/// Content that stays lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The snapshot or template.
    pub root: RootId,
    /// Images that use it, each with the name of the device.
    pub images: Vec<(ImageId, String)>,
    /// The bytes of the volume that cannot be read. Its whole length if the block map is lost.
    pub ranges: Vec<Range<u64>>,
}

/// What a repair found and did.
#[derive(Debug, Clone, Default)]
pub struct Repaired {
    /// What was found to be wrong.
    pub findings: Vec<Finding>,
    /// Packs that were put in quarantine.
    pub quarantined: Vec<PackName>,
    /// Chunks that were moved out of packs in quarantine.
    pub moved: u64,
    /// Chunks that came from other regions.
    pub fetched: u64,
    /// Chunks that came from disks.
    pub reread: u64,
    /// Disks that were read whole and had nothing of what was missing, by their place in [`RepairSources::disks`].
    pub foreign_disks: Vec<usize>,
    /// Disks with places that could not be read, by their place in [`RepairSources::disks`], and why not the first of these.
    pub unread_disks: Vec<(usize, String)>,
    /// Block maps that were made anew.
    pub manifests: u64,
    /// Segments and checkpoints that were made anew or removed.
    pub caches: u64,
    /// Bytes that this added to the store.
    pub stored_bytes: u64,
    /// What stays lost.
    pub lost: Vec<Lost>,
    /// Packs that are there and cannot be opened: to be made readable, or taken away.
    pub out_of_reach: Vec<PackName>,
    /// Records of the log that are lost behind a checkpoint, and that only the history needs.
    pub lost_records: u64,
    /// Whether the log is broken, so that nothing could be done.
    pub is_log_broken: bool,
}

/// Checks a region whole and mends what can be mended. A dry run ends after the check.
pub fn repair(
    region: &Region,
    sources: &RepairSources<'_>,
    context: &Context<'_>,
) -> Result<Repaired, OpsError> {
    let mut repaired = Repaired::default();
    repair_into(&mut repaired, region, sources, context)?;
    Ok(repaired)
}

/// As [`repair`], and says what was found and done also where it ends with an error.
pub fn repair_into(
    repaired: &mut Repaired,
    region: &Region,
    sources: &RepairSources<'_>,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let began = Instant::now();
    let (report, mut damage) = survey(region, &VerifyOptions::default(), context)?;
    repaired.findings = report.findings;
    repaired.is_log_broken = damage.is_log_broken;
    repaired.lost_records = damage.lost_records;
    if damage.is_log_broken {
        return Ok(());
    }
    // What this version does not know is no damage, and nothing that is to be given up.
    if damage.is_newer {
        let why = "a newer imgstore has written to this region: update this one, and repair with that";
        return Err(OpsError::rule(Code::UnsupportedOperation, why));
    }
    leave_readable(region, &mut damage, context)?;
    let total = readable(&region.catalog()?).count();
    // Nor are those there that a device gives nothing of.
    damage.missing += damage.unread.iter().filter(|pack| is_silent(region, **pack)).count();
    if damage.missing > 1 && damage.missing * 2 > total && !sources.force {
        return Err(OpsError::MostlyMissing { missing: damage.missing, total });
    }
    if context.dry_run {
        repaired.quarantined = damage.packs.into_iter().collect();
        return Ok(());
    }
    region.look_again()?;
    repaired.out_of_reach = damage.kept_away.iter().copied().collect();
    mend(region, sources, &damage, repaired, &context.after(began))?;
    region.look_again()?;
    lost(region, &region.catalog()?, &mut repaired.lost)
}

/// Whether a pack does not say what it holds.
fn is_silent(region: &Region, pack: PackName) -> bool {
    let known = region.catalog().ok().and_then(|catalog| catalog.packs.get(&pack).cloned());
    known.is_none_or(|known| region.check_trailer(&known.record).is_err())
}

/// Looks again at packs that a device did not give: it may have been away for a while, and what is put in quarantine stays there.
fn leave_readable(region: &Region, damage: &mut Damage, context: &Context<'_>) -> Result<(), OpsError> {
    let catalog = region.catalog()?;
    let mut buffers = CheckBuffers::default();
    for name in std::mem::take(&mut damage.unread) {
        context.check_cancelled()?;
        let Some(pack) = catalog.packs.get(&name) else { continue };
        match region.check_pack(&pack.record, true, &mut buffers) {
            Ok(checked) if checked.damaged.is_empty() => drop(damage.packs.remove(&name)),
            Err(error) if error.is_failed_read() => drop(damage.unread.insert(name)),
            // It went out of reach since.
            Err(error) if !error.is_loss() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn mend(
    region: &Region,
    sources: &RepairSources<'_>,
    damage: &Damage,
    repaired: &mut Repaired,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    repaired.caches = region.renew_caches(&damage.segments, context.account)?;
    if damage.manifests.is_empty()
        && damage.packs.is_empty()
        && quarantine(&region.catalog()?).is_empty()
        && wanted(region)?.is_empty()
    {
        return Ok(());
    }
    let mut session = match region.begin(context.account) {
        // Without space for what is moved out of them, packs are not put in quarantine, which cannot be taken back: but for those of
        // which nothing can be, or no collection could make any.
        Err(error) if error.is_no_space() => {
            let silent = damage.packs.iter().copied().filter(|pack| is_silent(region, *pack)).collect();
            region.quarantine(&silent, context.account, context.now_ms)?;
            return Err(error.into());
        }
        begun => begun?,
    };
    repaired.quarantined = region.quarantine(&damage.packs, context.account, context.now_ms)?;
    let mut lost_maps: Vec<&ManifestRecord> = damage.manifests.values().collect();
    for source in sources.regions {
        context.check_cancelled()?;
        repaired.manifests += maps_from_region(&mut session, source, &mut lost_maps, context)?;
    }
    let mut disks = vec![Read::default(); sources.disks.len()];
    find_bases(&mut session, sources, &mut disks, repaired, context)?;
    loop {
        gather(&mut session, sources, &mut disks, &mut lost_maps, repaired, context)?;
        // Deltas whose bases nobody has, in packs that were sound by themselves when they were checked, or came since: they
        // are not to be counted on, and may be had whole from elsewhere. Each round closes a pack. Where packs are out of reach only,
        // nobody knows what nobody has.
        let lost = region.lost_bases()?;
        if region.keeps_bases_away(lost.chunks)? {
            break;
        }
        let closed = region.quarantine_baseless(&lost.packs, context.account, context.now_ms)?;
        if closed.is_empty() {
            break;
        }
        repaired.quarantined.extend(closed);
    }
    // With what came last.
    region.base_elsewhere(context.account, || context.check_cancelled())?;
    for (number, disk) in disks.into_iter().enumerate() {
        match disk.failure {
            Some(failure) => repaired.unread_disks.push((number, failure)),
            None if disk.was_read && !disk.had_some => repaired.foreign_disks.push(number),
            None => {}
        }
    }
    repaired.stored_bytes = session.stored_bytes();
    Ok(())
}

/// Stores the bases of deltas that are in no sound pack, before anything else: with them those packs are sound, and nothing of them
/// has to be stored anew.
fn find_bases(
    session: &mut Session,
    sources: &RepairSources<'_>,
    disks: &mut [Read],
    repaired: &mut Repaired,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let region = session.region().clone();
    for source in std::iter::once(&region).chain(sources.regions) {
        let lost: Vec<ChunkId> = region.lost_bases()?.chunks.into_iter().collect();
        let stored = store_these(session, source, &lost, context)?;
        let is_own = source.header().id == region.header().id;
        *(if is_own { &mut repaired.moved } else { &mut repaired.fetched }) += stored;
    }
    for (disk, read) in sources.disks.iter().zip(disks) {
        let mut lost = region.lost_bases()?.chunks;
        if lost.is_empty() {
            break;
        }
        context.progress.begin("repair", disk.len_bytes());
        let found = reread(session, &**disk, &mut lost, context)?;
        session.flush()?;
        repaired.reread += found.stored;
        read.note(&found);
    }
    Ok(())
}

/// Stores what is wanted, from wherever it can be had.
fn gather(
    session: &mut Session,
    sources: &RepairSources<'_>,
    disks: &mut [Read],
    lost_maps: &mut Vec<&ManifestRecord>,
    repaired: &mut Repaired,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let region = session.region().clone();
    let closed = quarantine(&region.catalog()?);
    // Before the disks: what is still here need not be compressed again.
    repaired.moved += store(session, &region, context)?;
    let mut salvage = Salvage::default();
    loop {
        // What is stored now may be what deltas of other packs lack.
        while salvage.go_through(session, &closed, repaired, context)? {}
        // What was stored is not wanted again, also if it cannot be read: so this ends.
        match store(session, &region, context)? {
            0 => break,
            moved => repaired.moved += moved,
        }
    }
    for source in sources.regions {
        repaired.fetched += store(session, source, context)?;
        // What is stored against what was fetched can be read again.
        repaired.moved += store(session, &region, context)?;
    }
    for (disk, read) in sources.disks.iter().zip(disks) {
        from_disk(session, &**disk, read, lost_maps, repaired, context)?;
    }
    Ok(session.flush()?)
}

/// What packs gave whose own indexes are lost.
#[derive(Default)]
struct Salvage {
    stored: BTreeSet<ChunkId>,
    /// Bases without which it is not known what some deltas are.
    lacking: BTreeSet<ChunkId>,
}

impl Salvage {
    /// Goes through such packs, and stores what is wanted, or is lacking to know what they hold. Whether more may come of it the
    /// next time.
    fn go_through(
        &mut self,
        session: &mut Session,
        packs: &[PackName],
        repaired: &mut Repaired,
        context: &Context<'_>,
    ) -> Result<bool, OpsError> {
        let region = session.region().clone();
        let mut wanted = wanted(&region)?;
        wanted.extend(&self.lacking);
        wanted.retain(|id| !self.stored.contains(id));
        let (mut lacking, before) = (BTreeSet::new(), self.stored.len());
        for pack in packs {
            context.check_cancelled()?;
            // As they come: whole, they take many times what a pack of deltas does.
            let mut failure = None;
            let salvaged = region.salvage(*pack, |id, frame| {
                if failure.is_some() || !wanted.remove(&id) {
                    return;
                }
                let Some(frame) = frame() else { return };
                match session.put(id, &frame) {
                    Ok(()) => {
                        self.stored.insert(id);
                        repaired.moved += 1;
                    }
                    Err(error) => failure = Some(error),
                }
            });
            if let Some(error) = failure {
                return Err(error.into());
            }
            // What cannot be read now stays where it is, and is told of as lost.
            lacking.extend(salvaged.ok().flatten().unwrap_or_default().lacking);
        }
        session.flush()?;
        lacking.retain(|base| !self.stored.contains(base));
        let is_news = self.stored.len() > before || lacking != self.lacking;
        self.lacking = lacking;
        Ok(is_news)
    }
}

/// What came of a disk.
#[derive(Clone, Default)]
struct Read {
    was_read: bool,
    had_some: bool,
    /// Why some place of it could not be read.
    failure: Option<String>,
}

impl Read {
    fn note(&mut self, found: &Reread) {
        self.was_read = true;
        self.had_some |= found.stored > 0;
        if let (None, Err(error)) = (&self.failure, &found.map) {
            self.failure = Some(error.to_string());
        }
    }
}

/// Stores what a disk has of what is missing, and nothing else of it.
fn from_disk(
    session: &mut Session,
    disk: &dyn DiskRead,
    read: &mut Read,
    lost_maps: &mut Vec<&ManifestRecord>,
    repaired: &mut Repaired,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let region = session.region().clone();
    loop {
        let mut wanted = wanted(&region)?;
        if wanted.is_empty() && lost_maps.is_empty() {
            return Ok(());
        }
        context.progress.begin("repair", disk.len_bytes());
        let found = reread(session, disk, &mut wanted, context)?;
        session.flush()?;
        repaired.reread += found.stored;
        read.note(&found);
        let lost_map = found.map.ok().filter(|map| lost_maps.iter().any(|lost| Region::is_map(map, lost)));
        if let Some(map) = &lost_map {
            let manifest = session.place_manifest(map)?;
            repaired.manifests += named_again(session, lost_maps, &manifest, context)?;
            read.had_some = true;
        }
        repaired.moved += store(session, &region, context)?;
        // Of a block map that is known again it is known now what else is wanted of the disk: that is read once more.
        if lost_map.is_none() {
            return Ok(());
        }
    }
}

fn quarantine(catalog: &Catalog) -> Vec<PackName> {
    let is_closed = |state| matches!(state, PackState::Quarantined { .. });
    catalog.packs.iter().filter(|(_, pack)| is_closed(pack.state)).map(|(name, _)| *name).collect()
}

/// The chunks that something refers to, or that others are stored against, and that are in no sound pack.
fn wanted(region: &Region) -> Result<BTreeSet<ChunkId>, OpsError> {
    let (mut wanted, mut asked) = (region.lost_bases()?.chunks, HashSet::new());
    for root in region.catalog()?.roots().filter(|root| asked.insert(root.manifest.name)) {
        // One whose map is lost wants nothing that is known.
        let Ok(map) = region.load_root(&root) else { continue };
        let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
        // One in a condemned pack only would go with that, and is stored again, too.
        let lacking = ids.iter().zip(region.has_live_chunks(&ids)?).filter(|(_, has)| !has);
        wanted.extend(lacking.map(|(id, _)| *id));
    }
    Ok(wanted)
}

/// Stores what a region has intact of the chunks that are wanted, each proved. Gives how many.
fn store(session: &mut Session, from: &Region, context: &Context<'_>) -> Result<u64, OpsError> {
    // What is sound again with what was stored by now is not wanted.
    session.region().base_elsewhere(context.account, || context.check_cancelled())?;
    let wanted: Vec<ChunkId> = wanted(session.region())?.into_iter().collect();
    store_these(session, from, &wanted, context)
}

fn store_these(
    session: &mut Session,
    from: &Region,
    wanted: &[ChunkId],
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let mut stored = 0;
    for ids in wanted.chunks(ASKED_AT_ONCE) {
        context.check_cancelled()?;
        let intact = |id: &ChunkId| from.intact_frame(*id).map(|frame| (*id, frame));
        let frames: Vec<(ChunkId, Frame)> =
            context.pool.install(|| ids.par_iter().with_max_len(CHUNKS_AT_ONCE).filter_map(intact).collect());
        stored += frames.len() as u64;
        for (id, frame) in frames {
            session.put(id, &frame)?;
        }
    }
    session.flush()?;
    Ok(stored)
}

/// Makes lost block maps anew that a region has the like of. Gives how many.
fn maps_from_region(
    session: &mut Session,
    source: &Region,
    lost_maps: &mut Vec<&ManifestRecord>,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let catalog = source.catalog()?;
    let mut made = 0;
    for lost in lost_maps.clone() {
        let Some(like) = source.known_manifest(&catalog, &lost.hash) else { continue };
        // What cannot be had here now may be elsewhere.
        let Ok(map) = source.load_map(&like) else { continue };
        let manifest = session.place_manifest(&map)?;
        made += named_again(session, lost_maps, &manifest, context)?;
    }
    Ok(made)
}

/// Names a block map in place of lost ones with the same content. Gives how many those were.
fn named_again(
    session: &Session,
    lost_maps: &mut Vec<&ManifestRecord>,
    found: &ManifestRecord,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let mut named = 0;
    for lost in lost_maps.iter().filter(|lost| lost.hash == found.hash) {
        named += u64::from(session.region().replace_manifest(lost, found, session, context.account)?);
    }
    lost_maps.retain(|lost| lost.hash != found.hash);
    Ok(named)
}

/// What cannot be read: of each snapshot and template the bytes whose chunks are in no sound pack. What may be in a pack that is
/// out of reach is an error, which comes at the end.
fn lost(region: &Region, catalog: &Catalog, all: &mut Vec<Lost>) -> Result<(), OpsError> {
    let mut unknown = None;
    for root in catalog.roots() {
        let ranges = match region.load_root(&root) {
            Ok(map) => {
                let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
                let places = region.try_locate_usable(&ids)?;
                let nowhere = ids.iter().zip(&places).filter(|(_, place)| place.is_none());
                if let Some(missing) = nowhere.map(|(id, _)| region.missing(*id)).find(|e| !e.is_loss()) {
                    unknown = Some(missing);
                    continue;
                }
                let lost = map.chunks().iter().zip(places).filter(|(_, place)| place.is_none());
                join_ranges(lost.map(|(chunk, _)| {
                    block_offset(chunk.start_block)..block_offset(chunk.end_block()).min(root.volume_bytes)
                }))
            }
            Err(error) if error.is_loss() => std::iter::once(0..root.volume_bytes).collect(),
            Err(error) => return Err(error.into()),
        };
        // What was deleted and collected meanwhile is not lost.
        let is_there = |now: &Catalog| now.roots().any(|now| now.id == root.id);
        if !ranges.is_empty() && is_there(&region.catalog()?) {
            all.push(Lost { root: root.id, images: images_on(catalog, root.id), ranges });
        }
    }
    unknown.map_or(Ok(()), |error| Err(error.into()))
}

/// The registered images that stand on a root, with the device that it is.
fn images_on(catalog: &Catalog, root: RootId) -> Vec<(ImageId, String)> {
    let mut found = Vec::new();
    for image in catalog.images.values() {
        let is_of = |id: Option<SnapshotId>| id.map(RootId::Snapshot) == Some(root);
        for device in &image.devices {
            if matches!(&device.target, DeviceTarget::Ebs(ebs) if is_of(ebs.snapshot_id)) {
                found.push((image.id, device.device_name.clone()));
            }
        }
        if image.template.map(RootId::Template) == Some(root) {
            found.push((image.id, image.root_device_name.clone()));
        }
    }
    found
}
