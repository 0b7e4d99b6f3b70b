//! Describing: lists of what a caller may see, by owner, permission and filters. Rules: EC2's Describe calls.
//!
//! Lists are ordered by the time at which things were made, then by id, so that pages are stable.

use super::described::Described;
use super::error::{Code, OpsError};
use super::filter::{Filter, fits};
use super::find::{self, AnyId};
use super::instance::is_shown;
use crate::model::account::{AccountId, Permission};
use crate::model::catalog::Catalog;
use crate::model::image::Image;
use crate::model::instance::{Instance, Volume};
use crate::model::snapshot::Snapshot;
use crate::model::units::TimeMs;
use crate::model::words::ImageState;
use std::collections::BTreeSet;

/// Whose things are asked for, among those that the caller may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The caller's own.
    Caller,
    /// Everybody's.
    All,
    /// One account's.
    Account(AccountId),
    /// Those of the account with this alias.
    Alias(String),
}

impl Owner {
    /// The one account, or none for everybody's. An alias that nobody has makes no sense.
    fn account(&self, catalog: &Catalog, caller: AccountId) -> Result<Option<AccountId>, OpsError> {
        match self {
            Self::All => Ok(None),
            Self::Caller => Ok(Some(caller)),
            Self::Account(id) => Ok(Some(*id)),
            Self::Alias(alias) => catalog.account_with_alias(alias).map(Some).ok_or_else(|| {
                let why =
                    format!("Value ({alias}) for parameter owner is invalid: no account has that alias");
                OpsError::rule(Code::InvalidParameterValue, why)
            }),
        }
    }
}

/// What a list is asked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only these; each must be one that the caller may see. None for all.
    pub ids: Vec<AnyId>,
    /// Whose things.
    pub owner: Owner,
    /// Images only: those that were shared with everybody, or with one account, by name.
    pub executable_by: Option<Permission>,
    /// Images only: others' deprecated ones, too.
    pub include_deprecated: bool,
    /// Images only: the caller's disabled ones, too. Others' are never seen.
    pub include_disabled: bool,
    /// Now: what is deprecated from a later time on is not deprecated yet.
    pub now_ms: TimeMs,
    /// All of these must admit a thing.
    pub filters: Vec<Filter>,
    /// At most so many, 1 or more.
    pub results_max: Option<usize>,
    /// Those after the page that gave this token.
    pub next_token: Option<String>,
}

/// A part of a list.
#[derive(Debug)]
pub struct Page<'a, T> {
    /// The things, in order.
    pub items: Vec<&'a T>,
    /// What to ask for the next page with, if there is one.
    pub next_token: Option<String>,
}

/// Images that the caller may see.
pub fn images<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Image>, OpsError> {
    check_images_exist(catalog, caller, &query.ids)?;
    // Whom else others have shared with is nobody's business.
    let own = Permission::Account(caller);
    let knows = |image: &Image, by: Permission| image.owner == caller || by == Permission::All || by == own;
    let shared = |image: &&Image| {
        query.executable_by.is_none_or(|by| image.launch_permissions.contains(&by) && knows(image, by))
    };
    let hidden = |image: &&Image| {
        let is_deprecated = image.deprecation_ms.is_some_and(|at| at <= query.now_ms);
        let is_disabled = image.state == ImageState::Disabled;
        is_deprecated && image.owner != caller && !query.include_deprecated
            || is_disabled && !query.include_disabled
    };
    page(catalog, caller, query, catalog.images.values().filter(shared).filter(|image| !hidden(image)))
}

/// Snapshots that the caller may see.
pub fn snapshots<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Snapshot>, OpsError> {
    for id in &query.ids {
        if let AnyId::Snapshot(id) = id {
            find::snapshot(catalog, caller, *id)?;
        }
    }
    page(catalog, caller, query, catalog.snapshots.values())
}

/// The caller's volumes.
pub fn volumes<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Volume>, OpsError> {
    for id in &query.ids {
        if let AnyId::Volume(id) = id {
            find::volume(catalog, caller, *id)?;
        }
    }
    page(catalog, caller, query, catalog.volumes.values())
}

/// The caller's instances. Those that were terminated are shown for an hour.
pub fn instances<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Instance>, OpsError> {
    let ids = query.ids.iter().filter_map(|id| if let AnyId::Instance(id) = id { Some(*id) } else { None });
    find::check_instances_exist(catalog, caller, query.now_ms, ids)?;
    let shown = |instance: &&Instance| is_shown(instance, query.now_ms);
    page(catalog, caller, query, catalog.instances.values().filter(shown))
}

/// The newest available image whose name fits a pattern.
pub fn latest<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
    name_pattern: &str,
) -> Result<Option<&'a Image>, OpsError> {
    let images = images(catalog, caller, &Query { results_max: None, next_token: None, ..query.clone() })?;
    let good = |image: &&&Image| image.state == ImageState::Available && fits(name_pattern, &image.name);
    Ok(images.items.iter().rfind(good).copied())
}

/// EC2's answer names all that do not exist. One that was deregistered describes as nothing, not as an error.
fn check_images_exist(catalog: &Catalog, caller: AccountId, ids: &[AnyId]) -> Result<(), OpsError> {
    let missing = |id: &AnyId| match id {
        AnyId::Image(id) if catalog.was_deregistered(*id, caller) => None,
        AnyId::Image(id) => find::image(catalog, caller, *id).is_err().then_some(*id),
        _ => None,
    };
    let missing: Vec<_> = ids.iter().filter_map(missing).collect();
    if missing.is_empty() { Ok(()) } else { Err(OpsError::images_not_found(&missing)) }
}

fn page<'a, T: Described + 'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
    all: impl Iterator<Item = &'a T>,
) -> Result<Page<'a, T>, OpsError> {
    let unknown =
        |name: &str| OpsError::rule(Code::InvalidParameterValue, format!("The filter '{name}' is invalid"));
    let is_known = |name: &str| {
        name.starts_with("tag:") || ["tag-key", "owner-id"].contains(&name) || T::FILTERS.contains(&name)
    };
    if let Some(filter) = query.filters.iter().find(|filter| !is_known(&filter.name)) {
        return Err(unknown(&filter.name));
    }
    let of_kind = |id: &&AnyId| id.prefix() == T::PREFIX;
    if let Some(id) = query.ids.iter().find(|id| !of_kind(id)) {
        let (given, expecting) = (id.to_string(), T::EXPECTING);
        return Err(crate::model::ids::MalformedId { given, expecting }.into());
    }
    let owner = query.owner.account(catalog, caller)?;
    let wanted: Option<BTreeSet<String>> =
        (!query.ids.is_empty()).then(|| query.ids.iter().map(ToString::to_string).collect());
    let mut items = Vec::new();
    for item in all {
        let is_wanted = wanted.as_ref().is_none_or(|ids| ids.contains(&item.order().1));
        if !is_wanted || !item.visible_to(caller) || owner.is_some_and(|owner| item.owner() != owner) {
            continue;
        }
        let mut fits = true;
        for filter in &query.filters {
            let values =
                values_of(item, catalog, caller, &filter.name).ok_or_else(|| unknown(&filter.name))?;
            fits &= filter.admits(&values);
        }
        if fits {
            items.push((item.order(), item));
        }
    }
    items.sort_by(|a, b| a.0.cmp(&b.0));
    cut_page(items, query)
}

fn values_of<T: Described>(
    item: &T,
    catalog: &Catalog,
    caller: AccountId,
    name: &str,
) -> Option<Vec<String>> {
    // What it was made of is its owner's business: which letters an id begins with would tell all of it.
    if item.owner() != caller && matches!(name, "volume-id" | "source-instance-id") {
        return Some(Vec::new());
    }
    // So are its tags.
    let tags = if item.owner() == caller { item.tags() } else { &[] };
    if let Some(key) = name.strip_prefix("tag:") {
        return Some(tags.iter().filter(|tag| tag.key == key).map(|tag| tag.value.clone()).collect());
    }
    match name {
        "tag-key" => Some(tags.iter().map(|tag| tag.key.clone()).collect()),
        "owner-id" => Some(vec![item.owner().to_string()]),
        name => item.values(catalog, name),
    }
}

/// The part of a sorted list that a query asks for. A token is the place of the last item before: it stays
/// good if that item is gone.
fn cut_page<'a, T>(
    mut items: Vec<((TimeMs, String), &'a T)>,
    query: &Query,
) -> Result<Page<'a, T>, OpsError> {
    let invalid = |why: &str| OpsError::rule(Code::InvalidParameterValue, why.to_owned());
    if let Some(token) = &query.next_token {
        let (time, id) = token.split_once('.').ok_or_else(|| invalid("The token is invalid"))?;
        let time: TimeMs = time.parse().map_err(|_| invalid("The token is invalid"))?;
        let after = (time, id.to_owned());
        items.retain(|(order, _)| *order > after);
    }
    let mut next_token = None;
    if let Some(most) = query.results_max {
        if most == 0 {
            return Err(invalid("at least one result must be asked for"));
        }
        if items.len() > most {
            items.truncate(most);
            next_token = items.last().map(|((time, id), _)| format!("{time}.{id}"));
        }
    }
    Ok(Page { items: items.into_iter().map(|(_, item)| item).collect(), next_token })
}
