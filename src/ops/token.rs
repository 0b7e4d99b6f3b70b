//! Client tokens: the same request again gives what it gave, and makes nothing twice. Rule: EC2's ClientToken.

use super::context::Context;
use super::error::{Code, OpsError};
use crate::disk::open::{absolute, physical};
use crate::model::account::ClientToken;
use crate::model::catalog::Catalog;
use crate::model::ids::ObjectHash;
use crate::region::Region;
use serde::Serialize;
use std::path::{Component, Path, PathBuf};

/// Bytes of the longest token.
const TOKEN_BYTES_MAX: usize = 64;

/// The token of a request, if it has one, with the hash of what it asks for.
pub(super) fn client_token(
    token: Option<&String>,
    request: &impl Serialize,
) -> Result<Option<ClientToken>, OpsError> {
    let Some(token) = token else { return Ok(None) };
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(OpsError::rule(Code::InvalidParameterValue, "a client token has 1 to 64 bytes"));
    }
    let text = serde_json::to_vec(request)
        .map_err(|e| OpsError::rule(Code::InvalidParameterValue, format!("the request: {e}")))?;
    let request = ObjectHash(*blake3::hash(&text).as_bytes());
    Ok(Some(ClientToken { token: token.clone(), request }))
}

/// The folder of a request, however it was spelled.
pub(super) fn output_folder(path: &Path) -> Result<PathBuf, OpsError> {
    let path: PathBuf = absolute(path)?.components().collect();
    // What is above a folder depends on what it is a link to.
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    Ok(physical(&path).filter(|_| goes_up).unwrap_or(path))
}

/// What a caller's earlier request with this token made, among all that the caller has; refused if that was
/// another request.
pub(super) fn made_before<'a, T>(
    token: Option<&ClientToken>,
    all: impl Iterator<Item = &'a T>,
    token_of: impl Fn(&T) -> Option<&ClientToken>,
) -> Result<Vec<&'a T>, OpsError> {
    let Some(token) = token else { return Ok(Vec::new()) };
    let (mut made, mut is_others) = (Vec::new(), false);
    for thing in all {
        match token_of(thing) {
            Some(known) if known == token => made.push(thing),
            Some(known) if known.token == token.token => is_others = true,
            _ => {}
        }
    }
    // There can be two requests of one token where what one had made was in the bin meanwhile: each gives what it gave.
    if made.is_empty() && is_others {
        let why = "The client token was used before with other parameters";
        return Err(OpsError::rule(Code::IdempotentParameterMismatch, why));
    }
    Ok(made)
}

/// What a log says that is durable as far as it was read: a commit without operations appends nothing. Who answers that
/// something was made before may have read what its maker had not made durable.
pub(super) fn durable<T>(
    region: &Region,
    context: &Context<'_>,
    mut find: impl FnMut(&Catalog) -> Result<T, OpsError>,
) -> Result<T, OpsError> {
    if context.dry_run {
        return find(&region.catalog()?);
    }
    region.commit(context.account, |catalog| Ok((vec![], find(catalog)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one request of a token had made was in the bin while the token was used for another, and came back.
    #[test]
    fn each_of_two_requests_of_a_token_gives_what_it_gave() {
        let token = |request: u8| client_token(Some(&"t".to_owned()), &request).unwrap().unwrap();
        let things = [token(1), token(2)];
        let made = |wanted: &ClientToken| {
            made_before(Some(wanted), things.iter(), |thing| Some(thing)).map(|made| made.len())
        };
        assert_eq!(made(&token(1)).unwrap(), 1);
        assert_eq!(made(&token(2)).unwrap(), 1);
        assert_eq!(made(&token(3)).unwrap_err().code(), "IdempotentParameterMismatch");
        assert_eq!(
            made_before(None, things.iter(), |thing| Some(thing)).unwrap(),
            Vec::<&ClientToken>::new()
        );
    }
}
