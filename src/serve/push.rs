//! The side that has something copied to the other: it says what, and gives.

use super::error::{LinkError, Refusal};
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

/// Longest note that is passed on, in characters, and how many of them: what more comes is no help.
const NOTE_CHARS_MAX: usize = 2000;
const NOTES_MAX: usize = 200;

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
    let (mut giver, mut planned, mut notes) = (Giver::new(source, to), Planned::default(), 0);
    loop {
        context.check_cancelled()?;
        match link.receive()?.0 {
            Message::Planned(plan) => {
                planned = plan;
                context.progress.begin("copy", plan.transfer_bytes);
            }
            Message::Progress(bytes) => context.progress.advance(bytes),
            Message::Note(note) if notes < NOTES_MAX => {
                notes += 1;
                let note: String = note.chars().take(NOTE_CHARS_MAX).collect();
                context.progress.note(&format!("the other side: {note}"));
            }
            Message::Note(_) => return Err(LinkError::protocol("it does not stop telling things").into()),
            Message::Refused(refusal) => return Err(refusal.into_error()),
            Message::Pulled(pulled) => {
                return Ok(Pushed { planned, pulled: pulled.map(|pulled| *pulled) });
            }
            request => match giver.answer(link, &request, context) {
                Err(OpsError::ConnectionLost { why }) => {
                    let lost = OpsError::ConnectionLost { why: why.clone() };
                    // The source's connection may be what was lost: then the other side is told, and waits for nothing.
                    let is_heard = link.send(&Message::Refused(Refusal::of(&lost))).is_ok();
                    return Err(if is_heard { lost } else { last_word(link, why) });
                }
                answered => answered?,
            },
        }
    }
}
