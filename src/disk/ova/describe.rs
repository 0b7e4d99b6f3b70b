//! The description of a machine as OVF 1.1 with VMware's words, which vSphere, VirtualBox and `qemu`'s tools read.

use super::write::Written;
use crate::model::words::{Architecture, BootMode};
use std::fmt::Write;

/// Disks on one controller; the controller itself has the eighth place.
const PLACES: usize = 15;
/// Instance ids of the pieces of hardware.
const PROCESSORS: usize = 1;
const MEMORY: usize = 2;
const NETWORK: usize = 3;
const CONTROLLERS: usize = 10;
const DISKS: usize = 100;

const NAMESPACES: &str = r#"xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData""#;
const VMDK: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

/// A virtual machine to write.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// The processor that its guest is for.
    pub architecture: Architecture,
    /// Whether its guest is Windows.
    pub is_windows: bool,
    /// The firmware that boots it.
    pub boot_mode: Option<BootMode>,
    /// Processors.
    pub processors: u32,
    /// Bytes of memory; whole MiB are written.
    pub memory_bytes: u64,
    /// Its disks; the guest boots from the first.
    pub disks: Vec<MachineDisk>,
}

/// A disk of a virtual machine to write.
#[derive(Debug, Clone)]
pub struct MachineDisk {
    /// The name of its device.
    pub device_name: String,
    /// Its length in bytes.
    pub volume_bytes: u64,
    /// Whether there is anything on it.
    pub has_content: bool,
}

impl Machine {
    pub(super) fn disks_with_content(&self) -> usize {
        self.disks.iter().filter(|disk| disk.has_content).count()
    }
}

/// The description. `written` are the files of the disks that have content, in their order.
pub(super) fn describe(machine: &Machine, stem: &str, written: &[Written]) -> String {
    let mut out = Text(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Envelope {NAMESPACES}>\n"));
    out.line(1, "<References>");
    for (number, file) in written.iter().enumerate() {
        let (name, len) = (&file.name, file.len);
        out.line(2, &format!(r#"<File ovf:href="{name}" ovf:id="file{}" ovf:size="{len}"/>"#, number + 1));
    }
    out.line(1, "</References>");
    disks(machine, &mut out);
    out.line(1, "<NetworkSection>");
    out.line(2, "<Info>The networks</Info>");
    out.line(2, r#"<Network ovf:name="VM Network"><Description>The default network</Description></Network>"#);
    out.line(1, "</NetworkSection>");
    out.line(1, &format!(r#"<VirtualSystem ovf:id="{stem}">"#));
    out.line(2, "<Info>A virtual machine</Info>");
    out.line(2, &format!("<Name>{}</Name>", escaped(&machine.name)));
    guest(machine, &mut out);
    hardware(machine, stem, &mut out);
    out.line(1, "</VirtualSystem>");
    out.0.push_str("</Envelope>\n");
    out.0
}

fn disks(machine: &Machine, out: &mut Text) {
    out.line(1, "<DiskSection>");
    out.line(2, "<Info>The disks</Info>");
    let mut file = 0;
    for (number, disk) in machine.disks.iter().enumerate() {
        // A disk has whole sectors.
        let capacity = disk.volume_bytes.checked_next_multiple_of(512).unwrap_or(disk.volume_bytes);
        let content = if disk.has_content {
            file += 1;
            format!(r#" ovf:fileRef="file{file}""#)
        } else {
            String::new()
        };
        let said = format!(
            r#"<Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="disk{}"{content} ovf:format="{VMDK}"/>"#,
            number + 1
        );
        out.line(2, &said);
    }
    out.line(1, "</DiskSection>");
}

/// The guest, in the words of CIM (101 and 36 are Linux, 1 is any other) and of VMware.
fn guest(machine: &Machine, out: &mut Text) {
    let (id, word, said) = match (machine.architecture, machine.is_windows) {
        (Architecture::Arm64 | Architecture::Arm64Mac, _) => (1, None, "arm64"),
        (Architecture::I386, true) => (1, Some("windows7Guest"), "Windows, 32 bit"),
        (Architecture::I386, false) => (36, Some("otherLinuxGuest"), "Linux, 32 bit"),
        (_, true) => (1, Some("windows9Server64Guest"), "Windows, 64 bit"),
        (_, false) => (101, Some("otherLinux64Guest"), "Linux, 64 bit"),
    };
    let word = word.map_or_else(String::new, |word| format!(r#" vmw:osType="{word}""#));
    out.line(2, &format!(r#"<OperatingSystemSection ovf:id="{id}"{word}>"#));
    out.line(3, "<Info>The guest</Info>");
    out.line(3, &format!("<Description>{said}</Description>"));
    out.line(2, "</OperatingSystemSection>");
}

fn hardware(machine: &Machine, stem: &str, out: &mut Text) {
    out.line(2, "<VirtualHardwareSection>");
    out.line(3, "<Info>The hardware</Info>");
    out.line(3, "<System>");
    out.line(4, "<vssd:ElementName>Virtual Hardware Family</vssd:ElementName>");
    out.line(4, "<vssd:InstanceID>0</vssd:InstanceID>");
    out.line(4, &format!("<vssd:VirtualSystemIdentifier>{stem}</vssd:VirtualSystemIdentifier>"));
    out.line(4, "<vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>");
    out.line(3, "</System>");
    let processors = machine.processors.to_string();
    out.item(PROCESSORS, "3", "Processors", &[("VirtualQuantity", &processors)]);
    let memory = (machine.memory_bytes >> 20).max(1).to_string();
    let fields = [("AllocationUnits", "byte * 2^20"), ("VirtualQuantity", memory.as_str())];
    out.item(MEMORY, "4", "Memory", &fields);
    let kind = if machine.is_windows { "lsilogicsas" } else { "lsilogic" };
    for controller in 0..machine.disks.len().div_ceil(PLACES) {
        let address = controller.to_string();
        let fields = [("Address", address.as_str()), ("ResourceSubType", kind)];
        out.item(CONTROLLERS + controller, "6", &format!("SCSI controller {controller}"), &fields);
    }
    for (number, disk) in machine.disks.iter().enumerate() {
        let place = number % PLACES;
        let place = (if place < 7 { place } else { place + 1 }).to_string();
        let parent = (CONTROLLERS + number / PLACES).to_string();
        let resource = format!("ovf:/disk/disk{}", number + 1);
        let fields = [("AddressOnParent", place.as_str()), ("HostResource", &resource), ("Parent", &parent)];
        // With which it is the same device, and told from what others call their disks.
        let device = format!("/dev/{}", disk.device_name.strip_prefix("/dev/").unwrap_or(&disk.device_name));
        out.item(DISKS + number, "17", &device, &fields);
    }
    let fields =
        [("AutomaticAllocation", "true"), ("Connection", "VM Network"), ("ResourceSubType", "E1000")];
    out.item(NETWORK, "10", "Network", &fields);
    let is_arm = matches!(machine.architecture, Architecture::Arm64 | Architecture::Arm64Mac);
    let is_uefi = matches!(machine.boot_mode, Some(BootMode::Uefi | BootMode::UefiPreferred));
    let firmware = if is_arm || is_uefi { "efi" } else { "bios" };
    out.line(3, &format!(r#"<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{firmware}"/>"#));
    out.line(2, "</VirtualHardwareSection>");
}

struct Text(String);

impl Text {
    fn line(&mut self, depth: usize, text: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{:width$}{text}", "", width = 2 * depth);
    }

    /// A piece of hardware. The schema wants its fields in the order of their names.
    fn item(&mut self, id: usize, kind: &str, name: &str, fields: &[(&str, &str)]) {
        let id = id.to_string();
        let mut fields: Vec<(&str, &str)> = fields.to_vec();
        fields.extend([("ElementName", name), ("InstanceID", &id), ("ResourceType", kind)]);
        fields.sort_unstable();
        self.line(3, "<Item>");
        for (field, value) in fields {
            self.line(4, &format!("<rasd:{field}>{}</rasd:{field}>", escaped(value)));
        }
        self.line(3, "</Item>");
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
