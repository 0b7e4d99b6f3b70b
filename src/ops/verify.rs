//! Verify: everything that the log names is there and is what it should be. Findings are data.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{AnyId, image as find_image, snapshot as find_snapshot};
use crate::model::catalog::{Catalog, RootId};
use crate::model::ids::ChunkId;
use crate::model::objects::{ManifestRecord, PackName, PackRecord, PackState};
use crate::region::Region;
use crate::region::error::RegionError;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What is looked at.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Images and snapshots; none for the whole region.
    pub ids: Vec<AnyId>,
    /// Percent of the packs whose frames are read, 0 to 100. Log, manifests and trailers are always checked.
    pub sample_percent: f64,
    /// Whether frames are decompressed and hashed, not only their checksums compared.
    pub content: bool,
}

impl Report {
    /// The report on a region that could not even be opened.
    pub fn unopenable(error: &RegionError) -> Self {
        let finding = Finding {
            object: "region".into(),
            problem: error.to_string(),
            affected: Vec::new(),
            affected_of_others: 0,
        };
        Self { findings: vec![finding], ..Self::default() }
    }
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { ids: Vec::new(), sample_percent: 100.0, content: true }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// Images and snapshots of the caller's whose content it touches.
    pub affected: Vec<String>,
    /// Number of other accounts' snapshots, and of deleted ones under volumes, that it touches.
    pub affected_of_others: u64,
}

/// What was looked at and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Snapshots whose manifests were checked.
    pub snapshots: u64,
    /// Packs whose frames were checked.
    pub packs: u64,
    /// Frames checked.
    pub chunks: u64,
    /// Bytes of those packs.
    pub pack_bytes: u64,
}

/// Checks a region, or some images and snapshots of it.
pub fn verify(region: &Region, options: &VerifyOptions, context: &Context<'_>) -> Result<Report, OpsError> {
    let mut check = Check {
        region,
        context,
        report: Report::default(),
        bad: HashMap::new(),
        bad_packs: HashMap::new(),
        uses: HashMap::new(),
    };
    let (catalog, caches) = match region.audit_log() {
        Ok(audit) => audit,
        Err(error) => {
            // Without the log nothing else can be told.
            check.add("log", &error);
            return Ok(check.report);
        }
    };
    for error in &caches {
        check.add("log", error);
    }
    let selected = select(&catalog, options, context)?;
    let packs = check.packs_to_read(&catalog, options, &selected)?;
    for name in catalog.segments.keys() {
        if let Err(error) = region.audit_segment(&catalog, *name) {
            check.add(&name.to_string(), &error);
        }
    }
    context.progress.begin("verify", packs.iter().map(|record| record.len).sum());
    let read: HashSet<PackName> = packs.iter().map(|record| record.name).collect();
    for record in packs {
        context.check_cancelled()?;
        check.pack(record, options.content);
        context.progress.advance(record.len);
    }
    if options.ids.is_empty() {
        check.unread_trailers(&catalog, &read);
    }
    check.manifests(&catalog, &selected)?;
    Ok(check.finish(&catalog))
}

/// The packs that have bytes: one that is being swept may be gone already.
fn readable(catalog: &Catalog) -> impl Iterator<Item = &PackRecord> {
    let packs = catalog.packs.values().filter(|pack| pack.state != PackState::Sweeping);
    packs.map(|pack| &pack.record)
}

/// The snapshots to check.
fn select(
    catalog: &Catalog,
    options: &VerifyOptions,
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
    /// Chunks with a damaged frame, by place in the findings.
    bad: HashMap<ChunkId, usize>,
    /// Packs that cannot be read, by place in the findings.
    bad_packs: HashMap<PackName, usize>,
    /// Snapshots that a finding touches.
    uses: HashMap<usize, BTreeSet<RootId>>,
}

impl Check<'_> {
    fn add(&mut self, object: &str, error: &RegionError) -> usize {
        let finding = Finding {
            object: object.to_owned(),
            problem: error.to_string(),
            affected: Vec::new(),
            affected_of_others: 0,
        };
        self.report.findings.push(finding);
        self.report.findings.len() - 1
    }

    /// Packs whose frames are read: all, a sample, or those that the selected snapshots need.
    fn packs_to_read<'c>(
        &mut self,
        catalog: &'c Catalog,
        options: &VerifyOptions,
        selected: &BTreeSet<RootId>,
    ) -> Result<Vec<&'c PackRecord>, OpsError> {
        let mut needed: BTreeSet<PackName> = readable(catalog).map(|record| record.name).collect();
        if !options.ids.is_empty() {
            needed.clear();
            for root in catalog.roots().filter(|root| selected.contains(&root.id)) {
                // A manifest that cannot be read is found again, and reported, below.
                let Ok(map) = self.region.load_map(root.manifest) else { continue };
                let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
                needed.extend(
                    self.region.try_locate(&ids)?.into_iter().flatten().map(|location| location.pack),
                );
            }
        }
        let mut records: Vec<_> = readable(catalog).filter(|record| needed.contains(&record.name)).collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to the number of packs"
        )]
        let count = (records.len() as f64 * options.sample_percent.clamp(0.0, 100.0) / 100.0).ceil() as usize;
        // A different sample each time, so that all packs come to be checked.
        for at in 0..count.min(records.len()) {
            let left = (records.len() - at) as u64;
            let random = self.region.random_id()?;
            records.swap(at, at + usize::try_from(random % left).unwrap_or(0));
        }
        records.truncate(count);
        records.sort_unstable_by_key(|record| record.name);
        Ok(records)
    }

    fn pack(&mut self, record: &PackRecord, content: bool) {
        let pack = match self.region.load_pack(record) {
            Ok(pack) => pack,
            Err(error) if self.was_collected(record, &error) => return,
            Err(error) => {
                let finding = self.add(&record.name.to_string(), &error);
                self.bad_packs.insert(record.name, finding);
                return;
            }
        };
        let region = self.region;
        let frames = 0..pack.frames();
        let damaged: Vec<(ChunkId, RegionError)> = self.context.pool.install(|| {
            frames.into_par_iter().filter_map(|frame| pack.check(region, frame, content).err()).collect()
        });
        for (chunk, error) in damaged {
            let finding = self.add(&record.name.to_string(), &error);
            self.bad.insert(chunk, finding);
        }
        self.report.packs += 1;
        self.report.chunks += pack.frames() as u64;
        self.report.pack_bytes += pack.len_bytes();
    }

    /// Whether a pack is gone because it was collected while this check was under way.
    fn was_collected(&self, record: &PackRecord, error: &RegionError) -> bool {
        error.is_not_found()
            && self.region.catalog().is_ok_and(|now| !readable(&now).any(|there| there.name == record.name))
    }

    /// Packs that were not in the sample still have their trailers checked.
    fn unread_trailers(&mut self, catalog: &Catalog, read: &HashSet<PackName>) {
        for record in readable(catalog).filter(|record| !read.contains(&record.name)) {
            match self.region.check_trailer(record) {
                Err(error) if !self.was_collected(record, &error) => {
                    let finding = self.add(&record.name.to_string(), &error);
                    self.bad_packs.insert(record.name, finding);
                }
                _ => {}
            }
        }
    }

    /// Every manifest is whole, and every chunk of it is in a readable pack and has the length it says.
    fn manifests(&mut self, catalog: &Catalog, selected: &BTreeSet<RootId>) -> Result<(), OpsError> {
        for root in catalog.roots().filter(|root| selected.contains(&root.id)) {
            self.context.check_cancelled()?;
            self.report.snapshots += 1;
            let map = match self.region.load_map(root.manifest) {
                Ok(map) => map,
                // Deleted and collected while this check was under way.
                Err(error) if error.is_not_found() && !self.is_still_named(root.manifest) => continue,
                Err(error) => {
                    let finding = self.add(&root.manifest.name.to_string(), &error);
                    self.touch(finding, root.id);
                    continue;
                }
            };
            let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
            let mut missing = 0;
            for (chunk, location) in map.chunks().iter().zip(self.region.try_locate(&ids)?) {
                if let Some(&finding) = self.bad.get(&chunk.id) {
                    self.touch(finding, root.id);
                }
                // A segment may still list what an unreadable pack held.
                let pack = location.and_then(|location| self.bad_packs.get(&location.pack));
                if let Some(&finding) = pack {
                    self.touch(finding, root.id);
                }
                if location.is_none_or(|location| location.raw_blocks != chunk.blocks) {
                    missing += 1;
                }
            }
            if missing > 0 {
                let finding = Finding {
                    object: root.manifest.name.to_string(),
                    problem: format!("{missing} of its chunks are in no readable pack"),
                    affected: Vec::new(),
                    affected_of_others: 0,
                };
                self.report.findings.push(finding);
                self.touch(self.report.findings.len() - 1, root.id);
            }
        }
        Ok(())
    }

    fn is_still_named(&self, manifest: &ManifestRecord) -> bool {
        let now = self.region.catalog();
        now.is_ok_and(|now| now.roots().any(|root| root.manifest.name == manifest.name))
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
            let mut hidden = 0;
            for root in roots {
                if own.contains(&root) || readable(&root) {
                    finding.affected.push(root.to_string());
                } else {
                    hidden += 1;
                }
                finding.affected.extend(images.get(&root).into_iter().flatten().cloned());
            }
            finding.affected_of_others = hidden;
        }
        self.report
    }
}
