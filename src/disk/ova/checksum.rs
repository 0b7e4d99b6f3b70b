//! The list of checksums of an OVA (`.mf`): lines such as `SHA256(disk.vmdk)= 0123…`.

use super::tar::Member;
use super::{DiskPart, broken};
use crate::io::disk::{DiskError, DiskRead};
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha256, Sha512};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn of_name(name: &str) -> Option<Self> {
        match name.to_ascii_uppercase().as_str() {
            "SHA1" | "SHA-1" => Some(Self::Sha1),
            "SHA256" | "SHA-256" => Some(Self::Sha256),
            "SHA512" | "SHA-512" => Some(Self::Sha512),
            _ => None,
        }
    }

    const fn digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A member and the checksum that it must have.
pub(super) struct Check {
    pub name: String,
    part: DiskPart,
    algorithm: Algorithm,
    expected: String,
    path: PathBuf,
}

impl Check {
    pub fn len_bytes(&self) -> u64 {
        self.part.len_bytes()
    }

    /// Reads the member and compares.
    pub fn run<E: From<DiskError>>(&self, watch: &mut impl FnMut(u64) -> Result<(), E>) -> Result<(), E> {
        let found = match self.algorithm {
            Algorithm::Sha1 => self.digest::<Sha1, E>(watch)?,
            Algorithm::Sha256 => self.digest::<Sha256, E>(watch)?,
            Algorithm::Sha512 => self.digest::<Sha512, E>(watch)?,
        };
        if found.eq_ignore_ascii_case(&self.expected) {
            return Ok(());
        }
        let why = format!(
            "{} does not have its checksum: it should be {}, it is {found}",
            self.name, self.expected
        );
        Err(broken(&self.path, why).into())
    }

    fn digest<D: Digest, E: From<DiskError>>(
        &self,
        watch: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<String, E> {
        let mut digest = D::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = 0;
        while at < self.part.len_bytes() {
            let left = usize::try_from(self.part.len_bytes() - at).unwrap_or(usize::MAX);
            let here = piece.len().min(left);
            self.part.read_at(at, &mut piece[..here])?;
            digest.update(&piece[..here]);
            at += here as u64;
            watch(here as u64)?;
        }
        Ok(hex(&digest.finalize()))
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads a list. Every line is understood, and every member that it names is there, once.
pub(super) fn read(
    bytes: &[u8],
    members: &[Member],
    file: &Arc<dyn DiskRead>,
    path: &Path,
) -> Result<Vec<Check>, DiskError> {
    let text = std::str::from_utf8(bytes).map_err(|_| broken(path, "its list of checksums is not text"))?;
    let mut checks: Vec<Check> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let not_read = || {
            let shown: String = line.chars().take(100).flat_map(char::escape_debug).collect();
            broken(path, format!("a line of its checksums is not understood: {shown}"))
        };
        let (before, expected) = line.rsplit_once('=').ok_or_else(not_read)?;
        let (algorithm, rest) = before.split_once('(').ok_or_else(not_read)?;
        let name = rest.trim_end().strip_suffix(')').ok_or_else(not_read)?;
        let algorithm = Algorithm::of_name(algorithm.trim()).ok_or_else(not_read)?;
        let expected = expected.trim();
        if expected.len() != algorithm.digits() || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_read());
        }
        let Some(member) = members.iter().find(|member| member.name == name) else {
            let shown: String = name.chars().take(100).flat_map(char::escape_debug).collect();
            return Err(broken(path, format!("{shown} has a checksum and is missing")));
        };
        if checks.iter().any(|check| check.name == name) {
            return Err(broken(path, format!("{name} has two checksums")));
        }
        checks.push(Check {
            name: name.to_owned(),
            part: member.part(file, path),
            algorithm,
            expected: expected.to_owned(),
            path: path.to_owned(),
        });
    }
    Ok(checks)
}
