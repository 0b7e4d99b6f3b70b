//! Verify: everything that the log names is there and is what it should be. Findings are data.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{AnyId, image as find_image, snapshot as find_snapshot};
pub use super::findings::{Finding, Report};
use super::stage::{Stage, join_all, spawn};
use crate::model::catalog::{Catalog, RootId};
use crate::model::ids::ChunkId;
use crate::model::objects::{ManifestName, ManifestRecord, PackName, PackRecord, PackState, SegmentName};
use crate::model::units::TimeMs;
use crate::region::Region;
use crate::region::audit::{CheckBuffers, CheckedPack, LogAudit};
use crate::region::error::RegionError;
use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender, bounded, select};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

/// How often a check that waits looks at whether it is to stop.
const CANCEL_EVERY: Duration = Duration::from_millis(100);

/// What is looked at.
#[derive(Clone)]
pub struct VerifyOptions<'a> {
    /// Images and snapshots; none for the whole region.
    pub ids: Vec<AnyId>,
    /// Percent of the packs whose frames are read, 0 to 100. Log, manifests and trailers are always checked.
    pub sample_percent: f64,
    /// Whether frames are decompressed and hashed, not only their checksums compared.
    pub content: bool,
    /// Packs whose frames are not read again.
    pub skip: BTreeSet<PackName>,
    /// When packs were checked last: those longest ago, or never, come first.
    pub checked_ms: BTreeMap<PackName, TimeMs>,
    /// Told of each pack that was read and in which nothing is wrong.
    pub on_checked: Option<&'a (dyn Fn(&PackName) + Sync)>,
    /// Bytes that are read in a second at most, on average.
    pub bytes_per_second: Option<u64>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            sample_percent: 100.0,
            content: true,
            skip: BTreeSet::new(),
            checked_ms: BTreeMap::new(),
            on_checked: None,
            bytes_per_second: None,
        }
    }
}

/// What is damaged, for repair.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Packs with a damaged frame, or that cannot be read.
    pub(super) packs: BTreeSet<PackName>,
    /// Those of them that the device did not give.
    pub(super) unread: BTreeSet<PackName>,
    /// Others that are there and cannot be opened: nothing is known of them.
    pub(super) kept_away: BTreeSet<PackName>,
    /// Manifests that cannot be read.
    pub(super) manifests: BTreeMap<ManifestName, ManifestRecord>,
    /// Segments that cannot be read or do not say what the packs say.
    pub(super) segments: BTreeSet<SegmentName>,
    /// How many of the packs are not there at all.
    pub(super) missing: usize,
    /// Records that are lost behind a checkpoint.
    pub(super) lost_records: u64,
    /// Whether a newer version has written some of what could not be read.
    pub(super) is_newer: bool,
    /// Whether the log itself is broken: then nothing else was looked at.
    pub(super) is_log_broken: bool,
}

/// Checks a region, or some images and snapshots of it.
pub fn verify(
    region: &Region,
    options: &VerifyOptions<'_>,
    context: &Context<'_>,
) -> Result<Report, OpsError> {
    Ok(survey(region, options, context)?.0)
}

/// As [`verify`], and what is damaged.
pub(super) fn survey(
    region: &Region,
    options: &VerifyOptions<'_>,
    context: &Context<'_>,
) -> Result<(Report, Damage), OpsError> {
    let mut check = Check {
        region,
        context,
        report: Report::default(),
        damage: Damage::default(),
        bad: HashMap::new(),
        bad_packs: HashMap::new(),
        uses: HashMap::new(),
    };
    // A device may fail once.
    let again = |error: RegionError| if error.is_failed_read() { region.audit_log() } else { Err(error) };
    let LogAudit { catalog, caches, lost, .. } = match region.audit_log().or_else(again) {
        Ok(audit) => audit,
        Err(error) if !error.is_loss() && !error.is_newer() => return Err(error.into()),
        Err(error) => {
            // Without the log nothing else can be told.
            check.add("log", &error);
            return Ok((check.report, Damage { is_log_broken: true, ..Damage::default() }));
        }
    };
    check.damage.lost_records = lost.len() as u64;
    for error in caches.iter().chain(&lost) {
        check.add("log", error);
    }
    let selected = select(&catalog, options, context)?;
    region.look_again()?;
    let packs = check.packs_to_read(&catalog, options, &selected)?;
    for name in catalog.segments.keys() {
        match region.audit_segment(&catalog, *name) {
            // Merged into another one meanwhile.
            Err(error) if error.is_not_found() && !region.catalog()?.segments.contains_key(name) => {}
            Err(error) => {
                check.damage.segments.insert(*name);
                check.add(&name.to_string(), &error);
            }
            Ok(()) => {}
        }
    }
    context.progress.begin("verify", packs.iter().map(|record| record.len).sum());
    let read: HashSet<PackName> = packs.iter().map(|record| record.name).collect();
    check.packs(&packs, options)?;
    region.look_again()?;
    if options.sample_percent >= 100.0 {
        check.packs_since(&read, options, &selected)?;
    }
    check.deltas_on_damage(&catalog)?;
    if options.ids.is_empty() {
        check.unread_trailers(&catalog, &read);
    }
    check.manifests(&catalog, &selected)?;
    let damage = std::mem::take(&mut check.damage);
    Ok((check.finish(&catalog), damage))
}

/// A pack with what its check has given.
type PackOutcome<'c> = (&'c PackRecord, Result<CheckedPack, RegionError>);

/// Checks packs until there are no more.
fn check_packs<'c>(
    region: &Region,
    content: bool,
    records: &Receiver<&'c PackRecord>,
    outcomes: &Sender<PackOutcome<'c>>,
) {
    let mut buffers = CheckBuffers::default();
    for record in records {
        // Nobody listens any more if the check was given up.
        if outcomes.send((record, region.check_pack(record, content, &mut buffers))).is_err() {
            return;
        }
    }
}

/// The packs that are to be intact: one that is being swept may be gone already, and of one in quarantine it is known
/// that it is not.
pub(super) fn readable(catalog: &Catalog) -> impl Iterator<Item = &PackRecord> {
    let is_sound = |state| matches!(state, PackState::Live | PackState::Condemned { .. });
    catalog.packs.values().filter(move |pack| is_sound(pack.state)).map(|pack| &pack.record)
}

/// The snapshots to check.
fn select(
    catalog: &Catalog,
    options: &VerifyOptions<'_>,
    context: &Context<'_>,
) -> Result<BTreeSet<RootId>, OpsError> {
    if options.ids.is_empty() {
        return Ok(catalog.roots().map(|root| root.id).collect());
    }
    let mut selected = BTreeSet::new();
    for id in &options.ids {
        match id {
            AnyId::Image(id) => {
                let image = find_image(catalog, context.account, *id)?;
                selected.extend(image.snapshot_ids().map(RootId::Snapshot));
                selected.extend(image.template.map(RootId::Template));
            }
            AnyId::Snapshot(id) => {
                selected.insert(RootId::Snapshot(find_snapshot(catalog, context.account, *id)?.id));
            }
            AnyId::Volume(_) | AnyId::Instance(_) => {
                return Err(OpsError::rule(Code::InvalidParameterValue, "verify takes images and snapshots"));
            }
        }
    }
    Ok(selected)
}

struct Check<'a> {
    region: &'a Region,
    context: &'a Context<'a>,
    report: Report,
    damage: Damage,
    /// Chunks with a damaged frame, by place in the findings.
    bad: HashMap<ChunkId, usize>,
    /// Packs that cannot be read, by place in the findings.
    bad_packs: HashMap<PackName, usize>,
    /// Snapshots that a finding touches.
    uses: HashMap<usize, BTreeSet<RootId>>,
}

impl Check<'_> {
    fn add(&mut self, object: &str, error: &RegionError) -> usize {
        self.damage.is_newer |= error.is_newer();
        self.add_problem(object, error.to_string())
    }

    fn add_problem(&mut self, object: &str, problem: String) -> usize {
        let finding =
            Finding { object: object.to_owned(), problem, affected: Vec::new(), affected_of_others: 0 };
        self.report.findings.push(finding);
        self.report.findings.len() - 1
    }

    /// Packs whose frames are read: all, a sample, or those that the selected snapshots need.
    fn packs_to_read<'c>(
        &mut self,
        catalog: &'c Catalog,
        options: &VerifyOptions<'_>,
        selected: &BTreeSet<RootId>,
    ) -> Result<Vec<&'c PackRecord>, OpsError> {
        let mut needed: BTreeSet<PackName> = readable(catalog).map(|record| record.name).collect();
        if !options.ids.is_empty() {
            needed.clear();
            for root in catalog.roots().filter(|root| selected.contains(&root.id)) {
                // A manifest that cannot be read is found again, and reported, below.
                let Ok(map) = self.region.load_root(&root) else { continue };
                let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
                needed.extend(
                    self.region.try_locate(&ids)?.into_iter().flatten().map(|location| location.pack),
                );
            }
        }
        // What their deltas are on is read for them, too; bases are no deltas themselves.
        let of = |name| catalog.packs.get(name).map_or(&[][..], |pack| &pack.record.bases);
        let bases: Vec<PackName> = needed.iter().flat_map(of).copied().collect();
        needed.extend(bases);
        let mut records: Vec<_> = readable(catalog).filter(|record| needed.contains(&record.name)).collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to the number of packs"
        )]
        let count = (records.len() as f64 * options.sample_percent.clamp(0.0, 100.0) / 100.0).ceil() as usize;
        // Those that were checked longest ago, whichever of them, so that all packs come to be checked.
        for at in 0..records.len() {
            let left = (records.len() - at) as u64;
            let random = self.region.random_id()?;
            records.swap(at, at + usize::try_from(random % left).unwrap_or(0));
        }
        records.sort_by_cached_key(|record| options.checked_ms.get(&record.name));
        // Half of them, or nearly, of those that were checked before: however many new ones come between two samples.
        let never = records.partition_point(|record| !options.checked_ms.contains_key(&record.name));
        let odd = usize::from(self.region.random_id()? % 2 == 1);
        let again = (usize::midpoint(count, odd)).min(records.len() - never).max(count.saturating_sub(never));
        records.drain(count - again..never);
        records.truncate(count);
        records.retain(|record| !options.skip.contains(&record.name));
        // These first, too: whoever is interrupted has done what matters most.
        records.sort_by_cached_key(|record| (options.checked_ms.get(&record.name), record.name));
        Ok(records)
    }

    /// Checks the packs that what is selected is in now, and that were not read: it was moved there since, or could not be found.
    fn packs_since(
        &mut self,
        read: &HashSet<PackName>,
        options: &VerifyOptions<'_>,
        selected: &BTreeSet<RootId>,
    ) -> Result<(), OpsError> {
        let now = self.region.catalog()?;
        let mut records = self.packs_to_read(&now, options, selected)?;
        records.retain(|record| !read.contains(&record.name));
        if records.is_empty() {
            return Ok(());
        }
        self.context.progress.begin("verify", records.iter().map(|record| record.len).sum());
        self.packs(&records, options)
    }

    /// Checks packs, each in a thread of its own as long as there are some.
    fn packs(&mut self, records: &[&PackRecord], options: &VerifyOptions<'_>) -> Result<(), OpsError> {
        let (region, context, content) = (self.region, self.context, options.content);
        let workers = context.pool.current_num_threads().max(1);
        let (records_in, records_out) = bounded(0);
        let (outcomes_in, outcomes_out) = bounded(2 * workers);
        thread::scope(|scope| {
            let start = |_| {
                let (records, outcomes) = (records_out.clone(), outcomes_in.clone());
                let check = move || {
                    check_packs(region, content, &records, &outcomes);
                    Ok(())
                };
                spawn(scope, "verify", check)
            };
            let workers = (0..workers).map(start).collect::<Result<Vec<_>, OpsError>>()?;
            drop((records_out, outcomes_in));
            // None ends before there is no more for it, unless something is very wrong.
            let is_any_gone = || workers.iter().any(Stage::is_finished);
            let checked = self.give_and_take(records, options, (records_in, outcomes_out), is_any_gone);
            join_all(workers, checked)
        })
    }

    /// Gives packs to those who check them, and takes what they find. The ends of the channels go with it: then the others end.
    fn give_and_take<'c>(
        &mut self,
        records: &[&'c PackRecord],
        options: &VerifyOptions<'_>,
        (records_in, outcomes_out): (Sender<&'c PackRecord>, Receiver<PackOutcome<'c>>),
        is_any_gone: impl Fn() -> bool,
    ) -> Result<(), OpsError> {
        let context = self.context;
        let (started, mut given_bytes, mut left) = (Instant::now(), 0, records.len());
        let mut to_give = records.iter().copied().peekable();
        while left > 0 {
            context.check_cancelled()?;
            if is_any_gone() {
                return Err(OpsError::WorkerGone);
            }
            let next = to_give.peek().copied();
            let outcome = match next {
                Some(record) => select! {
                    send(records_in, record) -> sent => {
                        sent.map_err(|_| OpsError::WorkerGone)?;
                        to_give.next();
                        given_bytes += record.len;
                        context.keep_pace(started, given_bytes, options.bytes_per_second)?;
                        continue;
                    }
                    recv(outcomes_out) -> outcome => outcome,
                    default(CANCEL_EVERY) => continue,
                },
                None => match outcomes_out.recv_timeout(CANCEL_EVERY) {
                    Err(RecvTimeoutError::Timeout) => continue,
                    outcome => outcome.map_err(|_| RecvError),
                },
            };
            let (record, outcome) = outcome.map_err(|_| OpsError::WorkerGone)?;
            left -= 1;
            if self.pack(record, outcome)
                && let Some(note) = options.on_checked
            {
                note(&record.name);
            }
            context.progress.advance(record.len);
        }
        Ok(())
    }

    /// Takes what the check of a pack has given; whether nothing is wrong with it.
    fn pack(&mut self, record: &PackRecord, outcome: Result<CheckedPack, RegionError>) -> bool {
        let checked = match outcome {
            Ok(checked) => checked,
            Err(error) if self.was_collected(record, &error) => return true,
            Err(error) => {
                let finding = self.add(&record.name.to_string(), &error);
                self.note_bad_pack(record.name, finding, &error);
                return false;
            }
        };
        self.report.packs += 1;
        self.report.chunks += checked.frames;
        self.report.pack_bytes += checked.len_bytes;
        // What deltas were stored against goes with them.
        if !checked.baseless.is_empty() && self.has_gone(record) {
            return true;
        }
        let is_good = checked.damaged.is_empty() && checked.baseless.is_empty();
        // Their own pack is sound, and does not go for it.
        if let Some((chunk, base)) = checked.baseless.first() {
            let count = checked.baseless.len();
            let why = format!(
                "{count} of its chunks are stored against chunks that are in no sound pack: {chunk} against {base}, first"
            );
            let finding = self.add_problem(&record.name.to_string(), why);
            self.bad.extend(checked.baseless.iter().map(|(chunk, _)| (*chunk, finding)));
        }
        for (chunk, error) in checked.damaged {
            let finding = self.add(&record.name.to_string(), &error);
            self.bad.insert(chunk, finding);
            self.damage.packs.insert(record.name);
        }
        is_good
    }

    /// A pack that cannot be read counts as damaged, for repair, if its bytes are wrong or missing, or if the device
    /// does not give them. It loses nothing if that is over later: it is still there.
    fn note_bad_pack(&mut self, name: PackName, finding: usize, error: &RegionError) {
        self.bad_packs.insert(name, finding);
        if error.is_not_found() {
            self.damage.missing += 1;
        }
        if error.is_loss() {
            self.damage.packs.insert(name);
        }
        if error.is_failed_read() {
            self.damage.unread.insert(name);
        } else if !error.is_loss() {
            self.damage.kept_away.insert(name);
        }
    }

    /// Whether a pack is gone because it was collected while this check was under way.
    fn was_collected(&self, record: &PackRecord, error: &RegionError) -> bool {
        error.is_not_found() && self.has_gone(record)
    }

    /// Whether others have let go of a pack since this check began.
    fn has_gone(&self, record: &PackRecord) -> bool {
        self.region.catalog().is_ok_and(|now| !readable(&now).any(|there| there.name == record.name))
    }

    /// Packs that were not in the sample still have their trailers checked.
    fn unread_trailers(&mut self, catalog: &Catalog, read: &HashSet<PackName>) {
        for record in readable(catalog).filter(|record| !read.contains(&record.name)) {
            match self.region.check_trailer(record) {
                Err(error) if !self.was_collected(record, &error) => {
                    let finding = self.add(&record.name.to_string(), &error);
                    self.note_bad_pack(record.name, finding, &error);
                }
                _ => {}
            }
        }
    }

    /// A delta on a damaged base is lost with it: whatever refers to the one is touched by what is wrong with the other.
    fn deltas_on_damage(&mut self, catalog: &Catalog) -> Result<(), OpsError> {
        let bad: HashMap<u64, usize> =
            self.bad.iter().map(|(id, finding)| (id.leading(), *finding)).collect();
        if bad.is_empty() && self.bad_packs.is_empty() {
            return Ok(());
        }
        for record in readable(catalog) {
            let bad_base = record.bases.iter().find_map(|base| self.bad_packs.get(base)).copied();
            if bad.is_empty() && bad_base.is_none() {
                continue;
            }
            self.context.check_cancelled()?;
            // A trailer that cannot be read is a finding of its own.
            for (delta, base) in self.region.bases_in(&record.name).unwrap_or_default() {
                let is_elsewhere = |region: &Region| {
                    let place = region.find_base(base).ok().flatten().map(|(_, place)| place);
                    place.is_some_and(|place| !self.bad_packs.contains_key(&place.pack))
                };
                let lost_with = bad_base.filter(|_| !is_elsewhere(self.region));
                if let Some(finding) = bad.get(&base).copied().or(lost_with) {
                    self.bad.entry(delta).or_insert(finding);
                }
            }
        }
        Ok(())
    }

    /// Every manifest is whole, and every chunk of it is in a readable pack and has the length it says.
    fn manifests(&mut self, catalog: &Catalog, selected: &BTreeSet<RootId>) -> Result<(), OpsError> {
        for root in catalog.roots().filter(|root| selected.contains(&root.id)) {
            self.context.check_cancelled()?;
            self.report.snapshots += 1;
            let map = match self.region.load_root(&root) {
                Ok(map) => map,
                // Deleted and collected while this check was under way.
                Err(error) if error.is_not_found() && !self.is_still_there(root.id) => continue,
                Err(error) => {
                    let finding = self.add(&root.manifest.name.to_string(), &error);
                    if error.is_loss() {
                        self.damage.manifests.insert(root.manifest.name, root.manifest.clone());
                    }
                    self.touch(finding, root.id);
                    continue;
                }
            };
            let said = (root.volume_bytes, root.manifest.chunks);
            if said != (map.volume_bytes(), map.chunks().len() as u64) {
                let why = "its length or its number of chunks is not what the log says".to_owned();
                let finding = self.add_problem(&root.manifest.name.to_string(), why);
                self.touch(finding, root.id);
            }
            let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
            let (mut missing, mut is_lost) = (0, true);
            let places = match self.region.try_locate_usable(&ids) {
                Ok(places) => places,
                Err(error) => {
                    // Without the log nothing can be told.
                    self.region.catalog()?;
                    let finding = self.add(&root.manifest.name.to_string(), &error);
                    self.touch(finding, root.id);
                    continue;
                }
            };
            // What is in quarantine only, is lost or still to be moved out.
            for (chunk, location) in map.chunks().iter().zip(places) {
                if let Some(&finding) = self.bad.get(&chunk.id) {
                    self.touch(finding, root.id);
                }
                // A segment may still list what an unreadable pack held.
                let pack = location.and_then(|location| self.bad_packs.get(&location.pack));
                if let Some(&finding) = pack {
                    self.touch(finding, root.id);
                }
                // What a pack may hold that cannot be opened is not lost.
                if location.is_none() && is_lost {
                    is_lost = self.region.missing(chunk.id).is_damage();
                }
                if location.is_none_or(|location| location.raw_blocks != chunk.blocks) {
                    missing += 1;
                }
            }
            if missing > 0 && self.is_still_there(root.id) {
                let where_ = if is_lost { "sound pack" } else { "pack that can be read now" };
                let why = format!("{missing} of its chunks are in no {where_}");
                let finding = self.add_problem(&root.manifest.name.to_string(), why);
                self.touch(finding, root.id);
            }
        }
        Ok(())
    }

    /// Whether a snapshot or template is still there, as far as can be told: else nothing of it is passed over.
    fn is_still_there(&self, id: RootId) -> bool {
        self.region.catalog().map_or(true, |now| now.roots().any(|root| root.id == id))
    }

    fn touch(&mut self, finding: usize, root: RootId) {
        self.uses.entry(finding).or_default().insert(root);
    }

    /// Names what each finding touches: snapshots, and the images on them, as far as the caller may see them.
    fn finish(mut self, catalog: &Catalog) -> Report {
        let account = self.context.account;
        let mut images: BTreeMap<RootId, Vec<String>> = BTreeMap::new();
        for image in catalog.images.values().filter(|image| image.visible_to(account)) {
            let snapshots = image.snapshot_ids().map(RootId::Snapshot);
            for root in snapshots.chain(image.template.map(RootId::Template)) {
                images.entry(root).or_default().push(image.id.to_string());
            }
        }
        let own: BTreeSet<RootId> =
            catalog.roots().filter(|root| root.owner == account).map(|root| root.id).collect();
        let readable = |root: &RootId| match root {
            RootId::Snapshot(id) => catalog.snapshots.get(id).is_some_and(|s| s.readable_by(account)),
            RootId::Template(_) => false,
        };
        for (finding, roots) in self.uses {
            let finding = &mut self.report.findings[finding];
            let (mut hidden, mut named) = (0, HashSet::new());
            for root in roots {
                if own.contains(&root) || readable(&root) {
                    finding.affected.push(root.to_string());
                } else {
                    hidden += 1;
                }
                for image in images.get(&root).into_iter().flatten() {
                    if named.insert(image) {
                        finding.affected.push(image.clone());
                    }
                }
            }
            finding.affected_of_others = hidden;
        }
        self.report
    }
}
