//! OVA: what imgstore writes it reads, what vSphere and VirtualBox write it understands, and an archive that wants
//! anything but its own members is refused.

mod common;

use common::{MemoryDisk, MemoryFile, volume};
use imgstore::disk::formats::{Limits, vmdk};
use imgstore::disk::ova::describe::{Machine, MachineDisk};
use imgstore::disk::ova::write::OvaWriter;
use imgstore::disk::ova::{Ova, open};
use imgstore::disk::{DiskError, DiskRead};
use imgstore::model::words::{Architecture, BootMode};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use tar::{Builder, EntryType, Header};

const MIB: u64 = 1 << 20;

fn opened(bytes: Vec<u8>) -> Result<Ova, DiskError> {
    open(Arc::new(MemoryDisk::new(bytes)), Path::new("machine.ova"), &Limits::default())
}

fn checked(bytes: Vec<u8>) -> Result<Ova, DiskError> {
    let ova = opened(bytes)?;
    ova.check::<DiskError>(|_| Ok(()))?;
    Ok(ova)
}

fn pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

/// A disk as streamOptimized VMDK.
fn vmdk_of(bytes: &[u8]) -> Vec<u8> {
    let (file, pool) = (MemoryFile::default(), pool());
    let path = Path::new("disk.vmdk");
    let mut disk = vmdk::write::create(Box::new(file.clone()), path, bytes.len() as u64, &pool).unwrap();
    disk.write_at(0, bytes).unwrap();
    disk.finish().unwrap();
    file.bytes()
}

fn content(disk: &dyn DiskRead) -> Vec<u8> {
    let mut bytes = vec![0; disk.len_bytes() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Names that a careful builder would not write, too.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A machine of one or two disks with content and an empty one, as written; and the bytes of its disks.
fn written() -> (Vec<u8>, Vec<Vec<u8>>) {
    let contents = vec![volume(3 << 20, 1), volume(1 << 20, 2)];
    let disk = |name: &str, volume_bytes, has_content| MachineDisk {
        device_name: name.to_owned(),
        volume_bytes,
        has_content,
    };
    let machine = Machine {
        name: "db <1> & \"co\"".to_owned(),
        architecture: Architecture::Arm64,
        is_windows: false,
        boot_mode: None,
        processors: 4,
        memory_bytes: 8 << 30,
        disks: vec![
            disk("/dev/sda1", 3 * MIB, true),
            disk("/dev/xvdf", 5 << 30, false),
            // The same as with /dev/ before it.
            disk("xvdg", MIB, true),
        ],
    };
    let (file, pool) = (MemoryFile::default(), pool());
    let mut ova = OvaWriter::create(Box::new(file.clone()), Path::new("machine.ova"), machine);
    for bytes in &contents {
        let path = Path::new("machine.ova");
        let mut target = vmdk::write::create(ova.disk().0, path, bytes.len() as u64, &pool).unwrap();
        target.write_at(0, bytes).unwrap();
        target.finish().unwrap();
    }
    ova.finish().unwrap();
    (file.bytes(), contents)
}

#[test]
fn what_is_written_is_read() {
    let (bytes, contents) = written();
    let ova = checked(bytes.clone()).unwrap();
    assert_eq!(ova.name.as_deref(), Some("db <1> & \"co\""));
    assert_eq!((ova.architecture, ova.boot_mode), (Some(Architecture::Arm64), Some(BootMode::Uefi)));
    assert!(!ova.is_windows);
    let names: Vec<_> = ova.disks.iter().map(|disk| disk.device_name.as_deref().unwrap()).collect();
    assert_eq!(names, ["/dev/sda1", "/dev/xvdf", "/dev/xvdg"]);
    let sizes: Vec<_> = ova.disks.iter().map(|disk| disk.volume_bytes).collect();
    assert_eq!(sizes, [3 * MIB, 5 << 30, MIB]);
    let found: Vec<_> = ova.disks.iter().filter_map(|disk| disk.content.as_deref().map(content)).collect();
    assert!(found == contents);
    // Another program's reader agrees on the archive, and the order is that of the standard.
    let mut archive = tar::Archive::new(&bytes[..]);
    let members: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
        .collect();
    let stem = "db--1-----co-";
    let expected = ["ovf", "disk1.vmdk", "disk2.vmdk", "mf"].map(|rest| match rest.contains("disk") {
        true => format!("{stem}-{rest}"),
        false => format!("{stem}.{rest}"),
    });
    assert_eq!(members, expected);
}

#[test]
fn damage_anywhere_is_found() {
    let (bytes, _) = written();
    let mut draw = common::Draw::new(1);
    // Padding and the fields of headers that mean nothing here may be anything.
    let mut unnoticed = 0;
    for _ in 0..400 {
        let mut damaged = bytes.clone();
        let at = draw.below(damaged.len());
        damaged[at] ^= 1 << draw.below(8);
        unnoticed += u32::from(checked(damaged).is_ok());
    }
    assert!(unnoticed <= 12, "{unnoticed} of 400");
    for cut in [1, 511, 512, 1024, 2000, bytes.len() / 2] {
        let ova = checked(bytes[..bytes.len() - cut].to_vec());
        // Only the two empty headers at the end can be missing.
        assert!(cut <= 1024 || ova.is_err(), "{cut} bytes less");
    }
}

/// A description around disks and hardware.
fn ovf(references: &str, disks: &str, system: &str) -> String {
    format!(
        r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
<References>{references}</References>
<DiskSection><Info>disks</Info>{disks}</DiskSection>
<VirtualSystem ovf:id="vm"><Info>a machine</Info>{system}</VirtualSystem>
</Envelope>"#
    )
}

fn file(id: &str, href: &str) -> String {
    format!(r#"<File ovf:href="{href}" ovf:id="{id}"/>"#)
}

fn disk(id: &str, rest: &str) -> String {
    format!(
        r#"<Disk ovf:diskId="{id}" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" {rest}/>"#
    )
}

fn item(id: u32, kind: u32, fields: &[(&str, &str)]) -> String {
    let mut text =
        format!("<Item><rasd:InstanceID>{id}</rasd:InstanceID><rasd:ResourceType>{kind}</rasd:ResourceType>");
    for (name, value) in fields {
        write!(text, "<rasd:{name}>{value}</rasd:{name}>").unwrap();
    }
    text + "</Item>"
}

fn hardware(items: &[String]) -> String {
    format!("<VirtualHardwareSection><Info>hardware</Info>{}</VirtualHardwareSection>", items.concat())
}

/// One disk, attached.
fn simple() -> String {
    let at = item(5, 17, &[("HostResource", "ovf:/disk/d1")]);
    ovf(&file("f1", "disk.vmdk"), &disk("d1", r#"ovf:fileRef="f1""#), &hardware(&[at]))
}

#[test]
fn machines_of_others_are_understood() {
    let first = vmdk_of(&volume(1 << 20, 1));
    let second = vmdk_of(&volume(2 << 20, 2));
    // As ovftool writes it: controllers, disks in another order than they are attached, a unit of capacity.
    let vmware = ovf(
        &(file("file1", "a.vmdk") + &file("file2", "b.vmdk")),
        &(disk(
            "vmdisk1",
            r#"ovf:fileRef="file1" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^20""#,
        ) + &disk(
            "vmdisk2",
            r#"ovf:fileRef="file2" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20""#,
        ) + &disk("vmdisk3", r#"ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30""#)),
        &(r#"<OperatingSystemSection ovf:id="94" vmw:osType="ubuntu64Guest"><Info/></OperatingSystemSection>"#
            .to_owned()
            + &hardware(&[
                item(1, 3, &[("VirtualQuantity", "2")]),
                item(2, 4, &[("AllocationUnits", "byte * 2^20"), ("VirtualQuantity", "4096")]),
                item(3, 6, &[("ResourceSubType", "VirtualSCSI")]),
                item(4, 5, &[]),
                item(5, 15, &[("Parent", "4"), ("HostResource", "ovf:/file/cdrom")]),
                item(
                    8,
                    17,
                    &[("Parent", "3"), ("AddressOnParent", "2"), ("HostResource", "ovf:/disk/vmdisk3")],
                ),
                item(
                    6,
                    17,
                    &[("Parent", "3"), ("AddressOnParent", "1"), ("HostResource", "ovf:/disk/vmdisk1")],
                ),
                item(
                    7,
                    17,
                    &[("Parent", "3"), ("AddressOnParent", "0"), ("HostResource", "ovf:/disk/vmdisk2")],
                ),
                r#"<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>"#.to_owned(),
            ])),
    );
    let ova =
        checked(archive(&[("m.ovf", vmware.as_bytes()), ("a.vmdk", &first), ("b.vmdk", &second)])).unwrap();
    assert_eq!((ova.architecture, ova.boot_mode), (Some(Architecture::X86_64), Some(BootMode::Uefi)));
    let disks: Vec<_> = ova.disks.iter().map(|disk| (disk.volume_bytes, disk.content.is_some())).collect();
    assert_eq!(disks, [(2 * MIB, true), (MIB, true), (16 << 30, false)]);
    assert!(ova.notes.iter().any(|note| note.contains("2 processors and 4096 MiB")), "{:?}", ova.notes);
    assert!(ova.notes.iter().any(|note| note.contains("no checksums")), "{:?}", ova.notes);
    // As VirtualBox does: SATA, its own description, `/disk/` without the scheme.
    let vbox = ovf(
        &file("file1", "a.vmdk"),
        &disk("vmdisk1", r#"ovf:fileRef="file1" ovf:capacity="1048576""#),
        &(r#"<OperatingSystemSection ovf:id="121"><Info/><Description>Windows10_64</Description><vbox:OSType ovf:required="false">Windows10_64</vbox:OSType></OperatingSystemSection>"#
            .to_owned()
            + &hardware(&[
                item(3, 20, &[]),
                item(7, 17, &[("Parent", "3"), ("AddressOnParent", "0"), ("HostResource", "/disk/vmdisk1")]),
            ])
            + r#"<vbox:Machine><Hardware><Firmware type="BIOS"/></Hardware></vbox:Machine>"#),
    );
    let ova = checked(archive(&[("m.ovf", vbox.as_bytes()), ("a.vmdk", &first)])).unwrap();
    assert!(ova.is_windows);
    assert_eq!((ova.architecture, ova.boot_mode), (Some(Architecture::X86_64), Some(BootMode::LegacyBios)));
}

/// Where a machine comes in several configurations, it is the one that says that it is meant.
#[test]
fn the_default_configuration_of_a_machine_is_taken() {
    let vmdks = [vmdk_of(&volume(1 << 20, 1)), vmdk_of(&volume(2 << 20, 2))];
    let options = |default: &str| {
        format!(
            r#"<DeploymentOptionSection><Info/><Configuration ovf:id="small"/><Configuration ovf:id="large" {default}/></DeploymentOptionSection>"#
        )
    };
    let of = |configuration: &str, item: String| {
        item.replacen("<Item>", &format!(r#"<Item ovf:configuration="{configuration}">"#), 1)
    };
    let disk_at =
        |id: u32, disk: &str| item(id, 17, &[("AddressOnParent", &id.to_string()), ("HostResource", disk)]);
    let system = hardware(&[
        item(2, 4, &[("VirtualQuantity", "77")]),
        of("small", item(1, 3, &[("VirtualQuantity", "2")])),
        of("large huge", item(1, 3, &[("VirtualQuantity", "8")])),
        disk_at(5, "ovf:/disk/d1"),
        of("huge large", disk_at(6, "ovf:/disk/d2")),
    ]);
    let text = ovf(
        &(file("f1", "a.vmdk") + &file("f2", "b.vmdk")),
        &(disk("d1", r#"ovf:fileRef="f1""#) + &disk("d2", r#"ovf:fileRef="f2""#)),
        &system,
    );
    for (default, disks, processors) in
        [("", 1, "2 processors"), (r#"ovf:default="true""#, 2, "8 processors")]
    {
        let text = text.replace("<VirtualSystem ", &(options(default) + "<VirtualSystem "));
        let members = [("m.ovf", text.as_bytes()), ("a.vmdk", &vmdks[0]), ("b.vmdk", &vmdks[1])];
        let ova = checked(archive(&members)).unwrap();
        assert_eq!(ova.disks.len(), disks, "{:?}", ova.notes);
        assert!(ova.notes.iter().any(|note| note.contains(processors)), "{:?}", ova.notes);
        assert!(ova.notes.iter().any(|note| note.contains("of its 2 configurations")), "{:?}", ova.notes);
    }
}

/// Asserts that an archive is refused, and why.
fn assert_refused(what: &str, bytes: Vec<u8>, expected: &str) {
    match checked(bytes) {
        Err(DiskError::Refused { why, .. }) => assert!(why.contains(expected), "{what}: {why}"),
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what} is taken"),
    }
}

#[test]
fn descriptions_that_want_more_than_the_archive_has_are_refused() {
    let vmdk = vmdk_of(&volume(1 << 20, 1));
    let with = |text: &str| archive(&[("m.ovf", text.as_bytes()), ("disk.vmdk", &vmdk)]);
    assert!(checked(with(&simple())).is_ok());
    let attached = hardware(&[item(5, 17, &[("HostResource", "ovf:/disk/d1")])]);
    let of = |references: &str, disk: &str| ovf(references, disk, &attached);
    let by_f1 = disk("d1", r#"ovf:fileRef="f1""#);
    let twice = hardware(&[
        item(5, 17, &[("HostResource", "ovf:/disk/d1")]),
        item(6, 17, &[("HostResource", "ovf:/disk/d1")]),
    ]);
    let entities = r#"<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><Envelope>&b;</Envelope>"#;
    let outside = r#"<?xml version="1.0"?><!DOCTYPE x [<!ENTITY s SYSTEM "file:///etc/passwd">]><Envelope>&s;</Envelope>"#;
    let deep = "<a>".repeat(90_000) + &"</a>".repeat(90_000);
    let wide = format!("<Envelope>{}</Envelope>", "<a/>".repeat(200_000));
    let spaces: String = (0..20_000).map(|number| format!(" xmlns:n{number}=\"u\"")).collect();
    let spaces = format!("<Envelope{spaces}>{}</Envelope>", "<a xmlns:b=\"u\"/>".repeat(90_000));
    let named = |id: u32, disk: &str| item(id, 17, &[("HostResource", disk)]);
    let many = hardware(&(5..14_000).map(|id| named(id, "ovf:/disk/d1")).collect::<Vec<_>>());
    let both = hardware(&[named(5, "ovf:/disk/d1"), named(6, "ovf:/disk/d2")]);
    let cases: Vec<(&str, String, &str)> = vec![
        ("entities", entities.to_owned(), "DTD"),
        ("an entity of a file", outside.to_owned(), "DTD"),
        ("depth", deep, "not OVF"),
        ("width", wide, "XML"),
        ("many namespaces", spaces, "256 times 'xmlns'"),
        ("many attributes", format!("<Envelope{}/>", " aaaa=\"\"".repeat(300_000)), "20000 times '='"),
        ("many disks", ovf(&file("f1", "disk.vmdk"), &by_f1, &many), "more than 60 disks"),
        (
            "a file twice",
            ovf(&file("f1", "disk.vmdk"), &(by_f1.clone() + &disk("d2", r#"ovf:fileRef="f1""#)), &both),
            "in the file of another",
        ),
        ("another file's path", of(&file("f1", "../../etc/passwd"), &by_f1), "not in the archive"),
        ("another file's address", of(&file("f1", "file:///etc/passwd"), &by_f1), "not in the archive"),
        ("another file on a server", of(&file("f1", "http://host/disk.vmdk"), &by_f1), "not in the archive"),
        ("a file nowhere", of("", &by_f1), "nowhere described"),
        (
            "a difference",
            of(&file("f1", "disk.vmdk"), &disk("d1", r#"ovf:fileRef="f1" ovf:parentRef="d0""#)),
            "differs from another",
        ),
        (
            "pieces",
            of(r#"<File ovf:href="disk.vmdk" ovf:id="f1" ovf:chunkSize="7"/>"#, &by_f1),
            "several files",
        ),
        (
            "a compressed file",
            of(r#"<File ovf:href="disk.vmdk" ovf:id="f1" ovf:compression="gzip"/>"#, &by_f1),
            "compressed",
        ),
        ("a wrong length", of(r#"<File ovf:href="disk.vmdk" ovf:id="f1" ovf:size="7"/>"#, &by_f1), "length"),
        (
            "a capacity beyond numbers",
            of(
                &file("f1", "disk.vmdk"),
                &disk(
                    "d1",
                    r#"ovf:fileRef="f1" ovf:capacity="99" ovf:capacityAllocationUnits="byte * 2^63""#,
                ),
            ),
            "capacity",
        ),
        ("an empty disk of no size", ovf("", &disk("d1", ""), &attached), "no disk with content"),
        ("a disk twice", ovf(&file("f1", "disk.vmdk"), &by_f1, &twice), "twice"),
        (
            "a file as a disk",
            ovf("", "", &hardware(&[item(5, 17, &[("HostResource", "ovf:/file/f1")])])),
            "not one of its own",
        ),
        ("a missing disk", ovf("", "", &attached), "nowhere described"),
        ("no disks", ovf("", "", &hardware(&[])), "no disk with content"),
        (
            "several machines",
            "<Envelope><VirtualSystemCollection/></Envelope>".to_owned(),
            "several machines",
        ),
        ("no machine", "<Envelope/>".to_owned(), "no machine"),
        ("not OVF", "<html/>".to_owned(), "not OVF"),
        ("not XML", "plain".to_owned(), "XML"),
    ];
    for (what, text, expected) in cases {
        assert_refused(what, with(&text), expected);
    }
    // A description that says VMDK of a raw disk, and a disk that is another file's.
    let raw = volume(1 << 20, 3);
    let lying = archive(&[("m.ovf", simple().as_bytes()), ("disk.vmdk", &raw)]);
    assert_refused("a raw disk as VMDK", lying, "do not say");
    let flat = "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 200 FLAT \"/etc/passwd\" 0\n";
    let flat = archive(&[("m.ovf", simple().as_bytes()), ("disk.vmdk", flat.as_bytes())]);
    assert_refused("a flat VMDK", flat, "descriptor");
}

#[test]
fn archives_with_links_paths_and_lies_are_refused() {
    let (vmdk, text) = (vmdk_of(&volume(1 << 20, 1)), simple());
    let good: [(&str, &[u8]); 2] = [("m.ovf", text.as_bytes()), ("disk.vmdk", &vmdk)];
    let with = |more: &[(&str, &[u8])]| archive(&[&good[..], more].concat());
    for name in ["../up", "/etc/cron.d/x", "folder/file", "a\\b", "c:file", "..", "bad\u{7}name"] {
        assert_refused(name, with(&[(name, b"x")]), "names have no folders");
    }
    assert_refused("two of a name", with(&[("disk.vmdk", b"x")]), "two members");
    assert_refused("two descriptions", with(&[("n.ovf", b"x")]), "two descriptions");
    assert_refused("no description", archive(&[("disk.vmdk", &vmdk)]), "without a description");
    let names: Vec<String> = (0..300).map(|n| format!("file{n}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    assert_refused("many members", with(&many), "more than 256");
    for (kind, expected) in [
        (EntryType::Symlink, "link"),
        (EntryType::Link, "link"),
        (EntryType::Directory, "folder"),
        (EntryType::Fifo, "device"),
        (EntryType::GNUSparse, "sparse"),
    ] {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_path("member").unwrap();
        header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(archive(&good));
        assert_refused(expected, bytes, expected);
    }
    // A header that says more of the next member than is read, or without end.
    let extended = |kind: EntryType, said: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(said.len() as u64);
        header.set_path("pax").unwrap();
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(said);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(archive(&good));
        bytes
    };
    assert_refused("a long header", extended(EntryType::XHeader, &vec![b'x'; 100_000]), "limit");
    assert_refused("a path", extended(EntryType::XHeader, b"14 path=../ab\n"), "names have no folders");
    assert_refused("a size", extended(EntryType::XHeader, b"17 size=99999999\n"), "cut off");
    assert_refused("a link", extended(EntryType::XHeader, b"14 linkpath=a\n"), "links");
    assert_refused("of all", extended(EntryType::XGlobalHeader, b"10 size=1\n"), "of all members");
    assert_refused("a long name", extended(EntryType::GNULongName, b"../../etc/passwd\0"), "no folders");
    let mut renamed = extended(EntryType::GNULongName, b"m2.ovf\0");
    assert!(checked(renamed.clone()).is_ok());
    renamed[300] ^= 1;
    assert_refused("a header that was changed", renamed, "checksum");
}

#[test]
fn checksums_must_be_of_all_and_right() {
    let (vmdk, text) = (vmdk_of(&volume(1 << 20, 1)), simple());
    let sum = |name: &str, bytes: &[u8]| {
        use sha2::{Digest, Sha256};
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02X}")).collect();
        format!("SHA256({name})= {hex}\n")
    };
    let with =
        |list: &str| archive(&[("m.ovf", text.as_bytes()), ("disk.vmdk", &vmdk), ("m.mf", list.as_bytes())]);
    let both = sum("m.ovf", text.as_bytes()) + &sum("disk.vmdk", &vmdk);
    assert!(checked(with(&both)).unwrap().notes.is_empty());
    assert!(checked(with(&both.replace(")= ", ") = "))).is_ok(), "a blank as some write it");
    assert_refused(
        "another",
        with(&(sum("m.ovf", b"x") + &sum("disk.vmdk", &vmdk))),
        "not have its checksum",
    );
    assert_refused("no disk", with(&sum("m.ovf", text.as_bytes())), "does not have disk.vmdk");
    assert_refused("too many", with(&(both.clone() + &sum("gone.vmdk", b""))), "missing");
    assert_refused("twice", with(&(both.clone() + &both)), "two checksums");
    assert_refused("unknown", with(&both.replace("SHA256(m", "MD5(m")), "not understood");
    assert_refused("short", with("SHA256(m.ovf)= 00\n"), "not understood");
}
