//! account: show, block-public, allow-public, alias.

use super::Session;
use super::describe::fields;
use super::remove::resource;
use crate::cli::args::{AccountCommand, Kind};
use crate::cli::error::CliError;
use crate::cli::json;
use imgstore::model::account::AccountId;
use imgstore::ops::account;
use imgstore::region::Region;
use serde_json::{Value, json};

pub fn account(session: &Session<'_>, command: &AccountCommand) -> Result<(), CliError> {
    match command {
        AccountCommand::Show => {
            show(session, &session.home.open_region()?);
            Ok(())
        }
        AccountCommand::BlockPublic { kind } => block(session, *kind, true),
        AccountCommand::AllowPublic { kind } => block(session, *kind, false),
        AccountCommand::Alias { id, alias, remove: _ } => set_alias(session, *id, alias.as_deref()),
    }
}

fn show(session: &Session<'_>, region: &Region) {
    let settings = account::settings(&region.known_catalog(), &session.context);
    let document = json!({
        "account_id": session.context.account,
        "region": session.home.region_name(),
        "is_provider": region.header().provider == session.context.account,
        "alias": settings.alias,
        "block_public_images": settings.block_public_images,
        "block_public_snapshots": settings.block_public_snapshots,
        "retention_rules": settings.retention_rules.iter().map(json::rule).collect::<Value>(),
    });
    let text = fields(&document, 0);
    session.output.answer(|| document, || text);
}

fn block(session: &Session<'_>, kind: Kind, block: bool) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    account::block_public_access(&region, resource(kind), block, &session.context)?;
    show(session, &region);
    Ok(())
}

fn set_alias(session: &Session<'_>, id: AccountId, alias: Option<&str>) -> Result<(), CliError> {
    account::set_alias(&session.home.open_region()?, id, alias, &session.context)?;
    show_id(session, id);
    Ok(())
}

fn show_id(session: &Session<'_>, id: AccountId) {
    session.output.answer(|| json!({ "account_id": id }), || format!("{id}\n"));
}
