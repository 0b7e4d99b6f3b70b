"""imgstore's JSON documents in EC2's field names: the table, key by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Document = Mapping[str, Any]

GIB = 1 << 30


def same(value: Any) -> Any:
    return value


def always(value: Any) -> Callable[[Document], Any]:
    """For what is so of everything in imgstore, and said by EC2."""
    return lambda _: value


def gib(size: int) -> int:
    """EC2 counts volumes in GiB; a started one counts."""
    return -(-size // GIB)


def platform(word: str) -> str:
    """EC2 answers `windows`, as imgstore does, but its model has `Windows` as the only word."""
    return {"windows": "Windows"}[word]


def instance_state(word: str) -> Document:
    """EC2 has a number beside each state."""
    codes = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
    return {"Code": codes[word], "Name": word}


def product_codes(codes: Iterable[str]) -> list[Document]:
    """EC2 has two kinds; the other one, devpay, is of the past."""
    return [{"ProductCodeId": code, "ProductCodeType": "marketplace"} for code in codes]


def user_initiated(time: str) -> str:
    """EC2 tells the time of termination in a sentence only."""
    return f"User initiated ({time[:10]} {time[11:19]} GMT)"


def location(image: Document) -> str:
    return f"{image['owner_id']}/{image['name']}"


def progress(snapshot: Document) -> str:
    return "100%" if snapshot["state"] == "completed" else "0%"


@dataclass(frozen=True)
class To:
    """Where a key's value goes: EC2's member, and what the value becomes there."""

    member: str
    convert: Callable[[Any], Any] = same
    items: Table | None = None  # The value is a list of documents.


@dataclass(frozen=True)
class Part:
    """A structure of EC2's whose members stand, with us, among those of the document around it."""

    table: Table
    is_there: Callable[[Document], bool]
    in_list: bool = False


@dataclass(frozen=True)
class Table:
    """How one kind of document becomes one of EC2's structures."""

    name: str
    to: Mapping[str, To]
    own: Mapping[str, str] = field(default_factory=dict)  # imgstore's own keys, and why EC2 has none such.
    made: Mapping[str, Callable[[Document], Any]] = field(default_factory=dict)  # Members of no one key.
    parts: Mapping[str, Part] = field(default_factory=dict)

    def keys(self) -> set[str]:
        """Every key that such a document can have."""
        of_parts = (part.table.keys() for part in self.parts.values())
        return set(self.to).union(self.own, *of_parts)


TAG = Table("tag", to={"key": To("Key"), "value": To("Value")})

MACHINE = {
    "architecture": To("Architecture"),
    "platform": To("Platform", platform),
    "virtualization_type": To("VirtualizationType"),
    "boot_mode": To("BootMode"),
    "tpm_support": To("TpmSupport"),
    "ena_support": To("EnaSupport"),
    "kernel_id": To("KernelId"),
    "ramdisk_id": To("RamdiskId"),
}

DEVICE_EBS = Table(
    "device",
    to={
        "snapshot_id": To("SnapshotId"),
        "volume_bytes": To("VolumeSize", gib),
        "volume_type": To("VolumeType"),
        "iops": To("Iops"),
        "encrypted": To("Encrypted"),
        "delete_on_termination": To("DeleteOnTermination"),
    },
)

DEVICE = Table(
    "device",
    to={"device_name": To("DeviceName"), "virtual_name": To("VirtualName")},
    parts={"Ebs": Part(DEVICE_EBS, lambda device: "volume_bytes" in device)},
)

IMAGE = Table(
    "image",
    to={
        **MACHINE,
        "imds_support": To("ImdsSupport"),
        "image_id": To("ImageId"),
        "name": To("Name"),
        "description": To("Description"),
        "owner_id": To("OwnerId"),
        "owner_alias": To("ImageOwnerAlias"),
        "state": To("State"),
        "public": To("Public"),
        "root_device_name": To("RootDeviceName"),
        "root_device_type": To("RootDeviceType"),
        "devices": To("BlockDeviceMappings", items=DEVICE),
        "product_codes": To("ProductCodes", product_codes),
        "created": To("CreationDate"),
        "deprecation_time": To("DeprecationTime"),
        "deregistration_protection": To("DeregistrationProtection"),
        "tags": To("Tags", items=TAG),
        "source_region": To("SourceImageRegion"),
        "source_image_id": To("SourceImageId"),
        "source_instance_id": To("SourceInstanceId"),
    },
    own={
        "launch_permissions": "EC2 answers them to DescribeImageAttribute",
        "template_id": "EC2 has a path in S3, as ImageLocation",
        "template_bytes": "EC2 does not tell the size of an instance-store root device",
        "predecessor_image_id": "EC2 does not know versions",
    },
    made={"ImageLocation": location, "ImageType": always("machine")},
)

SNAPSHOT = Table(
    "snapshot",
    to={
        "snapshot_id": To("SnapshotId"),
        "owner_id": To("OwnerId"),
        "owner_alias": To("OwnerAlias"),
        "description": To("Description"),
        "state": To("State"),
        "progress": To("Progress"),
        "encrypted": To("Encrypted"),
        "volume_bytes": To("VolumeSize", gib),
        "data_bytes": To("FullSnapshotSizeInBytes"),
        "created": To("StartTime"),
        "tags": To("Tags", items=TAG),
        "volume_id": To("VolumeId"),
    },
    own={
        "chunks": "how imgstore stores it",
        "parent_snapshot_id": "EC2 does not tell lineage",
        "source_region": "EC2 tells it in the description",
        "source_snapshot_id": "EC2 tells it in the description",
        "create_volume_permissions": "EC2 answers them to DescribeSnapshotAttribute",
    },
)

ATTACHMENT = Table(
    "volume",
    to={
        "volume_id": To("VolumeId"),
        "instance_id": To("InstanceId"),
        "device_name": To("Device"),
        "attached": To("AttachTime"),
        "delete_on_termination": To("DeleteOnTermination"),
    },
    made={"State": always("attached")},
)

VOLUME = Table(
    "volume",
    to={
        "volume_id": To("VolumeId"),
        "owner_id": To("OwnerId"),
        "volume_bytes": To("Size", gib),
        "volume_type": To("VolumeType"),
        "iops": To("Iops"),
        "snapshot_id": To("SnapshotId"),
        "state": To("State"),
        "created": To("CreateTime"),
        "tags": To("Tags", items=TAG),
        "encrypted": To("Encrypted"),
    },
    own={"path": "its disk file on this host"},
    parts={"Attachments": Part(ATTACHMENT, lambda volume: volume["instance_id"] is not None, in_list=True)},
)

INSTANCE_EBS = Table(
    "instance volume",
    to={
        "volume_id": To("VolumeId"),
        "attached": To("AttachTime"),
        "delete_on_termination": To("DeleteOnTermination"),
    },
    made={"Status": always("attached")},
)

# A volume, as it stands in its instance: EC2 tells there only how it is attached.
INSTANCE_VOLUME = Table(
    "instance volume",
    to={"device_name": To("DeviceName")},
    own={
        key: "EC2 answers it to DescribeVolumes"
        for key in VOLUME.keys() - {"device_name", "volume_id", "attached", "delete_on_termination"}
    },
    parts={"Ebs": Part(INSTANCE_EBS, always(True))},
)

INSTANCE = Table(
    "instance",
    to={
        **MACHINE,
        "instance_id": To("InstanceId"),
        "image_id": To("ImageId"),
        "launch_index": To("AmiLaunchIndex"),
        "client_token": To("ClientToken"),
        "state": To("State", instance_state),
        "launched": To("LaunchTime"),
        "terminated": To("StateTransitionReason", user_initiated),
        "root_device_name": To("RootDeviceName"),
        "root_device_type": To("RootDeviceType"),
        "product_codes": To("ProductCodes", product_codes),
        "tags": To("Tags", items=TAG),
        "volumes": To("BlockDeviceMappings", items=INSTANCE_VOLUME),
    },
    own={
        "imds_support": "EC2 makes MetadataOptions of it, and has a metadata service",
        "local_disks": "EC2 shows instance store volumes inside the guest only",
        "path": "its folder on this host",
    },
)

# EC2 answers instances by the launch that made them.
RESERVATION = Table(
    "instance",
    to={"reservation_id": To("ReservationId"), "owner_id": To("OwnerId")},
    parts={"Instances": Part(INSTANCE, always(True), in_list=True)},
)


def by_reservation(reservations: Iterable[Document]) -> list[Document]:
    """Reservations of one instance each, put together."""
    whole: dict[str, dict[str, Any]] = {}
    for one in reservations:
        instances = whole.setdefault(one["ReservationId"], {**one, "Instances": []})["Instances"]
        instances += one["Instances"]
    return list(whole.values())


@dataclass(frozen=True)
class List:
    """A list command: the operation whose answer it is, the member that holds the items, and their table."""

    operation: str
    member: str
    table: Table
    gather: Callable[[Iterable[Document]], list[Document]] = list


LISTS = {
    "images": List("DescribeImages", "Images", IMAGE),
    "snapshots": List("DescribeSnapshots", "Snapshots", SNAPSHOT),
    "volumes": List("DescribeVolumes", "Volumes", VOLUME),
    "instances": List("DescribeInstances", "Reservations", RESERVATION, by_reservation),
}

TABLES = (TAG, DEVICE, IMAGE, SNAPSHOT, VOLUME, INSTANCE_VOLUME, RESERVATION)


class Translation:
    """Turns documents into EC2's structures, and remembers which keys had something."""

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        self._filled: defaultdict[str, set[str]] = defaultdict(set)

    def answer(self, command: str, document: Document) -> Document:
        """EC2's answer for a list as the command prints it."""
        kind = LISTS[command]
        self.unknown |= {f"{command}: {key}" for key in document.keys() - {command, "next_token"}}
        items = kind.gather(self._structure(kind.table, item) for item in document[command])
        token = document["next_token"]
        return {kind.member: items} | ({} if token is None else {"NextToken": token})

    def never_filled(self) -> list[str]:
        """Keys of the tables that no document had with a value."""
        missing = (f"{t.name}: {key}" for t in TABLES for key in t.keys() - self._filled[t.name])
        return sorted(missing)

    def _structure(self, table: Table, document: Document) -> Document:
        self.unknown |= {f"{table.name}: {key}" for key in document.keys() - table.keys()}
        self._filled[table.name] |= {key for key, value in document.items() if value not in (None, "", [])}
        return self._members(table, document)

    def _members(self, table: Table, document: Document) -> Document:
        """What is null with us is left out with EC2."""
        members = {
            to.member: self._value(to, document[key]) for key, to in table.to.items() if document.get(key) is not None
        }
        members |= {member: make(document) for member, make in table.made.items()}
        for member, part in table.parts.items():
            structures = [self._members(part.table, document)] if part.is_there(document) else []
            if part.in_list:
                members[member] = structures
            elif structures:
                members[member] = structures[0]
        return members

    def _value(self, to: To, value: Any) -> Any:
        if to.items is not None:
            return [self._structure(to.items, item) for item in value]
        return to.convert(value)
