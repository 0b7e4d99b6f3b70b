"""Whether imgstore's JSON documents, in EC2's field names, are what a client of EC2 expects.

    check.py PROGRAM

Builds a small world with the program, translates what `images`, `snapshots`, `volumes` and `instances` print by the
table of fields.py, and holds it against botocore's service model of EC2: as values, and as XML that botocore reads.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from botocore import __version__ as botocore_version
from botocore.model import ServiceModel

from absent import ABSENT
from fields import LISTS, Translation
from shapes import Validator, over_the_wire, service_model
from world import OCCURRENCES, Home, Listing, build, listings

FAULTS_SHOWN = 10
WIRE_FAULT = "DescribeVolumes.Volumes[0].Size: sent '1', read 1"
ID_KEYS = {"images": "image_id", "snapshots": "snapshot_id", "volumes": "volume_id", "instances": "instance_id"}


class Score:
    """Counts checks; says what is wrong with those that fail."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def check(self, name: str, faults: Iterable[str]) -> bool:
        """Whether there are no faults."""
        found = list(faults)
        if not found:
            self.passed += 1
            print(f"ok: {name}")
            return True
        self.failed += 1
        more = [f"and {len(found) - FAULTS_SHOWN} more"] if len(found) > FAULTS_SHOWN else []
        print(f"FAILED: {name}", *found[:FAULTS_SHOWN], *more, sep="\n  ")
        return False


class Examination:
    """Of one world's lists."""

    def __init__(self, model: ServiceModel) -> None:
        self.model = model
        self.translation = Translation()
        self.validator = Validator()

    def output(self, command: str) -> Any:
        return self.model.operation_model(LISTS[command].operation).output_shape

    def answer(self, listing: Listing) -> dict[str, Any]:
        return dict(self.translation.answer(listing.command, listing.document))

    def value_faults(self, command: str, answer: dict[str, Any]) -> Iterator[str]:
        return self.validator.faults(self.output(command), answer, LISTS[command].operation)

    def wire_faults(self, command: str, answer: dict[str, Any]) -> Iterator[str]:
        read = over_the_wire(self.output(command), LISTS[command].operation, answer)
        yield from differences(answer, read, LISTS[command].operation)

    def key_faults(self) -> Iterator[str]:
        """imgstore's side: every key is known, and every known key occurs with a value."""
        yield from (f"{key} is not in fields.py" for key in sorted(self.translation.unknown))
        yield from (f"{key} never has a value" for key in self.translation.never_filled())

    def member_faults(self, absent: dict[str, dict[str, str]]) -> Iterator[str]:
        """EC2's side: every member of every structure occurs, or its absence has a reason, and not both."""
        for name in sorted(self.validator.seen.keys() | absent.keys()):
            members = set(self.model.shape_for(name).members)
            without = [member for names in absent.get(name, {}).values() for member in names.split()]
            seen = self.validator.seen[name]
            yield from (f"{name}.{member}: absent without a reason" for member in sorted(members - seen - {*without}))
            yield from (f"{name}.{member}: absent, but there" for member in sorted(seen & {*without}))
            yield from (f"{name}.{member}: EC2 has no such member" for member in sorted({*without} - members))
            yield from (f"{name}.{member}: two reasons" for member in sorted(without) if without.count(member) > 1)


def differences(sent: Any, read: Any, at: str) -> Iterator[str]:
    """Where what was read differs from what was sent."""
    if isinstance(sent, dict) and isinstance(read, dict) and sent.keys() == read.keys():
        for key in sent:
            yield from differences(sent[key], read[key], f"{at}.{key}")
    elif isinstance(sent, list) and isinstance(read, list) and len(sent) == len(read):
        for number, (one, other) in enumerate(zip(sent, read, strict=True)):
            yield from differences(one, other, f"{at}[{number}]")
    elif type(sent) is not type(read) or sent != read:
        yield f"{at}: sent {sent!r}, read {read!r}"


def show_faults(home: Home, listing: Listing) -> Iterator[str]:
    """`show` gives what the list gives, and the region; of an image its ancestry, too."""
    more = {"region", "ancestry"} if listing.command == "images" else {"region"}
    for item in listing.document[listing.command]:
        name = item[ID_KEYS[listing.command]]
        shown = home.json("show", name, account=listing.account, region=listing.region)
        if {key: value for key, value in shown.items() if key not in more} != item or not more <= shown.keys():
            yield f"show {name} differs from the list"


def volume_faults(listed: dict[str, Listing]) -> Iterator[str]:
    """An instance's volumes are those of the list of volumes."""
    volumes = {volume["volume_id"]: volume for volume in listed["volumes"].document["volumes"]}
    for instance in listed["instances"].document["instances"]:
        for volume in instance["volumes"]:
            if volumes.get(volume["volume_id"]) != volume:
                yield f"{instance['instance_id']}: {volume['volume_id']} differs from the list of volumes"


def occurrence_faults(listed: dict[str, Listing]) -> Iterator[str]:
    """The world has every kind of thing that it was built for."""
    for command, keys in OCCURRENCES.items():
        for key, expected in keys.items():
            values = {item[key] for item in listed[command].document[command]}
            yield from (f"{command}: {key} is never {value!r}" for value in expected - values)


def mutants() -> Iterator[tuple[str, str, Callable[[dict[str, Any]], object], str]]:
    """Answers that are wrong: of which list, in what, how they become so, and what must be said of it."""

    def image(answer: dict[str, Any]) -> dict[str, Any]:
        return answer["Images"][0]

    yield "images", "a wrong word", lambda a: image(a).update(State="ready"), "'ready' is none of"
    yield "images", "an unknown member", lambda a: image(a).update(Colour="red"), "no member Colour"
    yield "images", "text for a boolean", lambda a: image(a).update(Public="true"), "is no boolean"
    yield "images", "a value that is null", lambda a: image(a).update(Name=None), "is no string"
    yield "images", "an id of another kind", lambda a: image(a).update(ImageId="snap-" + "0" * 17), "look like ami-"
    yield "images", "a short id", lambda a: image(a).update(ImageId="ami-1234"), "look like ami-"
    yield "images", "a structure for a list", lambda a: image(a).update(Tags={"Key": "a"}), "is no list"
    yield "snapshots", "a time that is none", lambda a: a["Snapshots"][0].update(StartTime="today"), "is no timestamp"
    yield "snapshots", "a number as text", lambda a: a["Snapshots"][0].update(VolumeSize="1"), "is no integer"
    yield "snapshots", "an unheard-of id", lambda a: a["Snapshots"][0].update(KmsKeyId="k"), "FORMS does not say"
    yield "volumes", "a boolean for a number", lambda a: a["Volumes"][0].update(Size=True), "is no integer"
    yield "volumes", "bytes for GiB", lambda a: a["Volumes"][0].update(Size=1 << 33), "is out of range"
    yield "instances", "a list for a structure", lambda a: a["Reservations"].append([]), "is no structure"


def check_mutants(score: Score, model: ServiceModel, answers: dict[str, dict[str, Any]]) -> None:
    """The validator itself: it finds what is wrong with wrong answers."""
    for command, what, change, expected in mutants():
        answer = copy.deepcopy(answers[command])
        change(answer)
        found = list(Examination(model).value_faults(command, answer))
        score.check(f"{what} in {command} is found", [] if any(expected in f for f in found) else [f"found: {found}"])
    found = list(Examination(model).wire_faults("volumes", {"Volumes": [{"Size": "1"}]}))
    score.check("what the wire changes is found", [] if found == [WIRE_FAULT] else found)


def check_accounting(score: Score, model: ServiceModel, listed: dict[str, Listing]) -> None:
    """The accounting itself: a new key, a lost one, a new member and a lost one are found."""
    examination = Examination(model)
    for command, listing in listed.items():
        document = copy.deepcopy(dict(listing.document))
        for item in document[command]:
            item["colour"] = "red"
            item.pop("description", None)
        answer = dict(examination.translation.answer(command, document))
        list(examination.value_faults(command, answer))
    keys, members = list(examination.key_faults()), list(examination.member_faults({**ABSENT, "Volume": {}}))
    for expected, found in (
        ("image: colour is not in fields.py", keys),
        ("snapshot: description never has a value", keys),
        ("Image.Description: absent without a reason", members),
        ("Volume.KmsKeyId: absent without a reason", members),
    ):
        score.check(f"found where it is so: {expected}", [] if expected in found else found)


def check_lists(score: Score, examination: Examination, home: Home) -> dict[str, Listing]:
    """All lists; gives back the fullest of each."""
    fullest = {}
    for command in LISTS:
        views = listings(home, command)
        for listing in views:
            answer = examination.answer(listing)
            # What does not fit cannot be sent.
            if score.check(f"{listing}: the shape fits", examination.value_faults(command, answer)):
                score.check(f"{listing}: the same over the wire", examination.wire_faults(command, answer))
        score.check(f"{views[0]}: show agrees", show_faults(home, views[0]))
        fullest[command] = views[0]
    return fullest


def main() -> int:
    program = Path(sys.argv[1]).absolute()
    score, model = Score(), service_model()
    examination = Examination(model)
    print(f"botocore {botocore_version}, EC2 {model.api_version}")
    with tempfile.TemporaryDirectory(prefix="imgstore-botocore-") as folder:
        home = Home(program, Path(folder))
        build(home)
        listed = check_lists(score, examination, home)
    score.check("the world has one of each", occurrence_faults(listed))
    score.check("the volumes of instances are those listed", volume_faults(listed))
    score.check("every key of ours is accounted for", examination.key_faults())
    score.check("every member of EC2's is accounted for", examination.member_faults(ABSENT))
    answers = {command: Examination(model).answer(listing) for command, listing in listed.items()}
    check_mutants(score, model, answers)
    check_accounting(score, model, listed)
    print(f"{score.passed} passed, {score.failed} failed")
    return 1 if score.failed else 0


if __name__ == "__main__":
    sys.exit(main())
