//! The side that has something copied to the other: it says what, and gives.

use super::giver::{GivenTo, Giver};
use super::link::Link;
use super::message::{Message, Planned, Pulled};
use crate::ops::context::Context;
use crate::ops::copy::{CopyOptions, CopyWhat};
use crate::ops::error::OpsError;
use crate::ops::source::Source;

/// What became of a copy to the other side.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// What the other side said that it would move.
    pub planned: Planned,
    /// What it made; none in a dry run.
    pub pulled: Option<Pulled>,
}

/// What the other side said before it went, if that tells why.
fn last_word(link: &Link, why: String) -> OpsError {
    while let Ok((message, _)) = link.receive() {
        if let Message::Refused(refusal) = message {
            return refusal.into_error();
        }
    }
    OpsError::ConnectionLost { why }
}

/// Has the other side copy something of this source, and nothing else of it.
pub fn push(
    link: &Link,
    source: &dyn Source,
    what: CopyWhat,
    options: &CopyOptions,
    context: &Context<'_>,
) -> Result<Pushed, OpsError> {
    link.send(&Message::Pull {
        region: source.id(),
        name: source.name().to_owned(),
        what,
        options: options.clone(),
        dry_run: context.dry_run,
    })?;
    let to = GivenTo::Host { what, with_tags: options.copy_tags };
    let (mut giver, mut planned) = (Giver::new(source, to), Planned::default());
    loop {
        context.check_cancelled()?;
        match link.receive()?.0 {
            Message::Planned(plan) => {
                planned = plan;
                context.progress.begin("copy", plan.transfer_bytes);
            }
            Message::Progress(bytes) => context.progress.advance(bytes),
            Message::Note(note) => context.progress.note(&note),
            Message::Refused(refusal) => return Err(refusal.into_error()),
            Message::Pulled(pulled) => {
                return Ok(Pushed { planned, pulled: pulled.map(|pulled| *pulled) });
            }
            request => match giver.answer(link, &request, context) {
                Err(OpsError::ConnectionLost { why }) => return Err(last_word(link, why)),
                answered => answered?,
            },
        }
    }
}
