//! Copy: an image or a snapshot into another region, or the same. Rules: EC2's CopyImage and CopySnapshot.
//!
//! The copy belongs to whoever makes it, has ids of its own, names its source, and stands alone: afterwards
//! the source region may vanish.

use super::context::Context;
use super::error::{Class, Code, OpsError};
use super::find::{check_description, check_manifests, check_packs};
use super::gc::despite_collection;
use super::offer::{Offer, check as check_offer, check_guests_maps, select};
use super::owned::Trusted;
use super::register::{check_image_name, check_name_free};
use super::source::Source;
use super::token::{client_token, durable, made_before};
use super::transfer::{Missing, find_missing, transfer};
use crate::model::account::{ClientToken, Tag};
use crate::model::blockmap::BlockMap;
use crate::model::catalog::{Catalog, RootId};
use crate::model::ids::{ImageId, ObjectHash, SnapshotId, TemplateId};
use crate::model::image::{DeregistrationProtection, DeviceTarget, Image, ImageSource};
use crate::model::objects::{ManifestRecord, PackName};
use crate::model::op::Op;
use crate::model::snapshot::{Snapshot, SnapshotSource, Template};
use crate::model::units::block_offset;
use crate::region::Region;
use crate::region::session::Session;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Longest name of a source region: that of a path.
const SOURCE_REGION_BYTES_MAX: usize = 4096;

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyWhat {
    /// An image with its snapshots.
    Image(ImageId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// What is said of the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOptions {
    /// The name by which the caller knows the source region, up to 4,096 bytes.
    pub source_region: String,
    /// The copy's name; none for the source's.
    pub name: Option<String>,
    /// The copy's description; none for the source's.
    pub description: Option<String>,
    /// Whether tags are copied, too.
    pub copy_tags: bool,
    /// The same request again gives the same copy.
    pub client_token: Option<String>,
    /// Whether the caller is only let in, and has to bring whatever it could not read at the target anyway.
    pub is_guest: bool,
    /// Bytes of frames that are fetched in a second at most, on average. A connection has a limit of its own.
    pub bytes_per_second: Option<u64>,
}

/// What a copy will do and move. Nothing is changed yet.
pub struct CopyPlan {
    what: CopyWhat,
    offer: Offer,
    /// Of the snapshots, then of the template.
    maps: Vec<BlockMap>,
    missing: Missing,
    /// What a guest may count on at the target.
    trusted: Option<Trusted>,
    token: Option<ClientToken>,
    /// Whether the target itself has what is copied, and not only a copy of its folder, from which it is brought back.
    is_within: bool,
    /// Bytes of manifests that the target lacks.
    manifest_bytes: u64,
}

impl CopyPlan {
    /// What moves nothing.
    fn of_nothing(what: CopyWhat, token: Option<ClientToken>) -> Self {
        Self {
            what,
            offer: Offer::default(),
            maps: Vec::new(),
            missing: Missing::default(),
            trusted: None,
            token,
            is_within: false,
            manifest_bytes: 0,
        }
    }

    /// Bytes that will be moved: stored frames and manifests that the target lacks.
    pub fn transfer_bytes(&self) -> u64 {
        self.missing.stored_bytes + self.manifest_bytes
    }

    /// About what that takes at the target, where what is stored against chunks that are not there is stored by itself.
    pub fn expected_bytes(&self) -> u64 {
        self.missing.expected_bytes + self.manifest_bytes
    }

    /// Different chunks of all snapshots.
    pub fn distinct_chunks(&self) -> u64 {
        self.missing.distinct_chunks
    }

    /// Chunks that will be moved.
    pub fn new_chunks(&self) -> u64 {
        self.missing.chunks()
    }

    /// Raw bytes of those.
    pub fn new_bytes(&self) -> u64 {
        self.missing.raw_bytes
    }

    /// What the maps are of, in their order.
    fn roots(&self) -> impl Iterator<Item = RootId> + '_ {
        let snapshots = self.offer.snapshots.iter().map(|snapshot| RootId::Snapshot(snapshot.id));
        snapshots.chain(self.offer.template.iter().map(|template| RootId::Template(template.id)))
    }

    /// Refuses block maps of another length than the source says of what has them.
    fn check_sizes(&self) -> Result<(), OpsError> {
        let snapshots = self.offer.snapshots.iter().map(|s| (s.volume_bytes, s.data_bytes));
        let said = snapshots.chain(self.offer.template.iter().map(|t| (t.volume_bytes, t.data_bytes)));
        for ((map, said), root) in self.maps.iter().zip(said).zip(self.roots()) {
            if (map.volume_bytes(), map.data_bytes()) != said {
                return Err(OpsError::MapLength { root, expected: said.0, found: map.volume_bytes() });
            }
        }
        Ok(())
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
    source: &dyn Source,
    target: &Region,
    what: CopyWhat,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<CopyPlan, OpsError> {
    check_options(options)?;
    if context.dry_run {
        target.check_appendable()?;
    }
    let token = token_of(source, what, options)?;
    let there = target.catalog()?;
    // What was copied before is the answer even if the source is gone.
    if made_by(&there, what, token.as_ref(), context)?.is_some() {
        return Ok(CopyPlan::of_nothing(what, token));
    }
    let offer = source.offer(what, context)?;
    check_offer(&offer, what)?;
    plan_of(offer, token, source, target, what, options, context)
        .map_err(|error| unless_deleted(source, what, error, context))
}

/// The plan of a copy of what was offered.
fn plan_of(
    offer: Offer,
    token: Option<ClientToken>,
    source: &dyn Source,
    target: &Region,
    what: CopyWhat,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<CopyPlan, OpsError> {
    let there = target.catalog()?;
    // A try before this one may have been done by now, whose line was lost.
    if made_by(&there, what, token.as_ref(), context)?.is_some() {
        return Ok(CopyPlan::of_nothing(what, token));
    }
    if options.is_guest {
        check_guests_maps(&offer)?;
    }
    let maps = source.maps(&offer, context)?;
    let is_there = match what {
        CopyWhat::Image(id) => there.images.contains_key(&id),
        CopyWhat::Snapshot(id) => there.snapshots.contains_key(&id),
    };
    let is_within = is_there && source.id() == target.header().id;
    let mut plan = CopyPlan { offer, maps, is_within, ..CopyPlan::of_nothing(what, token) };
    plan.check_sizes()?;
    note_older_source(source, &plan.offer, &there, context);
    plan.trusted = options.is_guest.then(|| Trusted::of(target, &plan.maps, context)).transpose()?;
    plan.missing = find_missing(source, target, &plan.maps, plan.trusted.as_ref(), context)?;
    if let Some(image) = &plan.offer.image {
        check_name_free(&there, context.account, &copy_name(image, options))?;
    }
    // A guest does not hear what others have.
    let is_lacking = |hash: &ObjectHash| options.is_guest || target.known_manifest(&there, hash).is_none();
    let lacking = plan.offer.manifests().filter(|manifest| is_lacking(&manifest.hash));
    let lacking: BTreeMap<ObjectHash, u64> = lacking.map(|manifest| (manifest.hash, manifest.len)).collect();
    plan.manifest_bytes = lacking.values().sum();
    Ok(plan)
}

/// What was deleted and collected at the source meanwhile is not damaged.
fn unless_deleted(source: &dyn Source, what: CopyWhat, error: OpsError, context: &Context<'_>) -> OpsError {
    if error.class() != Class::Damage {
        return error;
    }
    match source.offer(what, context) {
        // Of its own image that was deregistered a caller is told that.
        Err(gone) if matches!(gone.class(), Class::NotFound | Class::Refused | Class::Denied) => gone,
        _ => error,
    }
}

/// Tells that the source's history is shorter than a copy before saw it: it was put back to an older state, or what
/// stands there is another region.
fn note_older_source(source: &dyn Source, offer: &Offer, there: &Catalog, context: &Context<'_>) {
    // By what others copied nobody is told anything.
    let own = there.snapshots.values().filter(|snapshot| snapshot.owner == context.account);
    let of_source = own.filter_map(|snapshot| snapshot.source.as_ref());
    let seen = of_source.filter(|from| from.region_id == source.id()).map(|from| from.sequence).max();
    if let Some(seen) = seen.filter(|seen| *seen > offer.sequence) {
        context.progress.note(&format!(
            "region {} ends at log record {}, but an earlier copy of it saw record {seen}: it was put back to an older state",
            source.name(),
            offer.sequence
        ));
    }
}

/// Carries out a plan.
pub fn apply(
    source: &dyn Source,
    target: &Region,
    plan: &CopyPlan,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Copied, OpsError> {
    let made = durable(target, context, |catalog| made_by(catalog, plan.what, plan.token.as_ref(), context))?;
    if let Some(made) = made {
        return Ok(made);
    }
    context.end_dry_run()?;
    if plan.offer == Offer::default() {
        // It was there when the plan was made.
        return Err(OpsError::ContentGone { what: "the copy that this token had made".into() });
    }
    let mut trusted = plan.trusted.clone();
    match carry_out(source, target, plan, &plan.missing, &mut trusted, options, context) {
        // Collected at the target since the plan was made: what is missing is more than it says.
        Err(OpsError::ContentGone { .. }) => despite_collection(|| {
            if let Some(trusted) = trusted.as_mut() {
                trusted.renew(target, &plan.maps, context)?;
            }
            // What came the last time need not come again.
            let missing = find_missing(source, target, &plan.maps, trusted.as_ref(), context)
                .map_err(|error| unless_deleted(source, plan.what, error, context))?;
            carry_out(source, target, plan, &missing, &mut trusted, options, context)
        }),
        done => done,
    }
}

fn carry_out(
    source: &dyn Source,
    target: &Region,
    plan: &CopyPlan,
    missing: &Missing,
    trusted: &mut Option<Trusted>,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Copied, OpsError> {
    let mut session = target.begin(context.account)?;
    context.progress.begin("copy", missing.stored_bytes);
    let mut transferred_bytes =
        transfer(source, &mut session, missing, trusted, options.bytes_per_second, context)
            .map_err(|error| unless_deleted(source, plan.what, error, context))?;
    let used = reserve_all(&mut session, plan)?;
    let manifests: Vec<ManifestRecord> =
        plan.maps.iter().map(|map| session.place_manifest(map)).collect::<Result<_, _>>()?;
    transferred_bytes += if options.is_guest { plan.manifest_bytes } else { session.manifest_bytes() };
    let copier = Copier { source, target, plan, options, context };
    let copy = copier.copy(&manifests)?;
    let codes_now = if plan.is_within { None } else { codes_offered(source, plan, context)? };
    let made = target.commit::<_, OpsError>(context.account, |catalog| {
        // The same request may have been faster, from another process.
        if let Some(made) = made_by(catalog, plan.what, plan.token.as_ref(), context)? {
            return Ok((vec![], made));
        }
        // What a guest counts on must still be its to read.
        if trusted.as_ref().is_some_and(|trusted| trusted.is_withdrawn(catalog, context.account)) {
            return Err(OpsError::ContentGone { what: "what another account showed".into() });
        }
        // Within a region what is copied must still be there and the caller's to copy.
        let now = plan.is_within.then(|| select(catalog, plan.what, context)).transpose()?;
        check_manifests(catalog, &session)?;
        let mut image = copier.placed(catalog, copy.image.as_ref())?;
        let codes_now = now.and_then(|now| now.image).map(|image| image.product_codes).or(codes_now.clone());
        if let Some((image, codes)) = image.as_mut().zip(codes_now) {
            // They may have been added since the plan was made.
            image.product_codes = codes;
        }
        let ops = copy.ops(image.as_ref(), &check_packs(catalog, &used)?);
        let (snapshots, stored_bytes) = (copy.snapshots.clone(), session.stored_bytes());
        Ok((ops, Copied { image, snapshots, transferred_bytes, stored_bytes, was_made_before: false }))
    })?;
    Ok(made)
}

/// The product codes that the source says an image has now: moving its content may have taken hours. What somebody else gave may be
/// theirs to give no longer; of one's own the request counts, as in EC2, and where the source does not answer any more, what it said.
fn codes_offered(
    source: &dyn Source,
    plan: &CopyPlan,
    context: &Context<'_>,
) -> Result<Option<Vec<String>>, OpsError> {
    // Whether it is others' the side knows that brings something to another host: of those it denies what is taken back.
    let is_final = |class| match source.asked_as(context) {
        Some(account) => {
            plan.offer.is_of_others(account)
                && matches!(class, Class::Denied | Class::NotFound | Class::Refused)
        }
        None => class == Class::Denied,
    };
    match source.offer(plan.what, context) {
        Ok(offer) => {
            check_offer(&offer, plan.what)?;
            Ok(offer.image.map(|image| image.product_codes))
        }
        Err(error @ OpsError::Interrupted) => Err(error),
        Err(error) if is_final(error.class()) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Makes sure that every chunk of every map is at the target now, and gives the packs that hold them.
fn reserve_all(session: &mut Session, plan: &CopyPlan) -> Result<Vec<PackName>, OpsError> {
    session.flush()?;
    for (map, root) in plan.maps.iter().zip(plan.roots()) {
        let ids: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
        let gone = |chunk| OpsError::ContentGone { what: format!("the pack of chunk {chunk}") };
        let lacking = session.reserve(&ids)?.iter().position(|is_new| *is_new);
        if let Some(at) = lacking {
            return Err(gone(ids[at]));
        }
        // Chunks are what they are called; how long they are is what the source's block map says.
        for (chunk, place) in map.chunks().iter().zip(session.region().try_locate(&ids)?) {
            // It may go between the two looks.
            let place = place.ok_or_else(|| gone(chunk.id))?;
            if place.raw_blocks != chunk.blocks {
                let (expected, found) = (block_offset(chunk.blocks.into()), place.raw_bytes());
                return Err(OpsError::ChunkLength { root, expected, found });
            }
        }
    }
    Ok(session.used_packs())
}

fn check_options(options: &CopyOptions) -> Result<(), OpsError> {
    // It is on record with each snapshot.
    if options.source_region.len() > SOURCE_REGION_BYTES_MAX {
        let why = format!("The source region's name has more than {SOURCE_REGION_BYTES_MAX} bytes.");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    options.name.as_deref().map_or(Ok(()), check_image_name)?;
    options.description.as_deref().map_or(Ok(()), check_description)
}

/// The request's token: it stands for what is copied from where, and as what.
fn token_of(
    source: &dyn Source,
    what: CopyWhat,
    options: &CopyOptions,
) -> Result<Option<ClientToken>, OpsError> {
    let what = match what {
        CopyWhat::Image(id) => id.to_string(),
        CopyWhat::Snapshot(id) => id.to_string(),
    };
    let request = (what, source.id(), &options.name, &options.description, options.copy_tags);
    client_token(options.client_token.as_ref(), &request)
}

fn copy_name(image: &Image, options: &CopyOptions) -> String {
    options.name.clone().unwrap_or_else(|| image.name.clone())
}

/// What an earlier request with the same token made. With other arguments the token is refused.
fn made_by(
    catalog: &Catalog,
    what: CopyWhat,
    token: Option<&ClientToken>,
    context: &Context<'_>,
) -> Result<Option<Copied>, OpsError> {
    let made = |image: Option<Image>, snapshots: Vec<Snapshot>| Copied {
        image,
        snapshots,
        transferred_bytes: 0,
        stored_bytes: 0,
        was_made_before: true,
    };
    let account = context.account;
    if let CopyWhat::Image(_) = what {
        let own = catalog.images.values().filter(|image| image.owner == account);
        let copies = made_before(token, own, |image| image.client_token.as_ref())?;
        let Some(&copy) = copies.first() else { return Ok(None) };
        // Several devices may stand on one.
        let ids: BTreeSet<SnapshotId> = copy.snapshot_ids().collect();
        let snapshots = ids.iter().filter_map(|id| catalog.snapshots.get(id).cloned()).collect();
        return Ok(Some(made(Some(copy.clone()), snapshots)));
    }
    let own = catalog.snapshots.values().filter(|snapshot| snapshot.owner == account);
    let copies = made_before(token, own, |snapshot| snapshot.client_token.as_ref())?;
    Ok(copies.first().map(|&copy| made(None, vec![copy.clone()])))
}

/// What a copy makes at the target.
struct Copy {
    image: Option<Image>,
    snapshots: Vec<Snapshot>,
    template: Option<Template>,
}

impl Copy {
    fn ops(&self, image: Option<&Image>, packs: &[PackName]) -> Vec<Op> {
        let create =
            |s: &Snapshot| Op::CreateSnapshot { snapshot: Box::new(s.clone()), packs: packs.to_vec() };
        let mut ops: Vec<Op> = self.snapshots.iter().map(create).collect();
        if let Some(template) = &self.template {
            ops.push(Op::CreateTemplate { template: Box::new(template.clone()), packs: packs.to_vec() });
        }
        ops.extend(image.map(|image| Op::RegisterImage(Box::new(image.clone()))));
        ops
    }
}

struct Copier<'a> {
    source: &'a dyn Source,
    target: &'a Region,
    plan: &'a CopyPlan,
    options: &'a CopyOptions,
    context: &'a Context<'a>,
}

impl Copier<'_> {
    /// The copies, on manifests that stand at the target.
    fn copy(&self, manifests: &[ManifestRecord]) -> Result<Copy, OpsError> {
        let pairs = self.plan.offer.snapshots.iter().zip(manifests);
        let snapshots =
            pairs.map(|(s, manifest)| self.snapshot(s, manifest)).collect::<Result<Vec<_>, _>>()?;
        let template = match (&self.plan.offer.template, manifests.last()) {
            (Some(template), Some(manifest)) => Some(Template {
                id: TemplateId::from_random(self.target.random_id()?),
                owner: self.context.account,
                created_ms: self.context.now_ms,
                manifest: manifest.clone(),
                ..template.clone()
            }),
            _ => None,
        };
        let image = self.plan.offer.image.as_ref();
        let image = image.map(|image| self.image(image, &snapshots, template.as_ref())).transpose()?;
        Ok(Copy { image, snapshots, template })
    }

    /// The image with its place among the target's.
    fn placed(&self, catalog: &Catalog, image: Option<&Image>) -> Result<Option<Image>, OpsError> {
        let Some(image) = image else { return Ok(None) };
        check_name_free(catalog, image.owner, &image.name)?;
        Ok(Some(Image { predecessor: self.predecessor(catalog), ..image.clone() }))
    }

    /// The version before the copy: within a region the original's own, if it is the copier's; else the newest
    /// copy of that which the copier has.
    fn predecessor(&self, catalog: &Catalog) -> Option<ImageId> {
        let before = self.plan.offer.image.as_ref()?.predecessor?;
        let region_id = self.source.id();
        let own = catalog.images.values().filter(|image| image.owner == self.context.account);
        if region_id == self.target.header().id {
            return own.map(|image| image.id).find(|id| *id == before);
        }
        let is_copy = |image: &&Image| {
            image.source.as_ref().is_some_and(|s| s.image_id == before && s.region_id == region_id)
        };
        own.filter(is_copy).max_by_key(|image| image.created_ms).map(|image| image.id)
    }

    fn tags(&self, tags: &[Tag]) -> Vec<Tag> {
        if self.options.copy_tags { tags.to_vec() } else { Vec::new() }
    }

    fn snapshot(&self, snapshot: &Snapshot, manifest: &ManifestRecord) -> Result<Snapshot, OpsError> {
        let is_image = self.plan.offer.image.is_some();
        // EC2's sentence, where the original's would speak of what is not here.
        let described = if let Some(image) = &self.plan.offer.image {
            Some(format!("Copied from SourceAmi {} for SourceSnapshot {}", image.id, snapshot.id))
        } else {
            self.options.description.clone()
        };
        Ok(Snapshot {
            id: SnapshotId::from_random(self.target.random_id()?),
            owner: self.context.account,
            description: described.unwrap_or_else(|| snapshot.description.clone()),
            created_ms: self.context.now_ms,
            tags: self.tags(&snapshot.tags),
            parent: None,
            volume: None,
            source: Some(SnapshotSource {
                region_id: self.source.id(),
                region: self.options.source_region.clone(),
                snapshot_id: snapshot.id,
                sequence: self.plan.offer.sequence,
            }),
            create_volume_permissions: Vec::new(),
            client_token: self.plan.token.clone().filter(|_| !is_image),
            manifest: manifest.clone(),
            ..snapshot.clone()
        })
    }

    fn image(
        &self,
        image: &Image,
        snapshots: &[Snapshot],
        template: Option<&Template>,
    ) -> Result<Image, OpsError> {
        let new_id = |old: SnapshotId| {
            self.plan
                .offer
                .snapshots
                .iter()
                .zip(snapshots)
                .find(|(from, _)| from.id == old)
                .map(|(_, to)| to.id)
        };
        let mut devices = image.devices.clone();
        for device in &mut devices {
            if let DeviceTarget::Ebs(ebs) = &mut device.target {
                ebs.snapshot_id = ebs.snapshot_id.and_then(new_id);
            }
        }
        Ok(Image {
            id: ImageId::from_random(self.target.random_id()?),
            name: copy_name(image, self.options),
            description: self.options.description.clone().unwrap_or_else(|| image.description.clone()),
            owner: self.context.account,
            template: template.map(|template| template.id),
            devices,
            launch_permissions: Vec::new(),
            tags: self.tags(&image.tags),
            created_ms: self.context.now_ms,
            deprecation_ms: None,
            deregistration_protection: DeregistrationProtection::Disabled,
            source: Some(ImageSource {
                region_id: self.source.id(),
                region: self.options.source_region.clone(),
                image_id: image.id,
                owner: image.owner,
            }),
            source_instance: None,
            predecessor: None,
            client_token: self.plan.token.clone(),
            ..image.clone()
        })
    }
}
