//! The description of an OVA: XML without a document type, so that nothing in it expands or is fetched.

use super::broken;
use crate::disk::detect::Foreign;
use crate::io::disk::DiskError;
use crate::model::image::is_device_name;
use crate::model::words::{Architecture, BootMode};
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeSet;
use std::path::Path;

/// Elements, texts and comments of a description.
const NODES_MAX: u32 = 100_000;
/// Namespaces and attributes of all elements: each is compared with those before it.
const NAMESPACES_MAX: usize = 256;
const ATTRIBUTES_MAX: usize = 20_000;
/// Disks of a machine at most: 15 on each of four controllers, as VMware has them.
pub const DISKS_MAX: usize = 60;
/// Resource types of `CIM_ResourceAllocationSettingData`.
const PROCESSOR: &str = "3";
const MEMORY: &str = "4";
const DISK: &str = "17";

/// What a description says.
#[derive(Debug, Default)]
pub(super) struct Described {
    pub name: Option<String>,
    pub architecture: Option<Architecture>,
    pub is_windows: bool,
    pub boot_mode: Option<BootMode>,
    /// In the order in which the machine has them.
    pub disks: Vec<Disk>,
    pub notes: Vec<String>,
}

/// A disk that is attached to the machine.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub id: String,
    /// The member that holds it; none if it is empty.
    pub file: Option<String>,
    /// Length of that member, if it is said.
    pub file_bytes: Option<u64>,
    pub capacity_bytes: Option<u64>,
    /// Its format, if it is said and known.
    pub format: Option<Foreign>,
    /// The device that it is, as imgstore writes it.
    pub device_name: Option<String>,
}

/// Reads a description of one machine.
pub(super) fn read(text: &str, path: &Path) -> Result<Described, DiskError> {
    // Counted in all of the text, since what looks like an end may be in a value; without a document type none can be hidden.
    let counted = [("xmlns", NAMESPACES_MAX), ("=", ATTRIBUTES_MAX)];
    if let Some((what, max)) = counted.into_iter().find(|(what, max)| text.matches(what).count() > *max) {
        return Err(broken(path, format!("its description has more than {max} times '{what}'")));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)
        .map_err(|e| broken(path, format!("its description is not XML that is read: {e}")))?;
    let envelope = document.root_element();
    if envelope.tag_name().name() != "Envelope" {
        return Err(broken(path, "its description is not OVF"));
    }
    if child(envelope, "VirtualSystemCollection").is_some() {
        let why = "it holds several machines; an image is one";
        return Err(super::refused(path, "OVA", why, "export each machine as an OVA of its own"));
    }
    let system = child(envelope, "VirtualSystem").ok_or_else(|| broken(path, "it describes no machine"))?;
    let mut described = Described { name: name_of(system), ..Described::default() };
    guest(system, &mut described);
    described.boot_mode = firmware(system)
        .or_else(|| (described.architecture == Some(Architecture::Arm64)).then_some(BootMode::Uefi));
    let hardware = child(system, "VirtualHardwareSection");
    let configuration = configuration(envelope, &mut described.notes);
    let items: Vec<Item<'_>> = hardware.map(|node| items(node, configuration)).unwrap_or_default();
    sizes(&items, &mut described.notes);
    described.disks = disks(envelope, &items, path, &mut described.notes)?;
    if described.disks.iter().all(|disk| disk.file.is_none()) {
        return Err(broken(path, "its machine has no disk with content"));
    }
    Ok(described)
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    children(node, name).next()
}

/// Children by their names without a namespace: the versions of OVF differ in those.
fn children<'a>(node: Node<'a, 'a>, name: &str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
}

fn text_of<'a>(node: Node<'a, 'a>, name: &str) -> Option<&'a str> {
    child(node, name).and_then(|child| child.text()).map(str::trim).filter(|text| !text.is_empty())
}

fn name_of(system: Node<'_, '_>) -> Option<String> {
    let named = system.children().find(|node| node.tag_name().name() == "Name").and_then(|node| node.text());
    named
        .or_else(|| attribute(system, "id"))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
}

/// What is said of the guest: VMware and VirtualBox have words of their own for it, others a sentence.
fn guest(system: Node<'_, '_>, described: &mut Described) {
    let section = system.children().find(|node| node.tag_name().name() == "OperatingSystemSection");
    let Some(section) = section else { return };
    let inner =
        |name: &str| section.children().find(|node| node.tag_name().name() == name).and_then(|n| n.text());
    let word = attribute(section, "osType").or_else(|| inner("OSType"));
    let said = word.or_else(|| inner("Description")).unwrap_or("").to_ascii_lowercase();
    described.is_windows = said.contains("windows") || said.starts_with("win");
    described.architecture = if said.contains("arm") || said.contains("aarch64") {
        Some(Architecture::Arm64)
    } else if said.contains("64") {
        Some(Architecture::X86_64)
    } else if word.is_some_and(|word| word.ends_with("Guest")) {
        // In VMware's words 64 is always said.
        Some(Architecture::I386)
    } else {
        None
    };
}

/// VMware says it in its configuration, VirtualBox in a copy of its own description.
fn firmware(system: Node<'_, '_>) -> Option<BootMode> {
    let said = system.descendants().find_map(|node| match node.tag_name().name() {
        "Config" if attribute(node, "key") == Some("firmware") => attribute(node, "value"),
        "Firmware" => attribute(node, "type"),
        _ => None,
    })?;
    let said = said.to_ascii_lowercase();
    if said.starts_with("efi") || said.starts_with("uefi") {
        Some(BootMode::Uefi)
    } else if said.starts_with("bios") {
        Some(BootMode::LegacyBios)
    } else {
        None
    }
}

/// A piece of hardware.
struct Item<'a> {
    id: &'a str,
    kind: &'a str,
    name: &'a str,
    quantity: &'a str,
    unit: &'a str,
    parent: &'a str,
    address: u64,
    resource: &'a str,
}

/// The configuration that is meant where nobody chooses one: which says so, or the first (DSP0243, 9.8).
fn configuration<'a>(envelope: Node<'a, 'a>, notes: &mut Vec<String>) -> Option<&'a str> {
    let section = child(envelope, "DeploymentOptionSection")?;
    let listed = || children(section, "Configuration");
    let is_default = |node: &Node<'_, '_>| matches!(attribute(*node, "default"), Some("true" | "1"));
    let id = attribute(listed().find(is_default).or_else(|| listed().next())?, "id")?;
    notes.push(format!("of its {} configurations '{}' is taken", listed().count(), id.escape_debug()));
    Some(id)
}

/// The hardware of a configuration: what names none is in all.
fn items<'a>(hardware: Node<'a, 'a>, configuration: Option<&str>) -> Vec<Item<'a>> {
    let is_meant = |node: &Node<'_, '_>| {
        let names = attribute(*node, "configuration").map(str::split_whitespace);
        names.is_none_or(|mut names| names.any(|name| configuration == Some(name)))
    };
    let is_item =
        |node: &Node<'_, '_>| matches!(node.tag_name().name(), "Item" | "StorageItem") && is_meant(node);
    let item = |node: Node<'a, 'a>| {
        let text = |name: &str| text_of(node, name).unwrap_or("");
        Item {
            id: text("InstanceID"),
            kind: text("ResourceType"),
            name: text("ElementName"),
            quantity: text("VirtualQuantity"),
            unit: text("AllocationUnits"),
            parent: text("Parent"),
            address: text("AddressOnParent").parse().unwrap_or(u64::MAX),
            resource: text("HostResource"),
        }
    };
    hardware.children().filter(is_item).map(item).collect()
}

/// An image has no size of machine.
fn sizes(items: &[Item<'_>], notes: &mut Vec<String>) {
    let of = |kind: &str| items.iter().find(|item| item.kind == kind);
    if let (Some(processors), Some(memory)) = (of(PROCESSOR), of(MEMORY)) {
        let shown = |text: &str| text.chars().take(20).filter(|c| !c.is_control()).collect::<String>();
        let unit = if memory.unit.contains("2^20") || memory.unit.contains("Mega") { " MiB" } else { "" };
        let (processors, memory) = (shown(processors.quantity), shown(memory.quantity));
        notes.push(format!(
            "{processors} processors and {memory}{unit} of memory are not taken over: an image has none"
        ));
    }
}

/// The disks that are attached, in the order of their controllers and of their places on them.
fn disks(
    envelope: Node<'_, '_>,
    items: &[Item<'_>],
    path: &Path,
    notes: &mut Vec<String>,
) -> Result<Vec<Disk>, DiskError> {
    let section = child(envelope, "DiskSection");
    let listed: Vec<Node<'_, '_>> =
        section.map(|section| children(section, "Disk").collect()).unwrap_or_default();
    if listed.len() > DISKS_MAX {
        return Err(broken(path, format!("it has more than {DISKS_MAX} disks")));
    }
    let controller = |item: &Item<'_>| items.iter().position(|other| other.id == item.parent);
    let mut attached: Vec<&Item<'_>> = items.iter().filter(|item| item.kind == DISK).collect();
    if attached.len() > DISKS_MAX {
        return Err(broken(path, format!("its machine has more than {DISKS_MAX} disks")));
    }
    attached.sort_by_key(|item| (controller(item).unwrap_or(usize::MAX), item.address));
    let (mut disks, mut seen, mut files) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for item in attached {
        let Some(id) = disk_id(item.resource) else {
            let why =
                format!("a disk of its machine is not one of its own: '{}'", item.resource.escape_debug());
            return Err(broken(path, why));
        };
        let Some(node) = listed.iter().find(|disk| attribute(**disk, "diskId") == Some(id)) else {
            return Err(broken(path, format!("disk '{}' is nowhere described", id.escape_debug())));
        };
        if !seen.insert(id) {
            return Err(broken(path, format!("disk '{}' is attached twice", id.escape_debug())));
        }
        let is_device = item.name.starts_with("/dev/") && is_device_name(item.name);
        let device_name = is_device.then(|| item.name.to_owned());
        let disk = disk(envelope, *node, id, path)?;
        if disk.file.as_ref().is_some_and(|file| !files.insert(file.clone())) {
            return Err(broken(path, format!("disk '{}' is in the file of another", id.escape_debug())));
        }
        disks.push(Disk { device_name, ..disk });
    }
    for node in listed {
        let id = attribute(node, "diskId").unwrap_or("");
        if !seen.contains(id) {
            notes.push(format!("disk {} is attached to nothing and is left out", id.escape_debug()));
        }
    }
    Ok(disks)
}

/// The disk that a piece of hardware names: `ovf:/disk/ID`, in some versions without the scheme or with `//`.
fn disk_id(resource: &str) -> Option<&str> {
    let rest = resource.strip_prefix("ovf:").unwrap_or(resource);
    let rest = rest.trim_start_matches('/').strip_prefix("disk/")?;
    (!rest.is_empty()).then_some(rest)
}

fn disk(envelope: Node<'_, '_>, node: Node<'_, '_>, id: &str, path: &Path) -> Result<Disk, DiskError> {
    let name = id.escape_debug().to_string();
    if attribute(node, "parentRef").is_some() {
        return Err(broken(path, format!("disk {name} holds only what differs from another")));
    }
    let unit = attribute(node, "capacityAllocationUnits").unwrap_or("byte");
    let capacity = attribute(node, "capacity").and_then(|text| text.trim().parse::<u64>().ok());
    let capacity_bytes = match capacity {
        Some(capacity) => {
            let bytes = bytes_of_unit(unit).and_then(|unit| capacity.checked_mul(unit));
            Some(
                bytes
                    .ok_or_else(|| broken(path, format!("the capacity of disk {name} is not understood")))?,
            )
        }
        None => None,
    };
    let mut disk = Disk {
        id: name.clone(),
        capacity_bytes,
        format: attribute(node, "format").and_then(format_of),
        ..Disk::default()
    };
    let Some(reference) = attribute(node, "fileRef") else { return Ok(disk) };
    let files = child(envelope, "References");
    let file =
        files.and_then(|files| children(files, "File").find(|f| attribute(*f, "id") == Some(reference)));
    let file = file.ok_or_else(|| broken(path, format!("the file of disk {name} is nowhere described")))?;
    if attribute(file, "chunkSize").is_some() {
        return Err(broken(path, format!("disk {name} is cut into several files")));
    }
    if attribute(file, "compression").is_some_and(|how| !how.is_empty() && how != "identity") {
        return Err(broken(path, format!("the file of disk {name} is compressed as a whole")));
    }
    let href = attribute(file, "href").ok_or_else(|| broken(path, format!("disk {name} has no file")))?;
    disk.file = Some(href.to_owned());
    disk.file_bytes = attribute(file, "size").and_then(|text| text.trim().parse().ok());
    Ok(disk)
}

/// The bytes of a unit such as `byte * 2^30`.
fn bytes_of_unit(unit: &str) -> Option<u64> {
    let known = match unit.trim() {
        "byte" | "bytes" | "Bytes" | "" => Some(1),
        "KiloBytes" => Some(1 << 10),
        "MegaBytes" => Some(1 << 20),
        "GigaBytes" => Some(1 << 30),
        _ => None,
    };
    if known.is_some() {
        return known;
    }
    let factor = unit.trim().strip_prefix("byte")?.trim_start().strip_prefix('*')?.trim();
    match factor.split_once('^') {
        Some((base, exponent)) => {
            base.trim().parse::<u64>().ok()?.checked_pow(exponent.trim().parse().ok()?).filter(|&n| n > 0)
        }
        None => factor.parse().ok().filter(|&n| n > 0),
    }
}

/// The format that an address stands for, if it is a known one.
fn format_of(address: &str) -> Option<Foreign> {
    let address = address.to_ascii_lowercase();
    let known = [
        ("vmdk", Foreign::Vmdk),
        ("qcow", Foreign::Qcow2),
        ("vhdx", Foreign::Vhdx),
        ("vhd", Foreign::Vhd),
        ("vdi", Foreign::Vdi),
    ];
    known.into_iter().find(|(word, _)| address.contains(word)).map(|(_, format)| format)
}
