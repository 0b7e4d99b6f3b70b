//! Accounts: who owns things and who asks.

use super::ids::{MalformedId, ObjectHash, RuleId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// An account: 12 decimal digits, as in EC2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(u64);

/// One more than the largest account number.
const ACCOUNTS: u64 = 1_000_000_000_000;

impl AccountId {
    /// An account from random bits; never 000000000000.
    pub const fn from_random(random: u64) -> Self {
        Self(random % (ACCOUNTS - 1) + 1)
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}", self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AccountId {
    type Err = MalformedId;
    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let malformed = || MalformedId { given: text.chars().take(64).collect(), expecting: "12 digits" };
        if text.len() != 12 || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        text.parse().map(Self).map_err(|_| malformed())
    }
}

impl Serialize for AccountId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { s.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for AccountId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            return String::deserialize(d)?.parse().map_err(de::Error::custom);
        }
        let number = u64::deserialize(d)?;
        if number >= ACCOUNTS {
            return Err(de::Error::custom("an account has 12 digits"));
        }
        Ok(Self(number))
    }
}

/// Who else may use an image (launch permission) or a snapshot (create-volume permission).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Permission {
    /// Everybody: EC2's group `all`.
    All,
    /// One account.
    Account(AccountId),
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Account(id) => id.fmt(f),
        }
    }
}

impl Permission {
    /// Whether this permission lets `account` in.
    pub fn admits(self, account: AccountId) -> bool {
        match self {
            Self::All => true,
            Self::Account(id) => id == account,
        }
    }
}

/// A key and its value, as in EC2; keys are unique on a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tag {
    /// The key.
    pub key: String,
    /// The value; may be empty.
    pub value: String,
}

/// By what a request is known when it comes again: the same token with the same request gives what the first
/// one made, with another request it is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    /// The caller's word for the request, 1 to 64 bytes.
    pub token: String,
    /// Hash of what was asked.
    pub request: ObjectHash,
}

/// What a retention rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Images that are deregistered.
    Image,
    /// Snapshots that are deleted.
    Snapshot,
}

/// Lets an account's removed things stay in the recycle bin for a time. Rule: EC2's Recycle Bin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionRule {
    /// Its id.
    pub id: RuleId,
    /// What it is for.
    pub resource: Resource,
    /// Days that they stay: 1 to 365.
    pub days: u16,
    /// Only things with one of these tags; all if there are none.
    pub tags: Vec<Tag>,
}

impl RetentionRule {
    /// Whether it is for a thing of this kind with these tags.
    pub fn applies(&self, resource: Resource, tags: &[Tag]) -> bool {
        self.resource == resource && (self.tags.is_empty() || self.tags.iter().any(|tag| tags.contains(tag)))
    }
}

/// What a region knows of an account. One that it knows nothing of has the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountSettings {
    /// The name that the region's provider gave it, unique there: the owner alias of its images.
    pub alias: Option<String>,
    /// Whether its images cannot be made public.
    pub block_public_images: bool,
    /// Whether its snapshots cannot be made public.
    pub block_public_snapshots: bool,
    /// What of it goes to the recycle bin.
    pub retention_rules: Vec<RetentionRule>,
}

/// Whether a text can be an owner alias: 3 to 32 lower-case letters, digits and dashes, a letter first, and not
/// a word that lists take for something else.
pub fn is_alias(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (3..=32).contains(&text.len())
        && text.bytes().all(allowed)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !["self", "all"].contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_have_twelve_digits() {
        assert_eq!("000123456789".parse::<AccountId>().unwrap().to_string(), "000123456789");
        for bad in ["", "1", "0123456789012", "12345678901x", "+23456789012"] {
            assert!(bad.parse::<AccountId>().is_err(), "{bad:?}");
        }
        assert_eq!(AccountId::from_random(0).to_string(), "000000000001");
        assert_eq!(AccountId::from_random(u64::MAX).to_string().len(), 12);
    }

    #[test]
    fn aliases_cannot_be_taken_for_accounts_or_words() {
        assert!(is_alias("amazon") && is_alias("aws-marketplace") && is_alias("lab2"));
        for bad in ["self", "all", "ab", "123456789012", "Amazon", "a b", "-ab", &"a".repeat(33)] {
            assert!(!is_alias(bad), "{bad:?}");
        }
    }

    #[test]
    fn permissions_admit_whom_they_name() {
        let (one, two) = (AccountId::from_random(1), AccountId::from_random(2));
        assert!(Permission::All.admits(one));
        assert!(Permission::Account(one).admits(one));
        assert!(!Permission::Account(one).admits(two));
    }
}
