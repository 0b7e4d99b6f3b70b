//! Arguments of lists.

use super::images::{MalformedGrantee, parse_permission};
use clap::Args;
use imgstore::model::account::{AccountId, Permission, is_alias};
use imgstore::ops::describe::Owner;
use imgstore::ops::filter::Filter;
use imgstore::ops::find::AnyId;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only these
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Whose: self, all that the account may see, an account, or an alias [default: self; all with IDs]
    #[arg(long, value_name = "self|all|ID|ALIAS", value_parser = parse_owner)]
    pub owner: Option<Owner>,
    /// Only what has one of the values; * and ? are wildcards; may be repeated, then all must fit
    #[arg(long = "filter", value_name = "NAME=V[,V]", value_parser = Filter::parse)]
    pub filters: Vec<Filter>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_results: Option<u32>,
    /// The page after the one that gave this token
    #[arg(long, value_name = "TOKEN")]
    pub next_token: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ImagesArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// Only what was shared by name with everybody (all), or with an account (self, or its id)
    #[arg(long, value_name = "self|all|ID", value_parser = parse_whom)]
    pub executable_by: Option<Whom>,
    /// Others' deprecated images, too
    #[arg(long)]
    pub include_deprecated: bool,
    /// Disabled images, too
    #[arg(long)]
    pub include_disabled: bool,
    /// Only the newest available image whose name fits: print its id
    #[arg(long, value_name = "NAME-PATTERN", conflicts_with_all = ["max_results", "next_token"])]
    pub latest: Option<String>,
}

const LIST_EXAMPLES: &str = "\
Examples:
  imgstore images --filter 'name=web-*' --filter architecture=arm64,x86_64
  imgstore images --filter tag:env=prod --max-results 20
  imgstore images --latest 'web-*'
  imgstore images --owner all --executable-by all     public images
  imgstore images --owner all --executable-by self    images that others shared with this account";

#[derive(Debug, Args)]
#[command(
    after_help = "Blocks of 4 KiB are compared, and nothing is read where both have the same chunk. Added is what has zeros in the first or is behind its end, removed the same of the second. Of two images all devices are compared, by their names.\n\nExamples:\n  imgstore diff ami-0123… ami-0456…\n  imgstore diff snap-0123… snap-0456… --blocks"
)]
pub struct DiffArgs {
    /// An image or a snapshot
    #[arg(value_name = "FIRST")]
    pub first: AnyId,
    /// What it is compared with
    #[arg(value_name = "SECOND")]
    pub second: AnyId,
    /// Only this device of images [default: all of two images, the root device of one]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// List each range that differs
    #[arg(long)]
    pub blocks: bool,
}

/// Whom an image was shared with.
#[derive(Debug, Clone, Copy)]
pub enum Whom {
    /// The caller.
    Caller,
    /// Everybody, or an account.
    Permission(Permission),
}

fn parse_whom(text: &str) -> Result<Whom, MalformedGrantee> {
    match text {
        "self" => Ok(Whom::Caller),
        text => parse_permission(text).map(Whom::Permission),
    }
}

fn parse_owner(text: &str) -> Result<Owner, String> {
    match text {
        "self" => Ok(Owner::Caller),
        "all" => Ok(Owner::All),
        id if id.parse::<AccountId>().is_ok() => {
            id.parse().map(Owner::Account).map_err(|_| "write an account's 12 digits".into())
        }
        alias if is_alias(alias) => Ok(Owner::Alias(alias.to_owned())),
        _ => Err("write self, all, an account's 12 digits, or an alias".into()),
    }
}
