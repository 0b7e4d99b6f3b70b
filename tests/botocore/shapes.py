"""Values against the shapes of botocore's service model of EC2, and on the wire as EC2 sends them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.parsers import ResponseParserFactory
from botocore.utils import parse_timestamp

RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"

# What texts look like that the model does not describe further.
FORMS = {
    "ImageId": r"ami-[0-9a-f]{17}",
    "SourceImageId": r"ami-[0-9a-f]{17}",
    "SnapshotId": r"snap-[0-9a-f]{17}",
    "VolumeId": r"vol-[0-9a-f]{17}",
    "InstanceId": r"i-[0-9a-f]{17}",
    "SourceInstanceId": r"i-[0-9a-f]{17}",
    "ReservationId": r"r-[0-9a-f]{17}",
    "KernelId": r"aki-[0-9a-f]{8}([0-9a-f]{9})?",
    "RamdiskId": r"ari-[0-9a-f]{8}([0-9a-f]{9})?",
    "OwnerId": r"[0-9]{12}",
    "ProductCodeId": r"[0-9A-Za-z-]{1,64}",
    "CreationDate": RFC3339,
    "DeprecationTime": RFC3339,
    "DeregistrationProtection": r"disabled|enabled-with(out)?-cooldown|disabling after cooldown on " + RFC3339,
    "Progress": r"\d{1,3}%",
    "VirtualName": r"ephemeral\d+",
}

INTEGERS = {"integer": 1 << 31, "long": 1 << 63}


def service_model() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("ec2", "service-2", "2016-11-15"))


class Validator:
    """Finds what does not fit a shape, and remembers which members of which structures it saw."""

    def __init__(self) -> None:
        self.seen: defaultdict[str, set[str]] = defaultdict(set)

    def faults(self, shape: Shape, value: Any, at: str) -> Iterator[str]:
        """`at` is the path to the value; its last name is the member that it is of."""
        match shape.type_name, value:
            case "structure", dict():
                yield from self._members(shape, value, at)
            case "list", list():
                for number, item in enumerate(value):
                    yield from self.faults(shape.member, item, f"{at}[{number}]")
            case "string", str():
                yield from text_faults(shape, value, at)
            case "boolean", bool():
                pass
            case ("integer" | "long") as kind, int() if not isinstance(value, bool):
                if not -INTEGERS[kind] <= value < INTEGERS[kind]:
                    yield f"{at}: {value} is out of range"
            case "timestamp", str() if re.fullmatch(RFC3339, value):
                parse_timestamp(value)
            case kind, _:
                yield f"{at}: {value!r} is no {kind}"

    def _members(self, shape: Shape, value: dict[str, Any], at: str) -> Iterator[str]:
        self.seen[shape.name].update(value)
        for member in shape.required_members:
            if member not in value:
                yield f"{at}: {member} is not there"
        for name, item in value.items():
            if name in shape.members:
                yield from self.faults(shape.members[name], item, f"{at}.{name}")
            else:
                yield f"{at}: {shape.name} has no member {name}"


def text_faults(shape: Shape, text: str, at: str) -> Iterator[str]:
    if shape.enum and text not in shape.enum:
        yield f"{at}: {text!r} is none of {', '.join(shape.enum)}"
    name = at.rpartition(".")[2]
    if name.endswith("Id") and name not in FORMS:
        yield f"{at}: FORMS does not say what such an id looks like"
    if not re.fullmatch(FORMS.get(name, r"(?s:.*)"), text):
        yield f"{at}: {text!r} does not look like {FORMS[name]}"


def to_xml(shape: Shape, name: str, value: Any) -> ET.Element:
    """A value as an element of EC2's query protocol."""
    element = ET.Element(name)
    match shape.type_name:
        case "structure":
            for member, item in value.items():
                of = shape.members[member]
                element.append(to_xml(of, of.serialization.get("name", member), item))
        case "list":
            element.extend(to_xml(shape.member, shape.member.serialization["name"], item) for item in value)
        case "boolean":
            element.text = "true" if value else "false"
        case _:
            element.text = str(value)
    return element


def millis(text: str) -> str:
    """A time as botocore's clients understand it, in imgstore's spelling."""
    return parse_timestamp(text).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def over_the_wire(shape: Shape, operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """What a client of botocore reads where EC2 sends this answer."""
    document = to_xml(shape, f"{operation}Response", answer)
    document.set("xmlns", "http://ec2.amazonaws.com/doc/2016-11-15/")
    ET.SubElement(document, "requestId").text = "59dbff89-35bd-4eac-99ed-be587EXAMPLE"
    factory = ResponseParserFactory()
    factory.set_parser_defaults(timestamp_parser=millis)
    body = ET.tostring(document, encoding="utf-8", xml_declaration=True)
    parsed = factory.create_parser("ec2").parse({"status_code": 200, "headers": {}, "body": body}, shape)
    del parsed["ResponseMetadata"]
    return parsed
