//! OVA: a virtual machine in one file: a tar archive of a description in XML (OVF), disks, and their checksums.
//! Format: DMTF's DSP0243, "Open Virtualization Format Specification", 1.1 and 2.1.
//!
//! The archive is never unpacked: its disks are read where they lie. What the description names must be members of
//! the archive; nothing else is ever opened.

mod checksum;
pub mod describe;
mod ovf;
mod tar;
pub mod write;

pub use ovf::DISKS_MAX;

use super::detect::Foreign;
use super::formats::{Limits, refused};
use super::open::{Declared, open_file};
use crate::io::disk::{DiskError, DiskRead, Extent};
use crate::io::rawdisk::RawDisk;
use crate::model::words::{Architecture, BootMode};
use checksum::Check;
use ovf::Described;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tar::Member;

/// Bytes of a description.
const OVF_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a list of checksums.
const CHECKSUMS_BYTES_MAX: u64 = 1 << 20;
/// What to do with an OVA that is refused.
const CURE: &str = "copy it here again, or export it anew where it comes from";

/// A virtual machine that was opened.
pub struct Ova {
    /// What it calls itself.
    pub name: Option<String>,
    /// The processor that its guest is for, if it says so.
    pub architecture: Option<Architecture>,
    /// Whether its guest is Windows.
    pub is_windows: bool,
    /// The firmware that boots it, if it says so.
    pub boot_mode: Option<BootMode>,
    /// Its disks; the guest boots from the first.
    pub disks: Vec<OvaDisk>,
    /// What of it cannot be taken over, for people.
    pub notes: Vec<String>,
    checks: Vec<Check>,
}

/// A disk of a virtual machine.
pub struct OvaDisk {
    /// The name of its device, if the machine was written by imgstore.
    pub device_name: Option<String>,
    /// Its length in bytes.
    pub volume_bytes: u64,
    /// What is on it; nothing on an empty one.
    pub content: Option<Box<dyn DiskRead>>,
}

impl Ova {
    /// Bytes that [`Ova::check`] reads.
    pub fn checked_bytes(&self) -> u64 {
        self.checks.iter().map(Check::len_bytes).sum()
    }

    /// Compares all that the archive has checksums of with them; `watch` is told of bytes that are done, and may
    /// end it.
    pub fn check<E: From<DiskError>>(&self, mut watch: impl FnMut(u64) -> Result<(), E>) -> Result<(), E> {
        self.checks.iter().try_for_each(|check| check.run(&mut watch))
    }
}

/// Opens an OVA: reads its description, and opens its disks in their formats, within the limits. Its checksums are
/// still to be [checked](Ova::check).
pub fn open_ova(path: &Path, limits: &Limits) -> Result<Ova, DiskError> {
    open(Arc::new(RawDisk::open(path)?), path, limits)
}

/// Opens an OVA whose bytes are those of `file`.
pub fn open(file: Arc<dyn DiskRead>, path: &Path, limits: &Limits) -> Result<Ova, DiskError> {
    let members = tar::members(&*file, path)?;
    let (description, text) = description(&members, &*file, path)?;
    let mut described = ovf::read(&text, path)?;
    let mut notes = std::mem::take(&mut described.notes);
    let checks = checks(&members, description, &described, &file, path, &mut notes)?;
    let mut disks = Vec::new();
    let mut names = BTreeSet::new();
    let limits = &limits.shared_by(described.disks.iter().filter(|disk| disk.file.is_some()).count());
    for disk in &described.disks {
        let device_name = disk.device_name.clone().filter(|name| names.insert(name.clone()));
        let opened = match &disk.file {
            Some(href) => {
                let member = find(&members, href, path)?;
                if disk.file_bytes.is_some_and(|bytes| bytes != member.len) {
                    let why = format!("{href} has not the length that its description says");
                    return Err(broken(path, why));
                }
                let opened = open_member(member, &file, path, disk, limits)?;
                notes.extend(opened.1);
                Some(opened.0)
            }
            None => None,
        };
        let said = disk.capacity_bytes;
        let volume_bytes = match (&opened, said) {
            (Some(content), said) => {
                let found = content.len_bytes();
                if let Some(said) = said.filter(|&said| said != found) {
                    notes.push(format!("disk {} has {found} bytes, not {said} as is said of it", disk.id));
                }
                found
            }
            (None, Some(said)) => {
                limits.check_size(path, "OVA", said)?;
                said
            }
            (None, None) => {
                return Err(broken(path, format!("nothing says how large its empty disk {} is", disk.id)));
            }
        };
        disks.push(OvaDisk { device_name, volume_bytes, content: opened });
    }
    // Names of devices are taken all or none: half of them would clash with those that the others get.
    if disks.iter().any(|disk| disk.device_name.is_none()) {
        disks.iter_mut().for_each(|disk| disk.device_name = None);
    }
    let Described { name, architecture, is_windows, boot_mode, .. } = described;
    Ok(Ova { name, architecture, is_windows, boot_mode, disks, notes, checks })
}

/// The member with the description, and its text.
fn description<'a>(
    members: &'a [Member],
    file: &dyn DiskRead,
    path: &Path,
) -> Result<(&'a Member, String), DiskError> {
    let mut all = members.iter().filter(|member| has_suffix(&member.name, ".ovf"));
    match (all.next(), all.next()) {
        (Some(one), None) => {
            let bytes = one.bytes(file, path, OVF_BYTES_MAX)?;
            let text = String::from_utf8(bytes).map_err(|_| broken(path, "its description is not UTF-8"))?;
            Ok((one, text))
        }
        (Some(_), Some(_)) => Err(broken(path, "it has two descriptions (.ovf)")),
        (None, _) => {
            let why = "it is a tar archive without a description (.ovf)";
            Err(refused(path, "OVA", why, "unpack it and import the disks in it"))
        }
    }
}

fn has_suffix(name: &str, suffix: &str) -> bool {
    name.len() >= suffix.len()
        && name.as_bytes()[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
}

/// What is to be compared: the description and every disk, if there is a list of checksums.
fn checks(
    members: &[Member],
    description: &Member,
    described: &Described,
    file: &Arc<dyn DiskRead>,
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<Vec<Check>, DiskError> {
    let mut all = members.iter().filter(|member| has_suffix(&member.name, ".mf"));
    let list = match (all.next(), all.next()) {
        (Some(one), None) => one,
        (None, _) => {
            notes.push("it has no checksums: damage on its way would not be found".to_owned());
            return Ok(Vec::new());
        }
        _ => return Err(broken(path, "it has two lists of checksums (.mf)")),
    };
    if members.iter().any(|member| has_suffix(&member.name, ".cert")) {
        notes.push("who signed it is not checked".to_owned());
    }
    let bytes = list.bytes(&**file, path, CHECKSUMS_BYTES_MAX)?;
    let checks = checksum::read(&bytes, members, file, path)?;
    let needed = described.disks.iter().filter_map(|disk| disk.file.as_ref());
    for name in needed.chain([&description.name]) {
        if !checks.iter().any(|check| check.name == *name) {
            return Err(broken(path, format!("its list of checksums does not have {name}")));
        }
    }
    Ok(checks)
}

fn find<'a>(members: &'a [Member], href: &str, path: &Path) -> Result<&'a Member, DiskError> {
    let found = members.iter().find(|member| member.name == href);
    found.ok_or_else(|| {
        let shown: String = href.chars().take(200).flat_map(char::escape_debug).collect();
        broken(
            path,
            format!("its description names '{shown}', which is not in the archive: it is not opened"),
        )
    })
}

/// Opens a disk in the archive, in the format that its bytes say, and that its description must not contradict.
fn open_member(
    member: &Member,
    file: &Arc<dyn DiskRead>,
    path: &Path,
    disk: &ovf::Disk,
    limits: &Limits,
) -> Result<(Box<dyn DiskRead>, Vec<String>), DiskError> {
    let part: Arc<dyn DiskRead> = Arc::new(member.part(file, path));
    let inner = path.join(&member.name);
    let declared = match disk.format {
        Some(Foreign::Ova) | None => Declared::Nothing,
        Some(format) => Declared::As(format),
    };
    let opened = open_file(part, &inner, declared, limits)?;
    let notes = opened.notes.into_iter().map(|note| format!("{}: {note}", member.name)).collect();
    Ok((opened.disk, notes))
}

/// The refusal of an OVA.
pub(super) fn broken(path: &Path, why: impl Into<String>) -> DiskError {
    refused(path, "OVA", why, CURE)
}

/// A part of a file, as a disk.
#[derive(Clone)]
pub(super) struct DiskPart {
    file: Arc<dyn DiskRead>,
    path: PathBuf,
    start: u64,
    len: u64,
}

impl DiskRead for DiskPart {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let found = self.file.extent_at(self.start.saturating_add(offset))?;
        let end = found.end.saturating_sub(self.start).min(self.len);
        Ok(Extent { start: offset, end: end.max(offset.saturating_add(1)), is_zero: found.is_zero })
    }

    /// What lies behind the part belongs to others, whatever a disk in it says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let at = self.start.saturating_add(offset);
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(DiskError::io("read behind a part of", &self.path, at, source));
        }
        self.file.read_at(at, buffer)
    }
}
