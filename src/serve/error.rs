//! What can go wrong between two hosts.

use crate::ops::error::{Class, Code, OpsError};
use serde::{Deserialize, Serialize};

/// What can go wrong with a connection.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// It ended.
    #[error("the connection was lost ({why})")]
    Lost {
        /// How.
        why: String,
    },
    /// The other side does not keep to the protocol.
    #[error(
        "the other side breaks the protocol: {why}; is imgstore there, and of a version that fits this one?"
    )]
    Protocol {
        /// What it did.
        why: String,
    },
}

impl LinkError {
    pub(super) fn lost(error: &std::io::Error) -> Self {
        Self::Lost { why: error.to_string() }
    }

    pub(super) fn protocol(why: impl Into<String>) -> Self {
        Self::Protocol { why: why.into() }
    }
}

impl From<LinkError> for OpsError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Lost { .. } => Self::ConnectionLost { why: error.to_string() },
            LinkError::Protocol { .. } => Self::Protocol { why: error.to_string() },
        }
    }
}

/// An answer of the other side that is an error, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Number of its kind.
    class: u8,
    /// EC2's code or ours.
    code: String,
    /// The sentence.
    message: String,
}

/// Longest sentence that is taken over.
const MESSAGE_CHARS_MAX: usize = 2000;

const CLASSES: [Class; 9] = [
    Class::Failed,
    Class::Usage,
    Class::NotFound,
    Class::Denied,
    Class::Damage,
    Class::Refused,
    Class::NoSpace,
    Class::Interrupted,
    Class::DryRun,
];

impl Refusal {
    /// An error, to be sent.
    pub fn of(error: &OpsError) -> Self {
        let class = CLASSES.iter().position(|class| *class == error.class()).unwrap_or(0);
        // That it is another side's answer is said where it arrives.
        let message = if let OpsError::Peer { message, .. } = error { message } else { &error.to_string() };
        let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        Self { class: u8::try_from(class).unwrap_or(0), code: error.code().to_owned(), message }
    }

    /// The error that it is here.
    pub fn into_error(self) -> OpsError {
        let message: String = self.message.chars().take(MESSAGE_CHARS_MAX).collect();
        // These two the other side cannot decide here: what was to be done was not done.
        let is_ours = |class| matches!(class, Class::DryRun | Class::Interrupted);
        if let Some(code) = Code::parse(&self.code).filter(|code| !is_ours(code.class())) {
            return OpsError::Rule { code, message };
        }
        let class = CLASSES.get(usize::from(self.class)).copied().filter(|class| !is_ours(*class));
        OpsError::Peer { class: class.unwrap_or(Class::Failed), message }
    }
}
