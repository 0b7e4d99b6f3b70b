//! The clock and randomness of the operating system.

use crate::model::units::TimeMs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now. A clock before 1970 reads as 0: nothing is decided by it.
pub fn now_ms() -> TimeMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeMs::try_from(since.as_millis()).unwrap_or(TimeMs::MAX)
}

/// Bytes from the operating system's generator.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], std::io::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// 64 random bits.
pub fn random_u64() -> Result<u64, std::io::Error> {
    random_bytes().map(u64::from_le_bytes)
}
