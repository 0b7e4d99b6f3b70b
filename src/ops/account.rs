//! What a region knows of accounts: the block of public sharing, and aliases. Rules: EC2's
//! EnableImageBlockPublicAccess, EnableSnapshotBlockPublicAccess, and the owner aliases of DescribeImages.

use super::context::Context;
use super::error::{Code, OpsError};
use crate::model::account::{AccountId, AccountSettings, Resource, is_alias};
use crate::model::catalog::Catalog;
use crate::model::op::{AccountChange, Op};
use crate::region::Region;

/// The caller's settings.
pub fn settings(catalog: &Catalog, context: &Context<'_>) -> AccountSettings {
    catalog.settings(context.account)
}

/// Blocks, or allows again, that the caller's images or snapshots are made public. What is public stays so.
pub fn block_public_access(
    region: &Region,
    resource: Resource,
    block: bool,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    context.commit(region, |_| {
        let change = match resource {
            Resource::Image => AccountChange::BlockPublicImages(block),
            Resource::Snapshot => AccountChange::BlockPublicSnapshots(block),
        };
        Ok((vec![Op::ModifyAccount { account: context.account, change }], ()))
    })
}

/// Gives an account a name, under which its images are found, or takes it back. The region's provider does that
/// and nobody else.
pub fn set_alias(
    region: &Region,
    account: AccountId,
    alias: Option<&str>,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    if region.header().provider != context.account {
        let why = format!("only the region's provider, {}, names accounts", region.header().provider);
        return Err(OpsError::rule(Code::OperationNotPermitted, why));
    }
    if let Some(alias) = alias.filter(|alias| !is_alias(alias)) {
        let why =
            format!("'{alias}' is no alias: 3 to 32 lower-case letters, digits and dashes, a letter first");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    context.commit(region, |catalog| {
        if let Some(other) =
            alias.and_then(|alias| catalog.account_with_alias(alias)).filter(|o| *o != account)
        {
            let why = format!("{other} has that alias");
            return Err(OpsError::rule(Code::InvalidParameterValue, why));
        }
        let change = AccountChange::Alias(alias.map(ToOwned::to_owned));
        Ok((vec![Op::ModifyAccount { account, change }], ()))
    })
}
