//! Writing an OVA: the description first, then the disks, then the checksums, as DSP0243 orders them.
//!
//! The description says how long the disks' files are, which is known when they are written: its place is kept
//! free, and it is put there at the end, filled up with empty lines.

use super::checksum::hex;
use super::describe::{Machine, describe};
use super::tar::BLOCK_BYTES;
use crate::io::disk::{DiskError, FileWrite};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

/// Characters of an archive's name that its members bear; a member's name has 100 at most.
const STEM_MAX: usize = 64;
/// Two empty headers are the end.
const END: [u8; 1024] = [0; 1024];

/// A virtual machine in the making.
pub struct OvaWriter<'a> {
    out: Out<'a>,
    machine: Machine,
    stem: String,
    /// Bytes that are kept for the description.
    kept: u64,
    disks: Vec<Written>,
}

struct Out<'a> {
    file: Box<dyn FileWrite + 'a>,
    path: PathBuf,
    /// Where the next member begins.
    at: u64,
}

/// A member that was written.
pub(super) struct Written {
    pub name: String,
    pub len: u64,
    digest: String,
}

impl<'a> OvaWriter<'a> {
    /// Begins an archive in `file`, which is called `path` in messages.
    pub fn create(file: Box<dyn FileWrite + 'a>, path: &Path, machine: Machine) -> Self {
        let stem = stem(&machine.name);
        // The longest that the description can become.
        let longest =
            |number| Written { name: disk_name(&stem, number), len: u64::MAX, digest: String::new() };
        let disks: Vec<Written> = (0..machine.disks_with_content()).map(longest).collect();
        let kept = describe(&machine, &stem, &disks).len() as u64;
        let at = BLOCK_BYTES + kept.next_multiple_of(BLOCK_BYTES);
        Self { out: Out { file, path: path.to_owned(), at }, machine, stem, kept, disks: Vec::new() }
    }

    /// The file of the next disk that has content, in their order, and its name: a VMDK disk is written to it, front to
    /// back.
    pub fn disk(&mut self) -> (Box<dyn FileWrite + '_>, String) {
        let name = disk_name(&self.stem, self.disks.len());
        let member = Member {
            out: &mut self.out,
            written: &mut self.disks,
            name: name.clone(),
            len: 0,
            digest: Sha256::new(),
        };
        (Box::new(member), name)
    }

    /// Writes the description and the checksums, makes all durable and gives the file its name.
    pub fn finish(mut self) -> Result<(), DiskError> {
        let mut text = describe(&self.machine, &self.stem, &self.disks).into_bytes();
        let kept = usize::try_from(self.kept).unwrap_or(text.len());
        text.resize(kept.max(text.len()), b'\n');
        let name = format!("{}.ovf", self.stem);
        let end = std::mem::replace(&mut self.out.at, 0);
        self.out.put_member(&name, &text)?;
        self.out.at = end;
        let line = |name: &str, digest: &str| format!("SHA256({name})= {digest}\n");
        let mut sums = line(&name, &hex(&Sha256::digest(&text)));
        sums.extend(self.disks.iter().map(|disk| line(&disk.name, &disk.digest)));
        self.out.put_member(&format!("{}.mf", self.stem), sums.as_bytes())?;
        self.out.file.put_at(self.out.at, &END)?;
        self.out.file.close()
    }
}

impl Out<'_> {
    fn put_header(&mut self, name: &str, len: u64) -> Result<(), DiskError> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(len);
        header.set_path(name).map_err(|e| DiskError::io("name a member of", &self.path, self.at, e))?;
        header.set_cksum();
        self.file.put_at(self.at, header.as_bytes())
    }

    fn put_member(&mut self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        self.put_header(name, bytes.len() as u64)?;
        self.file.put_at(self.at + BLOCK_BYTES, bytes)?;
        self.pass(bytes.len() as u64)
    }

    /// Goes on behind a member of `len` bytes.
    fn pass(&mut self, len: u64) -> Result<(), DiskError> {
        let end = len.checked_next_multiple_of(BLOCK_BYTES).and_then(|len| len.checked_add(BLOCK_BYTES));
        let at = end.and_then(|len| self.at.checked_add(len));
        self.at = at.ok_or_else(|| out_of_order(&self.path, self.at))?;
        Ok(())
    }
}

fn out_of_order(path: &Path, at: u64) -> DiskError {
    DiskError::io("write a member of", path, at, io::ErrorKind::InvalidInput.into())
}

/// A disk's file while it is written.
struct Member<'b, 'a> {
    out: &'b mut Out<'a>,
    written: &'b mut Vec<Written>,
    name: String,
    len: u64,
    digest: Sha256,
}

impl FileWrite for Member<'_, '_> {
    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        if offset != self.len {
            return Err(out_of_order(&self.out.path, offset));
        }
        let at = self.out.at.checked_add(BLOCK_BYTES).and_then(|at| at.checked_add(offset));
        self.out.file.put_at(at.ok_or_else(|| out_of_order(&self.out.path, offset))?, bytes)?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), DiskError> {
        self.out.put_header(&self.name, self.len)?;
        self.out.pass(self.len)?;
        self.written.push(Written { name: self.name, len: self.len, digest: hex(&self.digest.finalize()) });
        Ok(())
    }
}

/// The name that all members begin with: that of the machine, of characters that every system has in names.
fn stem(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let stem: String = name.chars().map(plain).take(STEM_MAX).collect();
    let stem = stem.trim_start_matches(['.', '-']);
    if stem.is_empty() { "image".to_owned() } else { stem.to_owned() }
}

fn disk_name(stem: &str, number: usize) -> String {
    format!("{stem}-disk{}.vmdk", number + 1)
}
