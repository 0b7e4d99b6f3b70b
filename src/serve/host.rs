//! The side that has the region: greets who calls, and does what it asks as the account that it was let in with.

use super::error::{LinkError, Refusal};
use super::giver::{GivenTo, Giver, hide_name};
use super::link::Link;
use super::message::{Message, NewRegion, Planned, Pulled, VERSION, Welcome};
use super::peer::Peer;
use crate::model::ids::RegionId;
use crate::ops::context::{Context, Progress};
use crate::ops::copy::{Copied, CopyOptions, CopyPlan, CopyWhat, apply, plan};
use crate::ops::error::{Code, OpsError};
use crate::region::Region;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes after which the caller hears that they are done. Not by time: so no more such messages are on their way than
/// there are frames, and nobody waits for anybody in a circle.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What the program around it does for a caller.
pub trait Doors {
    /// The region that the caller is let in to; made as it wants if it is not there, and if it may.
    fn open(&self, create: Option<&NewRegion>) -> Result<Region, OpsError>;

    /// Runs a command for the caller, if it may, and gives the exit code.
    fn run(&self, arguments: &[String], link: &Link) -> Result<u8, OpsError>;
}

/// Serves one caller until it closes the connection.
pub fn serve(link: &Link, doors: &dyn Doors, is_guest: bool, context: &Context<'_>) -> Result<(), OpsError> {
    let served = greet(link, doors, is_guest, context)
        .and_then(|region| answer_all(link, doors, &region, is_guest, context));
    if let Err(error) = &served {
        // It may be gone already.
        let _ = link.send(&Message::Refused(Refusal::of(error)));
    }
    served
}

fn greet(link: &Link, doors: &dyn Doors, is_guest: bool, context: &Context<'_>) -> Result<Region, OpsError> {
    let (Message::Hello { version, create }, _) = link.receive()? else {
        return Err(LinkError::protocol("it does not say hello").into());
    };
    if version != VERSION {
        let why =
            format!("it speaks version {version}, and this imgstore version {VERSION}: update the older one");
        return Err(LinkError::protocol(why).into());
    }
    let region = doors.open(create.as_ref())?;
    let header = region.header();
    link.send(&Message::Welcome(Welcome {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        region: header.id,
        name: header.name.clone(),
        chunker: header.chunker,
        zstd_level: header.zstd_level,
        account: context.account,
        is_guest,
    }))?;
    Ok(region)
}

fn answer_all(
    link: &Link,
    doors: &dyn Doors,
    region: &Region,
    is_guest: bool,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let mut giver = Giver::new(region, if is_guest { GivenTo::Guest } else { GivenTo::Owner });
    // A connection may stay for days.
    let began = Instant::now();
    loop {
        let request = match link.receive() {
            Ok((request, _)) => request,
            // The caller has all that it wants.
            Err(LinkError::Lost { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        context.check_cancelled()?;
        match request {
            Message::Pull { region: from, name, what, options, dry_run } => {
                // How fast its connection may be is the caller's to see to: nothing here waits for that.
                let options = CopyOptions { is_guest, bytes_per_second: None, ..options };
                let now_ms =
                    context.now_ms.saturating_add(u64::try_from(began.elapsed().as_millis()).unwrap_or(0));
                let context = Context { dry_run, now_ms, ..*context };
                let pulled = pull(link, (from, &name), region, what, &options, &context);
                reply(link, pulled.map(|pulled| Message::Pulled(pulled.map(Box::new))))?;
            }
            Message::Run(arguments) => reply(link, doors.run(&arguments, link).map(Message::Exit))?,
            request => giver.answer(link, &request, context)?,
        }
    }
}

fn reply(link: &Link, answer: Result<Message, OpsError>) -> Result<(), OpsError> {
    match answer {
        Err(error @ (OpsError::ConnectionLost { .. } | OpsError::Protocol { .. })) => Err(error),
        Err(error) => Ok(link.send(&Message::Refused(Refusal::of(&error)))?),
        Ok(message) => Ok(link.send(&message)?),
    }
}

/// Copies from the caller, who gives.
fn pull(
    link: &Link,
    (from, name): (RegionId, &str),
    region: &Region,
    what: CopyWhat,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Option<Pulled>, OpsError> {
    if options.is_guest && from == region.header().id {
        let why = "a guest brings what is in a region of its own; what is in this one is copied here";
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    let (source, reporter) = (Peer::new(link, from, name), Reporter::new(link, context.progress));
    let context = Context { progress: &reporter, ..*context };
    let plan = plan(&source, region, what, options, &context)?;
    link.send(&Message::Planned(Planned::of(&plan)))?;
    if context.dry_run {
        return Ok(None);
    }
    let copied = apply(&source, region, &plan, options, &context)?;
    Ok(Some(Pulled::of(copied, region, options.is_guest)))
}

impl Pulled {
    /// What a copy made in `region`, as somebody hears of it who may be a guest. It is told whatever comes after it.
    pub fn of(copied: Copied, region: &Region, is_guest: bool) -> Self {
        let template = copied.image.as_ref().and_then(|image| image.template);
        let catalog = region.known_catalog();
        let mut template = template.and_then(|id| catalog.templates.get(&id).cloned());
        let mut snapshots = copied.snapshots;
        if is_guest {
            snapshots.iter_mut().for_each(|snapshot| hide_name(&mut snapshot.manifest));
            template.iter_mut().for_each(|template| hide_name(&mut template.manifest));
        }
        Self {
            image: copied.image,
            snapshots,
            template,
            transferred_bytes: copied.transferred_bytes,
            // How much of it others had already is not for a guest to know.
            stored_bytes: if is_guest { copied.transferred_bytes } else { copied.stored_bytes },
            was_made_before: copied.was_made_before,
        }
    }
}

impl Planned {
    /// The figures of a plan.
    pub fn of(plan: &CopyPlan) -> Self {
        Self {
            volume_bytes: plan.volume_bytes(),
            data_bytes: plan.data_bytes(),
            chunks: plan.chunks(),
            distinct_chunks: plan.distinct_chunks(),
            new_chunks: plan.new_chunks(),
            new_bytes: plan.new_bytes(),
            transfer_bytes: plan.transfer_bytes(),
            stored_bytes: plan.expected_bytes(),
        }
    }
}

/// Tells the caller how far it is.
struct Reporter<'a> {
    link: &'a Link,
    here: &'a dyn Progress,
    untold: AtomicU64,
}

impl<'a> Reporter<'a> {
    fn new(link: &'a Link, here: &'a dyn Progress) -> Self {
        Self { link, here, untold: AtomicU64::new(0) }
    }
}

impl Progress for Reporter<'_> {
    fn begin(&self, _phase: &'static str, _total_bytes: u64) {}

    fn advance(&self, bytes: u64) {
        let untold = self.untold.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if untold >= PROGRESS_BYTES {
            let told = self.untold.swap(0, Ordering::Relaxed);
            // If the caller is gone, what asks it next finds that out.
            let _ = self.link.send(&Message::Progress(told));
        }
    }

    fn note(&self, message: &str) {
        let _ = self.link.send(&Message::Note(message.to_owned()));
    }

    fn is_cancelled(&self) -> bool {
        self.here.is_cancelled()
    }
}
