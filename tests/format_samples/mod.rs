//! Fixed values: each as the library has it, and as the second decoder must read it. Every field has another
//! value than its neighbours, so that no two can be confused.

use crate::format_decoder as second;
use imgstore::chunk::frame::{Codec, Frame, chunk_id};
use imgstore::format::checkpoint::Checkpoint;
use imgstore::format::entry::Entry;
use imgstore::format::pack;
use imgstore::format::record::{Body, StoredRecord};
use imgstore::format::segment::SegmentWriter;
use imgstore::model::account::{
    AccountId, AccountSettings, ClientToken, Permission, Resource, RetentionRule, Tag,
};
use imgstore::model::blockmap::{BlockMap, ChunkRef};
use imgstore::model::catalog::{Binned, Catalog, Deregistered, Pack};
use imgstore::model::ids::{ChunkId, ObjectHash, RegionId, SessionId};
use imgstore::model::image::{
    BlockDeviceMapping, DeregistrationProtection, DeviceTarget, EbsBlockDevice, Image, ImageSource, Machine,
};
use imgstore::model::instance::{Attachment, Instance, LocalDisk, Volume};
use imgstore::model::objects::{
    ListName, ManifestName, ManifestRecord, PackName, PackRecord, PackState, SegmentName, SegmentRecord,
};
use imgstore::model::op::{
    AccountChange, Author, BinStay, ImageChange, InstanceChange, Op, SnapshotChange, VolumeChange,
};
use imgstore::model::region::{ChunkerParams, RegionHeader};
use imgstore::model::snapshot::{Snapshot, SnapshotSource, Template};
use imgstore::model::words::{
    Architecture, BootMode, ImageState, InstanceState, SnapshotState, VirtualizationType, VolumeType,
};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Arc;

pub const SESSION: [u8; 16] = *b"session 16 bytes";
pub const REGION: [u8; 16] = *b"region: 16 bytes";

pub fn id<T: FromStr<Err: Debug>>(prefix: &str, number: u128) -> (T, second::ShortId) {
    (format!("{prefix}{number:017x}").parse().expect("an id"), second::ShortId(number))
}

pub fn account(number: u64) -> (AccountId, second::AccountId) {
    (format!("{number:012}").parse().expect("an account"), second::AccountId(number))
}

pub fn name(number: u64) -> second::Name {
    second::Name { session: SESSION, number }
}

pub fn text(text: &str) -> (String, String) {
    (text.to_owned(), text.to_owned())
}

pub fn tag(key: &str, value: &str) -> (Tag, second::Tag) {
    let (key, value) = (key.to_owned(), value.to_owned());
    (Tag { key: key.clone(), value: value.clone() }, second::Tag { key, value })
}

pub fn region_header() -> (RegionHeader, second::RegionHeader) {
    let (provider, provider2) = account(0x0f0e);
    let chunker = ChunkerParams { min_blocks: 2, avg_blocks: 33, max_blocks: 256, zero_tail_bytes: 4096 };
    let (name, created, zstd_level, pack_bytes) = ("golden-1".to_owned(), 0x0001_9abc_def0_1234, 12, 16_384);
    (
        RegionHeader {
            id: RegionId(REGION),
            name: name.clone(),
            provider,
            created_ms: created,
            chunker,
            zstd_level,
            pack_bytes,
        },
        second::RegionHeader {
            id: REGION,
            name,
            provider: provider2,
            created,
            chunker: second::Chunker {
                min_blocks: 2,
                avg_blocks: 33,
                max_blocks: 256,
                zero_tail_bytes: 4096,
            },
            zstd_level,
            pack_bytes,
        },
    )
}

pub fn pack_record() -> (PackRecord, second::PackRecord) {
    let pack = |number| PackName { session: SessionId(SESSION), number };
    (
        PackRecord {
            name: pack(u64::MAX - 1),
            len: 1 << 33,
            frames: 7,
            raw_bytes: 1 << 35,
            trailer_hash: ObjectHash([0x71; 32]),
            bases: vec![pack(5), pack(4)],
        },
        second::PackRecord {
            name: name(u64::MAX - 1),
            len: 1 << 33,
            frames: 7,
            raw_bytes: 1 << 35,
            trailer_hash: [0x71; 32],
            bases: vec![name(5), name(4)],
        },
    )
}

pub fn segment_record() -> (SegmentRecord, second::SegmentRecord) {
    let segment = |number| SegmentName { session: SessionId(SESSION), number };
    (
        SegmentRecord {
            name: segment(9),
            len: 4096,
            entries: 1 << 34,
            hash: ObjectHash([0x5e; 32]),
            replaces: vec![segment(3)],
            partial: vec![PackName { session: SessionId(SESSION), number: 4 }],
        },
        second::SegmentRecord {
            name: name(9),
            len: 4096,
            entries: 1 << 34,
            hash: [0x5e; 32],
            replaces: vec![name(3)],
            partial: vec![name(4)],
        },
    )
}

/// With every optional field, or without.
pub fn snapshot(number: u128, full: bool) -> (Snapshot, second::Snapshot) {
    let ((id, id2), (owner, owner2)) = (id("snap-", number), account(999_999_999_999));
    let (description, description2) = text("größer als ASCII: 雪");
    let ((tag, tag2), (parent, parent2)) = (tag("Name", "root"), self::id("snap-", 0xf_0000_0000_0000_0001));
    let ((volume, volume2), (of, of2)) = (self::id("vol-", 0x22), self::id("snap-", 0x33));
    let source =
        SnapshotSource { region_id: RegionId([3; 16]), region: "far".into(), snapshot_id: of, sequence: 44 };
    let source2 =
        second::SnapshotSource { region_id: [3; 16], region: "far".into(), snapshot_id: of2, sequence: 44 };
    let ((friend, friend2), (token, token2)) = (account(123_456_789_012), token("token"));
    let permissions = [vec![], vec![Permission::All, Permission::Account(friend)]];
    let permissions2 = [vec![], vec![second::Permission::All, second::Permission::Account(friend2)]];
    (
        Snapshot {
            id,
            owner,
            description,
            volume_bytes: 0x1111,
            data_bytes: 0x2222,
            state: if full { SnapshotState::Error } else { SnapshotState::Completed },
            created_ms: 0x3333,
            tags: vec![tag],
            parent: full.then_some(parent),
            volume: full.then_some(volume),
            source: full.then_some(source),
            create_volume_permissions: permissions[usize::from(full)].clone(),
            client_token: full.then_some(token),
            manifest: ManifestRecord {
                name: ManifestName { session: SessionId(SESSION), number: 8 },
                len: 0x4444,
                hash: ObjectHash([0x55; 32]),
                chunks: 0x6666,
            },
        },
        second::Snapshot {
            id: id2,
            owner: owner2,
            description: description2,
            volume_bytes: 0x1111,
            data_bytes: 0x2222,
            state: if full { second::SnapshotState::Error } else { second::SnapshotState::Completed },
            created: 0x3333,
            tags: vec![tag2],
            parent: full.then_some(parent2),
            volume: full.then_some(volume2),
            source: full.then_some(source2),
            create_volume_permissions: permissions2[usize::from(full)].clone(),
            client_token: full.then_some(token2),
            manifest: second::ManifestRecord { name: name(8), len: 0x4444, hash: [0x55; 32], chunks: 0x6666 },
        },
    )
}

/// The request is known by its hash.
pub fn token(text: &str) -> (ClientToken, second::ClientToken) {
    let token = text.to_owned();
    (
        ClientToken { token: token.clone(), request: ObjectHash([0x70; 32]) },
        second::ClientToken { token, request: [0x70; 32] },
    )
}

pub fn template(number: u128) -> (Template, second::Template) {
    let ((id, id2), (owner, owner2)) = (id("tmpl-", number), account(4));
    (
        Template {
            id,
            owner,
            volume_bytes: 0x1a1a,
            data_bytes: 0x1b1b,
            created_ms: 0x1c1c,
            manifest: ManifestRecord {
                name: ManifestName { session: SessionId(SESSION), number: 18 },
                len: 0x1d1d,
                hash: ObjectHash([0x1e; 32]),
                chunks: 0x1f1f,
            },
        },
        second::Template {
            id: id2,
            owner: owner2,
            volume_bytes: 0x1a1a,
            data_bytes: 0x1b1b,
            created: 0x1c1c,
            manifest: second::ManifestRecord {
                name: name(18),
                len: 0x1d1d,
                hash: [0x1e; 32],
                chunks: 0x1f1f,
            },
        },
    )
}

pub fn machine(full: bool) -> (Machine, second::Machine) {
    let some = |text: &str| full.then(|| text.to_owned());
    (
        Machine {
            architecture: Architecture::Arm64Mac,
            platform: some("windows"),
            virtualization_type: VirtualizationType::Paravirtual,
            boot_mode: full.then_some(BootMode::UefiPreferred),
            tpm_support: some("v2.0"),
            ena_support: !full,
            imds_support: some("imds"),
            kernel_id: some("aki"),
            ramdisk_id: some("ari"),
        },
        second::Machine {
            architecture: second::Architecture::Arm64Mac,
            platform: some("windows"),
            virtualization_type: second::Virtualization::Paravirtual,
            boot_mode: full.then_some(second::BootMode::UefiPreferred),
            tpm_support: some("v2.0"),
            ena_support: !full,
            imds_support: some("imds"),
            kernel_id: some("aki"),
            ramdisk_id: some("ari"),
        },
    )
}

pub fn devices(full: bool) -> (Vec<BlockDeviceMapping>, Vec<second::Device>) {
    let (stood, stood2) = id("snap-", 0x77);
    let ebs = EbsBlockDevice {
        snapshot_id: Some(stood),
        volume_bytes: 0xbbbb,
        volume_type: VolumeType::Standard,
        iops: full.then_some(0xcccc),
        delete_on_termination: full,
    };
    let ebs2 =
        second::Target::Ebs(Some(stood2), 0xbbbb, second::VolumeType::Standard, full.then_some(0xcccc), full);
    let device = |name: &str, target| BlockDeviceMapping { device_name: name.to_owned(), target };
    let device2 = |name: &str, target| second::Device { device_name: name.to_owned(), target };
    (
        vec![device("/dev/xvda", DeviceTarget::Ebs(ebs)), device("/dev/sdb", DeviceTarget::Ephemeral(23))],
        vec![device2("/dev/xvda", ebs2), device2("/dev/sdb", second::Target::Ephemeral(23))],
    )
}

pub fn image(number: u128, full: bool) -> (Image, second::Image) {
    let ((id, id2), (owner, owner2)) = (id("ami-", number), account(1));
    let ((from, from2), (of, of2)) = (self::id("ami-", 0x88), self::id("tmpl-", 0x78));
    let ((ran, ran2), (before, before2)) = (self::id("i-", 0x99), self::id("ami-", 0xaa));
    let ((machine, machine2), (devices, devices2)) = (machine(full), devices(full));
    let ((tag, tag2), region) = (tag("Stage", ""), "elsewhere".to_owned());
    let (token, token2) = token("once");
    let protection = [
        DeregistrationProtection::EnabledWithCooldown,
        DeregistrationProtection::CoolingDown { until_ms: 0xefef },
    ];
    let protection2 = [
        second::DeregistrationProtection::EnabledWithCooldown,
        second::DeregistrationProtection::CoolingDown(0xefef),
    ];
    (
        Image {
            id,
            name: "web server".into(),
            description: "an image".into(),
            owner,
            state: if full { ImageState::Disabled } else { ImageState::Available },
            machine,
            root_device_name: "/dev/xvda".into(),
            template: full.then_some(of),
            devices,
            launch_permissions: vec![Permission::All],
            product_codes: vec!["code 1".into(), "code 2".into()],
            tags: vec![tag],
            created_ms: 0xdddd,
            deprecation_ms: full.then_some(0xeeee),
            deregistration_protection: protection[usize::from(full)],
            source: full.then(|| ImageSource {
                region_id: RegionId([4; 16]),
                region: region.clone(),
                image_id: from,
                owner,
            }),
            source_instance: full.then_some(ran),
            predecessor: full.then_some(before),
            client_token: full.then_some(token),
        },
        second::Image {
            id: id2,
            name: "web server".into(),
            description: "an image".into(),
            owner: owner2,
            state: if full { second::ImageState::Disabled } else { second::ImageState::Available },
            machine: machine2,
            root_device_name: "/dev/xvda".into(),
            template: full.then_some(of2),
            devices: devices2,
            launch_permissions: vec![second::Permission::All],
            product_codes: vec!["code 1".into(), "code 2".into()],
            tags: vec![tag2],
            created: 0xdddd,
            deprecation: full.then_some(0xeeee),
            deregistration_protection: protection2[usize::from(full)].clone(),
            source: full.then(|| second::ImageSource {
                region_id: [4; 16],
                region: region.clone(),
                image_id: from2,
                owner: owner2,
            }),
            source_instance: full.then_some(ran2),
            predecessor: full.then_some(before2),
            client_token: full.then_some(token2),
        },
    )
}

pub fn local_disks() -> (Vec<LocalDisk>, Vec<second::LocalDisk>) {
    let (of, of2) = id("tmpl-", 0x1d);
    let path = |name: &str| format!("/srv/i/{name}.raw");
    let disk = |device: &str, volume_bytes, template_id, ephemeral| LocalDisk {
        device_name: device.into(),
        volume_bytes,
        template_id,
        ephemeral,
        path: path(device),
    };
    let disk2 = |device: &str, volume_bytes, template_id, ephemeral| second::LocalDisk {
        device_name: device.into(),
        volume_bytes,
        template_id,
        ephemeral,
        path: path(device),
    };
    (
        vec![disk("sda1", 0x1e1e, Some(of), None), disk("sdb", 0x1f1f, None, Some(2))],
        vec![disk2("sda1", 0x1e1e, Some(of2), None), disk2("sdb", 0x1f1f, None, Some(2))],
    )
}

pub fn instance(number: u128, full: bool) -> (Instance, second::Instance) {
    let ((id, id2), (image, image2), (owner, owner2)) =
        (id("i-", number), self::id("ami-", 0x1b), account(2));
    let ((together, together2), (tag, tag2)) = (self::id("r-", 0x1a1b), tag("k", "v"));
    let ((machine, machine2), (token, token2)) = (machine(!full), token("run"));
    let (disks, disks2) = if full { local_disks() } else { Default::default() };
    (
        Instance {
            id,
            owner,
            image_id: image,
            reservation_id: together,
            launch_index: 0x1b1b,
            state: if full { InstanceState::ShuttingDown } else { InstanceState::Terminated },
            launched_ms: 0x1c1c,
            terminated_ms: (!full).then_some(0x1d1d),
            machine,
            product_codes: vec!["code 3".into()],
            root_device_name: "/dev/sda1".into(),
            local_disks: disks,
            path: "/srv/i".into(),
            tags: vec![tag],
            client_token: full.then_some(token),
        },
        second::Instance {
            id: id2,
            owner: owner2,
            image_id: image2,
            reservation_id: together2,
            launch_index: 0x1b1b,
            state: if full { second::InstanceState::ShuttingDown } else { second::InstanceState::Terminated },
            launched: 0x1c1c,
            terminated: (!full).then_some(0x1d1d),
            machine: machine2,
            product_codes: vec!["code 3".into()],
            root_device_name: "/dev/sda1".into(),
            local_disks: disks2,
            path: "/srv/i".into(),
            tags: vec![tag2],
            client_token: full.then_some(token2),
        },
    )
}

pub fn attachment() -> (Attachment, second::Attachment) {
    let ((of, of2), device_name) = (id("i-", 0x1a), "/dev/sdf".to_owned());
    (
        Attachment {
            instance_id: of,
            device_name: device_name.clone(),
            delete_on_termination: true,
            attached_ms: 0x2f2f,
        },
        second::Attachment { instance_id: of2, device_name, delete_on_termination: true, attached: 0x2f2f },
    )
}

pub fn disk(number: u128, full: bool) -> (Volume, second::Volume) {
    let ((id, id2), (on, on2), (owner, owner2)) = (id("vol-", number), self::id("snap-", 0x2b), account(3));
    let ((at, at2), (token, token2)) = (attachment(), token("volume"));
    (
        Volume {
            id,
            owner,
            volume_bytes: 0x2c2c,
            volume_type: VolumeType::Io1,
            iops: full.then_some(0x2c2d),
            snapshot_id: full.then_some(on),
            created_ms: 0x2d2d,
            attachment: full.then_some(at),
            path: "/srv/i/sda1.raw".into(),
            tags: vec![],
            client_token: full.then_some(token),
        },
        second::Volume {
            id: id2,
            owner: owner2,
            volume_bytes: 0x2c2c,
            volume_type: second::VolumeType::Io1,
            iops: full.then_some(0x2c2d),
            snapshot_id: full.then_some(on2),
            created: 0x2d2d,
            attachment: full.then_some(at2),
            path: "/srv/i/sda1.raw".into(),
            tags: vec![],
            client_token: full.then_some(token2),
        },
    )
}

pub fn rule(number: u128) -> (RetentionRule, second::RetentionRule) {
    let ((id, id2), (tag, tag2)) = (id("rule-", number), tag("keep", "long"));
    let is_image = number.is_multiple_of(2);
    let resource = if is_image { Resource::Image } else { Resource::Snapshot };
    let resource2 = if is_image { second::Resource::Image } else { second::Resource::Snapshot };
    (
        RetentionRule { id, resource, days: 0x0102, tags: vec![tag] },
        second::RetentionRule { id: id2, resource: resource2, days: 0x0102, tags: vec![tag2] },
    )
}

pub fn settings() -> (AccountSettings, second::AccountSettings) {
    let [(one, one2), (other, other2)] = [rule(0x51), rule(0x50)];
    let alias = Some("the-provider".to_owned());
    (
        AccountSettings {
            alias: alias.clone(),
            block_public_images: true,
            block_public_snapshots: false,
            retention_rules: vec![one, other],
        },
        second::AccountSettings {
            alias,
            block_public_images: true,
            block_public_snapshots: false,
            retention_rules: vec![one2, other2],
        },
    )
}

pub fn stay() -> (BinStay, second::BinStay) {
    let (since_ms, until_ms) = (0x6161, 0x6262);
    (BinStay { since_ms, until_ms }, second::BinStay { since: since_ms, until: until_ms })
}

type Pairs = Vec<(Op, second::Op)>;

/// Operations that make things.
pub fn makings() -> Pairs {
    let ((pack, pack2), (segment, segment2)) = (pack_record(), segment_record());
    let ((taken, taken2), (bare, bare2)) = (snapshot(0x1_2345_6789_abcd_ef01, true), snapshot(0x2b, false));
    let ((made, made2), (plain, plain2)) = (image(0xf_ffff_ffff_ffff_ffff, true), image(0x31, false));
    let ((run, run2), (gone, gone2)) = (instance(0x1a, true), instance(0x1b, false));
    let ((on, on2), (empty, empty2), (root, root2)) = (disk(0x2a, true), disk(0x2e, false), template(0x1d));
    let packs = vec![pack.name, PackName { number: 1, ..pack.name }];
    let packs2 = vec![name(u64::MAX - 1), name(1)];
    let alone = Op::CreateSnapshot { snapshot: Box::new(bare), packs: vec![] };
    let taken = Op::CreateSnapshot { snapshot: Box::new(taken), packs: packs.clone() };
    let volumes = vec![on.clone(), empty];
    vec![
        (Op::NoOp, second::Op::NoOp),
        (Op::RegisterPack(pack), second::Op::RegisterPack(pack2)),
        (Op::RegisterSegment(segment), second::Op::RegisterSegment(segment2)),
        (taken, second::Op::CreateSnapshot(Box::new(taken2), packs2.clone())),
        (alone, second::Op::CreateSnapshot(Box::new(bare2), vec![])),
        (Op::RegisterImage(Box::new(made)), second::Op::RegisterImage(Box::new(made2))),
        (Op::RegisterImage(Box::new(plain)), second::Op::RegisterImage(Box::new(plain2))),
        (
            Op::RunInstance { instance: Box::new(run), volumes },
            second::Op::RunInstance(Box::new(run2), vec![on2.clone(), empty2]),
        ),
        (
            Op::RunInstance { instance: Box::new(gone), volumes: vec![] },
            second::Op::RunInstance(Box::new(gone2), vec![]),
        ),
        (
            Op::CreateTemplate { template: Box::new(root), packs },
            second::Op::CreateTemplate(Box::new(root2), packs2),
        ),
        (Op::CreateVolume(Box::new(on)), second::Op::CreateVolume(Box::new(on2))),
    ]
}

/// Operations that end things, or bring them back.
pub fn endings() -> Pairs {
    let ((snap, snap2), (image, image2)) = (id("snap-", 0x66), id("ami-", 0x67));
    let ((volume, volume2), (instance, instance2)) = (id("vol-", 0x68), id("i-", 0x69));
    let (stay, stay2) = stay();
    let at_ms = 0x6363;
    vec![
        (Op::DeleteSnapshot { id: snap, bin: None }, second::Op::DeleteSnapshot(snap2, None)),
        (
            Op::DeleteSnapshot { id: snap, bin: Some(stay) },
            second::Op::DeleteSnapshot(snap2, Some(stay2.clone())),
        ),
        (Op::DeregisterImage { id: image, bin: None }, second::Op::DeregisterImage(image2, None)),
        (
            Op::DeregisterImage { id: image, bin: Some(stay) },
            second::Op::DeregisterImage(image2, Some(stay2)),
        ),
        (Op::RestoreImage { id: image }, second::Op::RestoreImage(image2)),
        (Op::RestoreSnapshot { id: snap }, second::Op::RestoreSnapshot(snap2)),
        (Op::ExpireImage { id: image }, second::Op::ExpireImage(image2)),
        (Op::ExpireSnapshot { id: snap }, second::Op::ExpireSnapshot(snap2)),
        (Op::DeleteVolume { id: volume }, second::Op::DeleteVolume(volume2)),
        (Op::TerminateInstance { id: instance, at_ms }, second::Op::TerminateInstance(instance2, at_ms)),
        (Op::ForgetInstance { id: instance }, second::Op::ForgetInstance(instance2)),
    ]
}

/// Operations of collection and repair.
pub fn upkeep() -> Pairs {
    let (at_ms, pack) = (0x6464, |number| PackName { session: SessionId(SESSION), number });
    let ((taken, taken2), sessions) =
        (snapshot(0x2b, false), vec![SessionId(SESSION), SessionId([0xfe; 16])]);
    let (packs, packs2) = (vec![pack(3), pack(1)], vec![name(3), name(1)]);
    vec![
        (Op::CondemnPacks { packs: packs.clone(), at_ms }, second::Op::CondemnPacks(packs2.clone(), at_ms)),
        (Op::SweepPacks { packs: packs.clone() }, second::Op::SweepPacks(packs2.clone())),
        (Op::ForgetPacks { packs: packs.clone() }, second::Op::ForgetPacks(packs2.clone())),
        (Op::QuarantinePacks { packs, at_ms }, second::Op::QuarantinePacks(packs2, at_ms)),
        (Op::FenceSessions { sessions }, second::Op::FenceSessions(vec![SESSION, [0xfe; 16]])),
        (
            Op::ReplaceManifest {
                lost: ManifestName { session: SessionId(SESSION), number: 77 },
                by: taken.manifest,
            },
            second::Op::ReplaceManifest(name(77), taken2.manifest),
        ),
        (
            Op::RebasePack { pack: pack(6), bases: vec![pack(5), pack(2)] },
            second::Op::RebasePack(name(6), vec![name(5), name(2)]),
        ),
    ]
}

pub fn image_changes() -> Vec<(ImageChange, second::ImageChange)> {
    use DeregistrationProtection as Protection;
    use second::{DeregistrationProtection as Protection2, ImageChange as Change2};
    let (friend, friend2) = account(0x71);
    let (permissions, permissions2) = permissions(friend, friend2);
    let ((tag, tag2), (words, words2)) = (tag("a", "b"), text("of <it>"));
    let protections = [
        (Protection::Disabled, Protection2::Disabled),
        (Protection::Enabled, Protection2::Enabled),
        (Protection::EnabledWithCooldown, Protection2::EnabledWithCooldown),
        (Protection::CoolingDown { until_ms: 0x7272 }, Protection2::CoolingDown(0x7272)),
    ];
    let mut changes = vec![
        (ImageChange::LaunchPermissions(permissions), Change2::LaunchPermissions(permissions2)),
        (ImageChange::Tags(vec![tag]), Change2::Tags(vec![tag2])),
        (ImageChange::Deprecation(Some(60_000)), Change2::Deprecation(Some(60_000))),
        (ImageChange::Deprecation(None), Change2::Deprecation(None)),
        (ImageChange::Disable, Change2::Disable),
        (ImageChange::Enable, Change2::Enable),
        (ImageChange::Description(words.clone()), Change2::Description(words2.clone())),
        (ImageChange::ProductCodes(vec![words]), Change2::ProductCodes(vec![words2])),
    ];
    changes.extend(protections.map(|(p, p2)| (ImageChange::Protection(p), Change2::Protection(p2))));
    changes
}

pub fn permissions(
    friend: AccountId,
    friend2: second::AccountId,
) -> (Vec<Permission>, Vec<second::Permission>) {
    (
        vec![Permission::All, Permission::Account(friend)],
        vec![second::Permission::All, second::Permission::Account(friend2)],
    )
}

pub fn account_changes() -> Vec<(AccountChange, second::AccountChange)> {
    use second::AccountChange as Change2;
    let ((rule, rule2), (gone, gone2), (alias, alias2)) = (rule(0x73), id("rule-", 0x74), text("lab"));
    vec![
        (AccountChange::Alias(Some(alias)), Change2::Alias(Some(alias2))),
        (AccountChange::Alias(None), Change2::Alias(None)),
        (AccountChange::BlockPublicImages(true), Change2::BlockPublicImages(true)),
        (AccountChange::BlockPublicSnapshots(false), Change2::BlockPublicSnapshots(false)),
        (AccountChange::AddRule(rule), Change2::AddRule(rule2)),
        (AccountChange::RemoveRule(gone), Change2::RemoveRule(gone2)),
    ]
}

/// Every change of every kind.
pub fn changes() -> Pairs {
    use second::{InstanceChange as Run2, Op as Op2, SnapshotChange as Snap2, VolumeChange as Vol2};
    let ((of, of2), (snap, snap2), (asker, asker2)) = (id("ami-", 7), id("snap-", 8), account(9));
    let ((volume, volume2), (run, run2)) = (id("vol-", 10), id("i-", 11));
    let (permissions, permissions2) = permissions(asker, asker2);
    let ((tag, tag2), (at, at2)) = (tag("c", "d"), attachment());
    let (tags, tags2) = (vec![tag], vec![tag2]);
    let mut pairs = Pairs::new();
    for (change, change2) in image_changes() {
        pairs.push((Op::ModifyImage { id: of, change }, Op2::ModifyImage(of2, change2)));
    }
    for (change, change2) in [
        (SnapshotChange::CreateVolumePermissions(permissions), Snap2::CreateVolumePermissions(permissions2)),
        (SnapshotChange::Tags(tags.clone()), Snap2::Tags(tags2.clone())),
    ] {
        pairs.push((Op::ModifySnapshot { id: snap, change }, Op2::ModifySnapshot(snap2, change2)));
    }
    for (change, change2) in account_changes() {
        pairs.push((Op::ModifyAccount { account: asker, change }, Op2::ModifyAccount(asker2, change2)));
    }
    for (change, change2) in [
        (VolumeChange::Attachment(Some(at)), Vol2::Attachment(Some(at2))),
        (VolumeChange::Attachment(None), Vol2::Attachment(None)),
        (VolumeChange::Tags(tags.clone()), Vol2::Tags(tags2.clone())),
    ] {
        pairs.push((Op::ModifyVolume { id: volume, change }, Op2::ModifyVolume(volume2, change2)));
    }
    for (change, change2) in [
        (InstanceChange::Start, Run2::Start),
        (InstanceChange::Stop, Run2::Stop),
        (InstanceChange::Tags(tags), Run2::Tags(tags2)),
    ] {
        pairs.push((Op::ModifyInstance { id: run, change }, Op2::ModifyInstance(run2, change2)));
    }
    pairs
}

/// Every operation, with every change. They are to be read, not to be applied.
pub fn operations() -> (Vec<Op>, Vec<second::Op>) {
    makings().into_iter().chain(endings()).chain(changes()).chain(upkeep()).unzip()
}

/// The numbers of an operation and of the change in it: what does not compile any more when there is a new
/// one, which then must come into [`operations`].
pub fn numbers(op: &Op) -> (usize, usize) {
    match op {
        Op::NoOp => (0, 0),
        Op::RegisterPack(_) => (1, 0),
        Op::RegisterSegment(_) => (2, 0),
        Op::CreateSnapshot { .. } => (3, 0),
        Op::DeleteSnapshot { .. } => (4, 0),
        Op::RegisterImage(_) => (5, 0),
        Op::DeregisterImage { .. } => (6, 0),
        Op::RunInstance { .. } => (7, 0),
        Op::ModifyImage { change, .. } => (8, image_change(change)),
        Op::ModifySnapshot { change: SnapshotChange::CreateVolumePermissions(_), .. } => (9, 0),
        Op::ModifySnapshot { change: SnapshotChange::Tags(_), .. } => (9, 1),
        Op::CreateTemplate { .. } => (10, 0),
        Op::RestoreImage { .. } => (11, 0),
        Op::RestoreSnapshot { .. } => (12, 0),
        Op::ExpireImage { .. } => (13, 0),
        Op::ExpireSnapshot { .. } => (14, 0),
        Op::ModifyAccount { change, .. } => (15, account_change(change)),
        Op::CreateVolume(_) => (16, 0),
        Op::DeleteVolume { .. } => (17, 0),
        Op::ModifyVolume { change: VolumeChange::Attachment(_), .. } => (18, 0),
        Op::ModifyVolume { change: VolumeChange::Tags(_), .. } => (18, 1),
        Op::ModifyInstance { change: InstanceChange::Start, .. } => (19, 0),
        Op::ModifyInstance { change: InstanceChange::Stop, .. } => (19, 1),
        Op::ModifyInstance { change: InstanceChange::Tags(_), .. } => (19, 2),
        Op::TerminateInstance { .. } => (20, 0),
        Op::ForgetInstance { .. } => (21, 0),
        Op::CondemnPacks { .. } => (22, 0),
        Op::SweepPacks { .. } => (23, 0),
        Op::ForgetPacks { .. } => (24, 0),
        Op::QuarantinePacks { .. } => (25, 0),
        Op::FenceSessions { .. } => (26, 0),
        Op::ReplaceManifest { .. } => (27, 0),
        Op::RebasePack { .. } => (28, 0),
    }
}

/// How many changes each operation of [`numbers`] has.
pub const CHANGES: [usize; 29] =
    [1, 1, 1, 1, 1, 1, 1, 1, 8, 2, 1, 1, 1, 1, 1, 5, 1, 1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1];

pub fn image_change(change: &ImageChange) -> usize {
    match change {
        ImageChange::LaunchPermissions(_) => 0,
        ImageChange::Tags(_) => 1,
        ImageChange::Deprecation(_) => 2,
        ImageChange::Disable => 3,
        ImageChange::Enable => 4,
        ImageChange::Protection(_) => 5,
        ImageChange::Description(_) => 6,
        ImageChange::ProductCodes(_) => 7,
    }
}

pub fn account_change(change: &AccountChange) -> usize {
    match change {
        AccountChange::Alias(_) => 0,
        AccountChange::BlockPublicImages(_) => 1,
        AccountChange::BlockPublicSnapshots(_) => 2,
        AccountChange::AddRule(_) => 3,
        AccountChange::RemoveRule(_) => 4,
    }
}

pub fn stored_record(body: Body, body2: second::Body) -> (StoredRecord, second::StoredRecord) {
    let (account, account2) = account(12);
    let (sequence, time) = (0x0102_0304_0506_0708, 0x0001_9abc_def0_0000);
    (
        StoredRecord {
            sequence,
            previous: ObjectHash([0x9e; 32]),
            nonce: *b"nonce of 16 byte",
            time_ms: time,
            author: Author { account, session: SessionId(SESSION) },
            body,
        },
        second::StoredRecord {
            sequence,
            previous: [0x9e; 32],
            nonce: *b"nonce of 16 byte",
            time,
            author: second::Author { account: account2, session: SESSION },
            body: body2,
        },
    )
}

pub fn inline_record() -> (StoredRecord, second::StoredRecord) {
    let (operations, operations2) = operations();
    stored_record(Body::Inline(operations), second::Body::Inline(operations2))
}

pub fn spilled_record() -> (StoredRecord, second::StoredRecord) {
    let list = ListName { session: SessionId(SESSION), number: 1_000_000 };
    let hash = [0x11; 32];
    stored_record(
        Body::Spilled { name: list, hash: ObjectHash(hash) },
        second::Body::Spilled(name(1_000_000), hash),
    )
}

/// Tables that no operations would lead to, but with everything in them that there can be.
pub fn catalogue() -> (Checkpoint, second::Checkpoint) {
    let ((record, record2), (segment, segment2)) = (pack_record(), segment_record());
    let mut both =
        (Catalog::default(), second::value::<second::Catalog>(&[0; 14 * 8]).expect("an empty catalogue"));
    let (ours, theirs) = (&mut both.0, &mut both.1);
    (ours.sequence, theirs.sequence) = (64, 64);
    // 256 stands before 3 in bytes and after it in numbers.
    let states = [
        (256, PackState::Live),
        (3, PackState::Condemned { since_ms: 77 }),
        (4, PackState::Sweeping),
        (5, PackState::Quarantined { since_ms: 78 }),
    ];
    let states2 = [
        second::PackState::Live,
        second::PackState::Condemned(77),
        second::PackState::Sweeping,
        second::PackState::Quarantined(78),
    ];
    for ((number, state), state2) in states.into_iter().zip(states2) {
        let record = PackRecord { name: PackName { number, ..record.name }, ..record.clone() };
        let record2 = second::PackRecord { name: name(number), ..record2.clone() };
        Arc::make_mut(&mut ours.packs).insert(record.name, Pack { record, state });
        theirs.packs.insert(name(number), second::Pack { record: record2, state: state2 });
    }
    Arc::make_mut(&mut ours.segments).insert(segment.name, segment);
    theirs.segments.insert(segment2.name.clone(), segment2);
    for (number, full) in [(0x100, true), (0x2, false)] {
        let (one, one2) = snapshot(number, full);
        Arc::make_mut(&mut ours.snapshots).insert(one.id, one);
        theirs.snapshots.insert(one2.id, one2);
        let (one, one2) = image(number, full);
        Arc::make_mut(&mut ours.images).insert(one.id, one);
        theirs.images.insert(one2.id, one2);
        let (one, one2) = disk(number, full);
        Arc::make_mut(&mut ours.volumes).insert(one.id, one);
        theirs.volumes.insert(one2.id, one2);
        let (one, one2) = instance(number, full);
        Arc::make_mut(&mut ours.instances).insert(one.id, one);
        theirs.instances.insert(one2.id, one2);
        let (one, one2) = template(number);
        Arc::make_mut(&mut ours.templates).insert(one.id, one);
        theirs.templates.insert(one2.id, one2);
    }
    let (kept, kept2) = snapshot(0x2b, true);
    Arc::make_mut(&mut ours.retained_snapshots).insert(kept.id, kept);
    theirs.retained_snapshots.insert(kept2.id, kept2);
    for session in [[9; 16], [7; 16]] {
        Arc::make_mut(&mut ours.fenced_sessions).insert(SessionId(session));
        theirs.fenced_sessions.insert(session);
    }
    accounts_and_bin(ours, theirs);
    let (ours, theirs) = both;
    let record_hash = [0xc4; 32];
    (
        // What follows from the tables is not written, and made again by whoever reads them.
        Checkpoint { record_hash: ObjectHash(record_hash), catalog: ours.with_derived() },
        second::Checkpoint { record_hash, catalog: theirs },
    )
}

pub fn accounts_and_bin(ours: &mut Catalog, theirs: &mut second::Catalog) {
    let (known, known2) = settings();
    for number in [0x200, 0x3] {
        let (account, account2) = account(number);
        Arc::make_mut(&mut ours.accounts).insert(account, known.clone());
        theirs.accounts.insert(account2, known2.clone());
    }
    let (stay, stay2) = stay();
    let ((item, item2), (other, other2)) = (image(0x2c, true), snapshot(0x2d, false));
    Arc::make_mut(&mut ours.binned_images).insert(item.id, Binned { item, stay });
    theirs.binned_images.insert(item2.id, second::Binned { item: item2, stay: stay2.clone() });
    Arc::make_mut(&mut ours.binned_snapshots).insert(other.id, Binned { item: other, stay });
    theirs.binned_snapshots.insert(other2.id, second::Binned { item: other2, stay: stay2 });
    // In the order in which they went, which is not that of their ids.
    for number in [0x2c, 0x1] {
        let ((id, id2), (owner, owner2)) = (id("ami-", number), account(6));
        Arc::make_mut(&mut ours.deregistered).push_back(Deregistered { id, owner });
        theirs.deregistered.push(second::Deregistered { id: id2, owner: owner2 });
    }
}

/// The chunks of the golden pack: a block that does not compress, two that do, and two that resemble those.
pub fn chunks() -> [Vec<u8>; 3] {
    let noise = (0..128_u32).flat_map(|at| *blake3::hash(&at.to_le_bytes()).as_bytes()).collect();
    let text: Vec<u8> = b"the same words again and again\n".iter().copied().cycle().take(2 * 4096).collect();
    let mut changed = text.clone();
    changed[5000..5007].copy_from_slice(b"changed");
    [noise, text, changed]
}

/// The golden pack from given bodies of its three frames.
pub fn encode_pack(bodies: [Vec<u8>; 3]) -> Vec<u8> {
    let header =
        pack::encode_header(RegionId(REGION), PackName { session: SessionId(SESSION), number: 0x0a0b_0c0d });
    let mut bytes = header.to_vec();
    let mut entries = Vec::new();
    for ((chunk, body), codec) in
        chunks().into_iter().zip(bodies).zip([Codec::Raw, Codec::Zstd, Codec::Delta])
    {
        let raw_blocks = u16::try_from(chunk.len() / 4096).expect("a few blocks");
        let [offset, stored_len] = [bytes.len(), body.len()].map(|n| u32::try_from(n).expect("a small pack"));
        let frame = Frame { codec, raw_blocks, body };
        bytes.extend(pack::encode_frame_header(&frame).expect("a frame"));
        bytes.extend(frame.body);
        entries.push(Entry { id: chunk_id(&chunk), pack: 0, offset, stored_len, raw_blocks, codec });
    }
    let [_, base, delta] = chunks().map(|chunk| chunk_id(&chunk));
    let mut deltas = [(delta, base)];
    let end = u32::try_from(bytes.len()).expect("a small pack");
    bytes.extend(pack::encode_trailer(&header, &mut entries, &mut deltas, end, 12).expect("a trailer").0);
    bytes
}

/// Entries for three pages, the last of which is not full, and the pack table.
pub fn segment_parts() -> (Vec<Entry>, Vec<second::Entry>, Vec<PackName>) {
    let mut entries = Vec::new();
    for at in 0..200_u32 {
        let mut id = [0xab; 32];
        id[..4].copy_from_slice(&(at * 0x0101_0101).to_be_bytes());
        let codec = if at % 3 == 0 { Codec::Raw } else { Codec::Zstd };
        let (raw_blocks, stored_len) = (u16::try_from(at + 1).expect("200 at most"), 1000 + at);
        entries.push(Entry {
            id: ChunkId(id),
            pack: at % 3,
            offset: 64 + at * 5000,
            stored_len,
            raw_blocks,
            codec,
        });
    }
    let entries2 = entries.iter().map(|entry| second::Entry {
        id: entry.id.0,
        pack: entry.pack,
        offset: entry.offset,
        stored: entry.stored_len,
        blocks: entry.raw_blocks,
        codec: entry.codec.number(),
        flags: 0,
    });
    let entries2 = entries2.collect();
    // Ascending as numbers, which their bytes do not.
    let pack = |session, number| PackName { session: SessionId(session), number };
    let packs = vec![pack([1; 16], 2), pack([1; 16], 256), pack(SESSION, 1)];
    (entries, entries2, packs)
}

pub fn encode_segment(filter_pages: u32) -> Vec<u8> {
    let (entries, _, packs) = segment_parts();
    let mut writer = SegmentWriter::new(entries.len()).with_filter_pages(filter_pages);
    entries.into_iter().for_each(|entry| writer.push(entry).expect("ids ascend"));
    writer.finish(RegionId(REGION), &packs).expect("a segment").0
}

pub fn block_map() -> (BlockMap, Vec<second::ChunkRef>) {
    let places = [(0, 256, 1), (256, 1, 2), (300, 5, 1), (0x0000_ffff_0000_0000, 3, 4)];
    let ours =
        places.map(|(start_block, blocks, id)| ChunkRef { start_block, blocks, id: ChunkId([id; 32]) });
    let theirs = places.map(|(first, blocks, id)| second::ChunkRef { first, blocks, id: [id; 32] });
    let volume_bytes = (0x0000_ffff_0000_0002 << 12) + 1;
    (BlockMap::new(volume_bytes, ours.to_vec()).expect("a map"), theirs.to_vec())
}

/// Every escape that a manifest has, and letters that have none.
pub fn bundle_attributes() -> BTreeMap<String, String> {
    let pairs = [("Name", "Zürich \"1\" \\ / \u{7f}"), ("", ""), ("\u{0}\u{1f}", "\u{8}\t\n\u{b}\u{c}\r")];
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The golden bundle's parts: number, bytes, and whether zstd's own checksum is there. One is all zeros, which
/// no writer would make.
pub fn bundle_parts() -> [(u64, Vec<u8>, bool); 4] {
    let [noise, text, _] = chunks();
    [
        (0, noise, true),
        (2, text[..4096].to_vec(), false),
        (3, vec![0; 4096], true),
        (5, b"0123456789".to_vec(), true),
    ]
}

/// The golden bundle's volume.
pub fn bundle_volume() -> Vec<u8> {
    let mut volume = vec![0; 5 * 4096 + 10];
    for (number, raw, _) in bundle_parts() {
        let begin = usize::try_from(number).expect("a small number") * 4096;
        volume[begin..begin + raw.len()].copy_from_slice(&raw);
    }
    volume
}
