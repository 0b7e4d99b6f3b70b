//! The archive of an OVA: which members it has and where they lie. Nothing is unpacked: a member is read where it
//! is, and no name in the archive ever becomes the name of a file.

use super::{DiskPart, broken};
use crate::io::disk::{DiskError, DiskRead};
use std::path::Path;
use std::sync::Arc;
use tar::{EntryType, Header, PaxExtensions};

/// Bytes of a header, and what every member is padded to.
pub(super) const BLOCK_BYTES: u64 = 512;
/// Members of an archive at most.
const MEMBERS_MAX: usize = 256;
/// Bytes of a header that says more of the next member.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;
/// Characters of a name.
const NAME_MAX: usize = 255;

/// A member: a name without a folder, and bytes.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub name: String,
    pub start: u64,
    pub len: u64,
}

impl Member {
    /// Its bytes as a disk.
    pub fn part(&self, file: &Arc<dyn DiskRead>, path: &Path) -> DiskPart {
        DiskPart { file: file.clone(), path: path.to_owned(), start: self.start, len: self.len }
    }

    /// All of its bytes, if they are not more than `max`.
    pub fn bytes(&self, file: &dyn DiskRead, path: &Path, max: u64) -> Result<Vec<u8>, DiskError> {
        if self.len > max {
            let why = format!("its member {} has {} bytes, the limit is {max}", self.name, self.len);
            return Err(broken(path, why));
        }
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(0)];
        file.read_at(self.start, &mut bytes)?;
        Ok(bytes)
    }
}

/// What was said of the next member beforehand.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    len: Option<u64>,
}

/// The members of an archive, in its order. Anything but plain files is refused, and so are names with folders
/// and names that occur twice.
pub(super) fn members(file: &dyn DiskRead, path: &Path) -> Result<Vec<Member>, DiskError> {
    let mut members: Vec<Member> = Vec::new();
    let (mut at, mut said) = (0, Said::default());
    // Each round passes a block at least; members and what is said of them are counted.
    for _ in 0..3 * MEMBERS_MAX {
        let Some(header) = header_at(file, path, at)? else { return Ok(members) };
        let len =
            header.entry_size().map_err(|e| broken(path, format!("a member's size at byte {at}: {e}")))?;
        let start = at + BLOCK_BYTES;
        let kind = header.entry_type();
        let is_extension =
            matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName);
        let len = if is_extension { len } else { said.len.take().unwrap_or(len) };
        let padded = len.checked_next_multiple_of(BLOCK_BYTES);
        let end = padded.and_then(|padded| start.checked_add(padded));
        // The last member's padding may be missing.
        let Some(end) = end.filter(|_| start.saturating_add(len) <= file.len_bytes()) else {
            return Err(broken(path, format!("it ends inside of the member at byte {at}; it was cut off")));
        };
        if is_extension {
            let extension = Member { name: "header".to_owned(), start, len };
            note(&extension.bytes(file, path, EXTENSION_BYTES_MAX)?, kind, path, &mut said)?;
        } else {
            let bytes = said.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
            let name = name_of(&bytes, path)?;
            if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
                return Err(broken(path, format!("its member {name} is a {}, not a file", describe(kind))));
            }
            if members.iter().any(|member| member.name == name) {
                return Err(broken(path, format!("it has two members called {name}")));
            }
            if members.len() == MEMBERS_MAX {
                break;
            }
            members.push(Member { name, start, len });
        }
        at = end;
    }
    Err(broken(path, format!("it has more than {MEMBERS_MAX} members")))
}

/// The header at a place; none where the archive ends.
fn header_at(file: &dyn DiskRead, path: &Path, at: u64) -> Result<Option<Header>, DiskError> {
    let mut header = Header::new_old();
    if at >= file.len_bytes() {
        return Ok(None);
    }
    if file.len_bytes() - at < BLOCK_BYTES {
        return Err(broken(path, "it ends inside of a header; it was cut off"));
    }
    file.read_at(at, header.as_mut_bytes())?;
    let bytes = header.as_bytes();
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    // The field of the sum itself counts as spaces.
    let sum = |(place, &byte): (usize, &u8)| if (148..156).contains(&place) { 32 } else { u32::from(byte) };
    let expected: u32 = bytes.iter().enumerate().map(sum).sum();
    if header.cksum().ok() != Some(expected) {
        return Err(broken(path, format!("the header at byte {at} does not have its checksum")));
    }
    Ok(Some(header))
}

/// Takes what an extension says of the next member: its name and its length.
fn note(bytes: &[u8], kind: EntryType, path: &Path, said: &mut Said) -> Result<(), DiskError> {
    if kind == EntryType::GNULongName {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        said.name = Some(bytes[..end].to_vec());
        return Ok(());
    }
    for pair in PaxExtensions::new(bytes) {
        let pair = pair.map_err(|e| broken(path, format!("an extended header: {e}")))?;
        let key = pair.key_bytes();
        let matters = matches!(key, b"path" | b"size" | b"linkpath") || key.starts_with(b"GNU.sparse");
        if matters && kind == EntryType::XGlobalHeader {
            return Err(broken(path, "a header says of all members what can be true of one"));
        }
        match key {
            b"path" => said.name = Some(pair.value_bytes().to_vec()),
            b"size" => {
                let size = pair.value().ok().and_then(|text| text.parse().ok());
                said.len =
                    Some(size.ok_or_else(|| broken(path, "an extended header has no size but says so"))?);
            }
            _ if matters => return Err(broken(path, "it has links or sparse members")),
            _ => {}
        }
    }
    Ok(())
}

/// A member's name, which must be a plain one: no folder, nothing that a shell or a terminal takes for something
/// else.
fn name_of(bytes: &[u8], path: &Path) -> Result<String, DiskError> {
    let name = std::str::from_utf8(bytes).map_err(|_| broken(path, "a member's name is not text"))?;
    let name = name.strip_prefix("./").unwrap_or(name);
    let is_plain = !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
        && name != "."
        && name != "..";
    if is_plain {
        return Ok(name.to_owned());
    }
    let shown: String = name.chars().take(NAME_MAX).flat_map(char::escape_debug).collect();
    Err(broken(path, format!("a member is called '{shown}': names have no folders")))
}

fn describe(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink | EntryType::Link | EntryType::GNULongLink => "link",
        EntryType::Directory => "folder",
        EntryType::Char | EntryType::Block | EntryType::Fifo => "device",
        EntryType::GNUSparse => "sparse file",
        _ => "thing of an unknown kind",
    }
}
