"""A small world of images, snapshots, volumes and instances in which every key of the lists has a value somewhere."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fields import Document

OWNER = "111122223333"
OTHER = "444455556666"

ARCHITECTURES = ("i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac")
BOOT_MODES = ("legacy-bios", "uefi", "uefi-preferred")
VOLUME_TYPES = ("gp3,iops=3000", "gp2", "io1,iops=100", "io2,iops=200", "st1", "sc1", "standard")

# What must occur in the world, so that a check of everything in it means something.
OCCURRENCES: dict[str, dict[str, set[Any]]] = {
    "images": {
        "architecture": {*ARCHITECTURES},
        "boot_mode": {None, *BOOT_MODES},
        "virtualization_type": {"hvm", "paravirtual"},
        "root_device_type": {"ebs", "instance-store"},
        "state": {"available", "disabled"},
        "public": {False, True},
        "ena_support": {False, True},
    },
    "snapshots": {"state": {"completed"}},
    "volumes": {"state": {"available", "in-use"}, "delete_on_termination": {None, False, True}},
    "instances": {
        "state": {"running", "stopped", "terminated"},
        "root_device_type": {"ebs", "instance-store"},
        "launch_index": {0, 1},
    },
}


@dataclass(frozen=True)
class Home:
    """A home of imgstore, and the program."""

    program: Path
    folder: Path

    def run(self, *arguments: str, account: str | None = OWNER, region: str = "local") -> str:
        """What a command prints; it must succeed."""
        command = [str(self.program), "--quiet", "--home", str(self.folder / "home"), "--region", region]
        command += ["--account", account] if account else []
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"imgstore {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def json(self, *arguments: str, account: str = OWNER, region: str = "local") -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json", account=account, region=region))

    def disk(self, name: str, size: int) -> str:
        """A disk file: some content, then nothing."""
        path = self.folder / name
        path.write_bytes(random.Random(name).randbytes(300_000))
        with path.open("r+b") as file:
            file.truncate(size)
        return str(path)


def build(home: Home) -> None:
    """Fills the regions `local` and `backup`."""
    home.run("region", "add", "backup", str(home.folder / "backup"))
    # Only the provider, whose account is the home's own, names accounts.
    home.run("account", "alias", OTHER, "amazon", account=None)
    root, data = home.disk("root.raw", 1 << 20), home.disk("data.raw", 3 << 20)
    web = windows_image(home, root, data)
    snapshots(home, root)
    registered_images(home, root, web)
    states_of_images(home, root)
    shared(home, root)
    instances(home, web)
    paravirtual_and_sold(home, root)
    instance_store(home, root)
    volumes(home, web)
    copies(home, web)


def windows_image(home: Home, root: str, data: str) -> str:
    machine = "--architecture x86_64 --boot-mode uefi --tpm-support v2.0 --ena-support --imds-support v2.0"
    tags = ("--tag", 'Name=web <&> "ü" ]]>', "--tag", "empty=")
    text = ("--description", "Grüße & <b>more</b>")
    return home.run("import", root, data, "--name", "web-1", *machine.split(), "--platform", "windows", *tags, *text)


def snapshots(home: Home, root: str) -> None:
    first = home.run("snapshot", root, "--description", "the first", "--tag", "env=prod")
    home.run("snapshot", root, "--parent", first)
    home.run("share", first, "--add", OTHER)


def registered_images(home: Home, root: str, predecessor: str) -> None:
    """Every kind of device, every architecture and boot mode."""
    snapshot = home.run("snapshot", root)
    devices = [f"/dev/sd{letter}=:size=200G,type={kind}" for letter, kind in zip("ghijklm", VOLUME_TYPES, strict=True)]
    devices += [f"/dev/xvdb={snapshot}:size=20G,keep", "/dev/xvdc=ephemeral0", "/dev/xvdd=ephemeral23"]
    mapping = [part for device in devices for part in ("--device", device)]
    home.run("register", "--name", "web-2", "--root", snapshot, "--predecessor", predecessor, *mapping)
    for word in ARCHITECTURES:
        home.run("register", "--name", f"for {word}", "--root", snapshot, "--architecture", word)
    for word in BOOT_MODES:
        home.run("register", "--name", f"boots {word}", "--root", snapshot, "--boot-mode", word)


def states_of_images(home: Home, root: str) -> None:
    def named(name: str) -> str:
        return home.run("import", root, "--name", name)

    home.run("deprecate", named("deprecated"), "--at", "2030-01-31T12:00:29Z")
    home.run("disable", named("disabled"))
    home.run("protect", named("protected"))
    home.run("protect", named("protected with a cooldown"), "--cooldown")
    cooling = named("cooling down")
    home.run("protect", cooling, "--cooldown")
    home.run("protect", cooling, "--off")


def shared(home: Home, root: str) -> None:
    """Between the accounts, both ways; the other one has an alias."""
    ours = home.run("import", root, "--name", "for the other account")
    home.run("share", ours, "--add", OTHER, "--snapshots")
    theirs = home.run("import", root, "--name", "for everybody", account=OTHER)
    home.run("share", theirs, "--add", "all", "--snapshots", account=OTHER)


def instances(home: Home, web: str) -> None:
    """Two of one launch, one of them stopped and made an image of; one terminated; one with devices left out."""
    token = ("--client-token", "nightly-1", "--tag", "Name=web", "--device", "/dev/xvdc:ephemeral0")
    first, second = home.run("launch", web, "--count", "2", "--ephemeral-size", "1MiB", *token).split()
    home.run("stop", second)
    home.run("create-image", second, "--name", "of an instance", "--device", "/dev/xvdb:none")
    home.run("create-snapshot", first, "--exclude-root")
    home.run("terminate", home.run("launch", web))
    home.run("launch", web, "--device", "/dev/xvdb:none")


def paravirtual_and_sold(home: Home, root: str) -> None:
    guest = "--virtualization-type paravirtual --kernel aki-12345678 --ramdisk ari-0123456789abcdef0"
    image = home.run("import", root, "--name", "paravirtual", *guest.split())
    home.run("modify", image, "--product-code", "7zx41vl2j5", "--product-code", "a1b2c3")
    home.run("launch", image)


def instance_store(home: Home, root: str) -> None:
    devices = ("--device", "/dev/xvdb=ephemeral0", "--device", "/dev/xvdc=:size=1G")
    image = home.run("import", root, "--name", "instance store", "--instance-store", *devices)
    home.run("launch", image, "--ephemeral-size", "1MiB")


def volumes(home: Home, web: str) -> None:
    """Empty ones, one of a snapshot, fast ones; available and attached."""
    instance = home.run("launch", web)
    snapshot = home.json("images", web)["images"][0]["devices"][0]["snapshot_id"]
    home.run("create-volume", "--size", "5G", "--tag", "Name=spare")
    home.run("create-volume", "--snapshot", snapshot)
    fast = home.run("create-volume", "--size", "10G", "--type", "io2", "--iops", "1000", "--tag", "Name=fast")
    home.run("attach-volume", fast, instance, "/dev/xvdf")


def copies(home: Home, web: str) -> None:
    home.run("copy", web, "--to", "backup", "--copy-tags")
    home.run("copy", web, "--to", "local", "--name", "web-1 again")
    home.run("launch", home.json("images", region="backup")["images"][0]["image_id"], region="backup")


@dataclass(frozen=True)
class Listing:
    """What a list command printed."""

    command: str
    account: str
    region: str
    options: tuple[str, ...]
    document: Document

    def __str__(self) -> str:
        return " ".join((self.command, *self.options, "as", self.account, "in", self.region))


def listings(home: Home, command: str) -> list[Listing]:
    """Everything that each account sees, first, and a page of it."""
    whole = ("--owner", "all") + (("--include-deprecated", "--include-disabled") if command == "images" else ())
    page = ("--max-results", "2")

    def listing(account: str, region: str, options: tuple[str, ...]) -> Listing:
        document = home.json(command, *options, account=account, region=region)
        return Listing(command, account, region, options, document)

    views = ((OWNER, "local", whole), (OTHER, "local", whole), (OWNER, "backup", whole), (OWNER, "local", page))
    return [listing(*view) for view in views]
