//! Operations on what a region knows of accounts.

use super::{Catalog, Rejection};
use crate::model::account::{AccountId, AccountSettings};
use crate::model::op::AccountChange;
use std::sync::Arc;

impl Catalog {
    /// What is known of an account.
    pub fn settings(&self, account: AccountId) -> AccountSettings {
        self.accounts.get(&account).cloned().unwrap_or_default()
    }

    /// The name that the provider gave an account.
    pub fn alias_of(&self, account: AccountId) -> Option<&str> {
        self.accounts.get(&account)?.alias.as_deref()
    }

    /// The account that has an alias.
    pub fn account_with_alias(&self, alias: &str) -> Option<AccountId> {
        let has = |settings: &AccountSettings| settings.alias.as_deref() == Some(alias);
        self.accounts.iter().find(|(_, settings)| has(settings)).map(|(&account, _)| account)
    }

    pub(super) fn modify_account(
        &mut self,
        account: AccountId,
        change: &AccountChange,
    ) -> Result<(), Rejection> {
        if let AccountChange::Alias(Some(alias)) = change
            && self.account_with_alias(alias).is_some_and(|other| other != account)
        {
            return Err(Rejection::Exists(alias.clone()));
        }
        let accounts = Arc::make_mut(&mut self.accounts);
        let settings = accounts.entry(account).or_default();
        match change {
            AccountChange::Alias(alias) => settings.alias.clone_from(alias),
            AccountChange::BlockPublicImages(block) => settings.block_public_images = *block,
            AccountChange::BlockPublicSnapshots(block) => settings.block_public_snapshots = *block,
            AccountChange::AddRule(rule) => {
                if settings.retention_rules.iter().any(|known| known.id == rule.id) {
                    return Err(Rejection::Exists(rule.id.to_string()));
                }
                settings.retention_rules.push(rule.clone());
            }
            AccountChange::RemoveRule(id) => {
                let before = settings.retention_rules.len();
                settings.retention_rules.retain(|rule| rule.id != *id);
                if settings.retention_rules.len() == before {
                    return Err(Rejection::Missing(id.to_string()));
                }
            }
        }
        // No two states mean the same.
        if *settings == AccountSettings::default() {
            accounts.remove(&account);
        }
        Ok(())
    }
}
