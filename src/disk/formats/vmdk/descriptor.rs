//! The descriptor: lines of text inside the file that say what the disk consists of.
//!
//! The name that it gives its extent is not looked at: the extent is the file that the descriptor is in.

use super::Fault;

/// The longest descriptor; genuine ones have about 1 KiB in 10 KiB of space.
pub(super) const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;

/// What a descriptor says, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Whether the grains should be compressed.
    pub(super) stream_optimized: bool,
    /// Sectors of the one extent.
    pub(super) sectors: u64,
}

/// The fields seen so far; each may be there once.
#[derive(Default)]
struct Seen {
    version: Option<Vec<u8>>,
    parent_cid: Option<Vec<u8>>,
    create_type: Option<Vec<u8>>,
    sectors: Option<u64>,
}

/// Whether a file begins as a descriptor does that stands by itself: by QEMU's rule, the first line that is no comment says a
/// version; or by what VMware writes. A line that is cut where the head ends says nothing.
pub fn is_descriptor(head: &[u8]) -> bool {
    let lines = head.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let says = lines.map(|line| line.trim_ascii()).find(|line| !line.is_empty() && !line.starts_with(b"#"));
    let is_version = |line: &[u8]| [&b"version=1"[..], b"version=2", b"version=3"].contains(&line);
    head.starts_with(b"# Disk DescriptorFile") || says.is_some_and(is_version)
}

/// Checks a descriptor.
pub(super) fn parse(bytes: &[u8]) -> Result<Descriptor, Fault> {
    let text = text(bytes)?;
    if text.is_empty() {
        return Err(Fault::variant(super::NO_DESCRIPTOR));
    }
    let mut lines = text.split(|&byte| byte == b'\n').map(|line| line.trim_ascii());
    // Usually `# Disk DescriptorFile`; converters write comments of their own.
    if !lines.next().is_some_and(|first| first.starts_with(b"#")) {
        return Err(Fault::damaged(
            "its descriptor does not begin with a line such as # Disk DescriptorFile",
        ));
    }
    let mut seen = Seen::default();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
        let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        if [&b"RW"[..], b"RDONLY", b"NOACCESS"].iter().any(|access| word.eq_ignore_ascii_case(access)) {
            extent(&mut seen, line)?;
        } else {
            assignment(&mut seen, line)?;
        }
    }
    finish(seen)
}

/// The text before the first zero byte of the descriptor's space. What follows it is nobody's: QEMU writes a shorter
/// CID over a longer one, and the end of the longer text stays behind the zero.
fn text(bytes: &[u8]) -> Result<&[u8], Fault> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = &bytes[..end];
    let is_text = |&byte: &u8| byte >= b' ' && byte != 0x7f || matches!(byte, b'\n' | b'\r' | b'\t');
    // Names may be in any encoding: bytes from 0x80 on are not looked into.
    if !text.iter().all(is_text) {
        return Err(Fault::damaged("its descriptor is not text"));
    }
    Ok(text)
}

/// A line such as `RW 9766 SPARSE "disk.vmdk"`, or `RDONLY`, as VMware and VirtualBox write into streams.
fn extent(seen: &mut Seen, line: &[u8]) -> Result<(), Fault> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (access, sectors, kind) = (words.next(), words.next(), words.next());
    let is_readable =
        |access: &[u8]| [&b"RW"[..], b"RDONLY"].iter().any(|word| access.eq_ignore_ascii_case(word));
    if !access.is_some_and(is_readable) {
        return Err(Fault::variant(format!("its extent's access is {}, not RW or RDONLY", shown(access))));
    }
    if kind.is_none_or(|kind| !kind.eq_ignore_ascii_case(b"SPARSE")) {
        return Err(Fault::variant(format!("its extent is {}, not SPARSE", shown(kind))));
    }
    let number = sectors.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    let Some(number) = number else {
        return Err(Fault::damaged(format!("its extent's length is {}", shown(sectors))));
    };
    once(&mut seen.sectors, number, "extent")
}

/// A line such as `CID=88fd69b6`. What a key other than those here means is no matter of the data.
fn assignment(seen: &mut Seen, line: &[u8]) -> Result<(), Fault> {
    let Some(at) = line.iter().position(|&byte| byte == b'=') else {
        return Err(Fault::damaged(format!("its descriptor has the line {}", shown(Some(line)))));
    };
    let (key, value) = line.split_at(at);
    let key = key.trim_ascii().to_ascii_lowercase();
    let value = value.trim_ascii_start().strip_prefix(b"=").unwrap_or_default().trim_ascii();
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let value = quoted.unwrap_or(value).to_ascii_lowercase();
    match key.as_slice() {
        b"version" => once(&mut seen.version, value, "version"),
        b"parentcid" => once(&mut seen.parent_cid, value, "parentCID"),
        b"createtype" => once(&mut seen.create_type, value, "createType"),
        _ if key.starts_with(b"parent") => Err(Fault::variant("it names a parent that its data is in")),
        _ if key.starts_with(b"encryption") => Err(Fault::variant("it is encrypted")),
        _ => Ok(()),
    }
}

/// Takes a value that must not be there already: readers differ in which of two counts.
fn once<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), Fault> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Fault::variant(format!("its descriptor has more than one {what}"))),
    }
}

/// Judges all fields together.
fn finish(seen: Seen) -> Result<Descriptor, Fault> {
    if !matches!(seen.version.as_deref(), Some(b"1" | b"2" | b"3")) {
        let why = format!("its descriptor's version is {}, not 1 to 3", shown(seen.version.as_deref()));
        return Err(Fault::variant(why));
    }
    let stream_optimized = match seen.create_type.as_deref() {
        Some(b"monolithicsparse") => false,
        Some(b"streamoptimized") => true,
        other => return Err(Fault::variant(format!("its type is {}", shown(other)))),
    };
    if seen.parent_cid.as_deref() != Some(b"ffffffff") {
        let why = format!("its parentCID is {}: its data is in a parent", shown(seen.parent_cid.as_deref()));
        return Err(Fault::variant(why));
    }
    let Some(sectors) = seen.sectors else { return Err(Fault::variant("its descriptor has no extent")) };
    Ok(Descriptor { stream_optimized, sectors })
}

/// The file's own bytes for a message: short, without anything that a terminal obeys.
fn shown(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "missing".into() };
    let (start, dots) = bytes.get(..40).map_or((bytes, ""), |start| (start, "…"));
    format!("\"{}{dots}\"", start.escape_ascii())
}
