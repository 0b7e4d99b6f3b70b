"""imgstore and its peers: how each is found, and how it stores a disk, stores it again, and gives it back."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from timing import Failed, Run, say

ROOT = Path(__file__).resolve().parents[2]


class Imgstore:
    """imgstore under test, with a home of its own."""

    name = "imgstore"
    is_slow = False
    program = None

    def __init__(self, home):
        self.path = self.home = home
        # The user's own home and settings must not meddle.
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("IMGSTORE")}

    def run(self, *words):
        return Run([self.program, "--home", self.home, "--quiet", "--json", *words], self.env)

    def ask(self, *words):
        return json.loads(self.run(*words).out)

    def snapshot(self, disk, *options):
        run = self.run("snapshot", disk, *options)
        return run, json.loads(run.out)["snapshot_id"]

    def store(self, disk):
        run, self.newest = self.snapshot(disk)
        return run

    def restore(self, disk, folder):
        """The newest snapshot, in a new folder: the run, and the file."""
        return self.export(self.newest, folder / disk.name), folder / disk.name

    def export(self, snapshot, path):
        return self.run("export", snapshot, path)


class ImgstoreNoDelta(Imgstore):
    """The same without deltas."""

    name = "imgstore --no-delta"

    def store(self, disk):
        return self.snapshot(disk, "--no-delta")[0]


class Peer:
    """Another tool, with a repository of its own. Making that is not timed."""

    name, version_words = None, ["--version"]
    # Where --install has it from.
    debian = crate = None
    crate_options = []
    # What stores a disk again and reads all of it, as imgstore does; None if the tool deduplicates nothing.
    again_flags = []
    # Takes so long that one round must do.
    is_slow = False

    def __init__(self, path):
        self.path, self.env = path, dict(os.environ)
        self.init()

    def init(self):
        self.path.mkdir()

    def store(self, disk):
        return self.backup(disk, [])

    def again(self, disk):
        return self.backup(disk, self.again_flags)

    def backup(self, disk, flags):
        raise NotImplementedError

    def restore(self, disk, folder):
        """Gives the only disk back, somewhere in a new folder: the run, and the file."""
        raise NotImplementedError


class Qemu(Peer):
    """qcow2 compressed with zstd, a file for each disk: no deduplication."""

    name, debian, again_flags = "qemu-img", "qemu-utils", None

    def backup(self, disk, flags):
        options = ["-c", "-O", "qcow2", "-o", "compression_type=zstd", "-m", "4"]
        return Run(["qemu-img", "convert", "-f", "raw", *options, disk, self.path / f"{disk.stem}.qcow2"])

    def restore(self, disk, folder):
        file = folder / disk.name
        return Run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path / f"{disk.stem}.qcow2", file]), file


class Restic(Peer):
    """With compression, which needs repository version 2, and without a cache."""

    name, debian, version_words, again_flags = "restic", "restic", ["version"], ["--force"]

    def init(self):
        self.env |= {"RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": str(self.path)}
        self.run("init", "--repository-version", "2")

    def run(self, *words):
        return Run(["restic", "--no-cache", *words], self.env)

    def backup(self, disk, flags):
        return self.run("backup", *flags, disk)

    def restore(self, disk, folder):
        return self.run("restore", "latest", "--target", folder), folder / disk.relative_to("/")


class Rustic(Peer):
    """Without a cache."""

    name, crate, crate_options, again_flags = "rustic", "rustic-rs", ["--no-default-features"], ["--force"]

    def init(self):
        settings = {"RUSTIC_PASSWORD": "x", "RUSTIC_REPOSITORY": str(self.path), "RUSTIC_NO_CACHE": "true"}
        self.env |= settings
        Run(["rustic", "init"], self.env)

    def backup(self, disk, flags):
        return Run(["rustic", "backup", *flags, disk], self.env)

    def restore(self, disk, folder):
        return Run(["rustic", "restore", f"latest:{disk.parent}", folder], self.env), folder / disk.name


class Borg(Peer):
    """zstd level 3, without encryption."""

    name, debian, again_flags = "borg", "borgbackup", ["--files-cache=disabled"]

    def init(self):
        super().init()
        self.env |= {"BORG_BASE_DIR": str(self.path), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        self.repository, self.archives = self.path / "repo", 0
        Run(["borg", "init", "-e", "none", self.repository], self.env)

    def backup(self, disk, flags):
        self.archives += 1
        archive = f"{self.repository}::{self.archives}"
        return Run(["borg", "create", "--compression", "zstd,3", *flags, archive, disk], self.env)

    def restore(self, disk, folder):
        archive = f"{self.repository}::{self.archives}"
        return Run(["borg", "extract", "--sparse", archive], self.env, cwd=folder), folder / disk.relative_to("/")


class Bupstash(Peer):
    """zstd level 3."""

    name, debian, crate = "bupstash", None, "bupstash"

    def init(self):
        super().init()
        self.env |= {"BUPSTASH_REPOSITORY": str(self.path / "repo"), "BUPSTASH_KEY": str(self.path / "key"),
                     "HOME": str(self.path)}
        Run(["bupstash", "new-key", "-o", self.path / "key"], self.env)
        Run(["bupstash", "init"], self.env)

    def backup(self, disk, flags):
        run = Run(["bupstash", "put", "-q", "--compression", "zstd:3", *flags, disk], self.env)
        self.item = run.out.strip()
        return run

    def restore(self, disk, folder):
        file = folder / disk.name
        return Run(["bupstash", "get", "-q", f"id={self.item}"], self.env, output=file), file


class Casync(Peer):
    """An index for each disk, one store of chunks."""

    name, debian, is_slow = "casync", "casync", True

    def backup(self, disk, flags):
        index = self.path / f"{disk.stem}.caibx"
        return Run(["casync", "make", f"--store={self.path / 'chunks'}", *flags, index, disk])

    def restore(self, disk, folder):
        file = folder / disk.name
        words = [f"--store={self.path / 'chunks'}", self.path / f"{disk.stem}.caibx", file]
        return Run(["casync", "extract", *words]), file


class Desync(Peer):
    """casync's formats, in Go, with threads."""

    name = "desync"

    def init(self):
        super().init()
        (self.path / "chunks").mkdir()

    def backup(self, disk, flags):
        return Run(["desync", "make", "-s", self.path / "chunks", *flags, self.path / f"{disk.stem}.caibx", disk])

    def restore(self, disk, folder):
        file = folder / disk.name
        return Run(["desync", "extract", "-s", self.path / "chunks", self.path / f"{disk.stem}.caibx", file]), file


class Zpaq(Peer):
    """Method 1, its default: an archive that is appended to."""

    name, debian, version_words, again_flags, is_slow = "zpaq", "zpaq", [], ["-force"], True

    def init(self):
        super().init()
        self.archive = self.path / "archive.zpaq"

    def backup(self, disk, flags):
        return Run(["zpaq", "add", self.archive, disk, "-m1", *flags])

    def restore(self, disk, folder):
        file = folder / disk.name
        return Run(["zpaq", "extract", self.archive, disk, "-to", file]), file


PEERS = [Qemu, Restic, Rustic, Borg, Bupstash, Desync, Casync, Zpaq]
DEDUPLICATING = [peer.name for peer in PEERS if peer is not Qemu]


def version(program, words=("--version",)):
    said = subprocess.run([program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    return said.splitlines()[0].strip() if said else "?"


def look_where_cargo_installs():
    bin = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "bin"
    os.environ["PATH"] += f":{bin}"


def install():
    """All peers that Debian or crates.io have and that are not there."""
    missing = [peer for peer in PEERS if not shutil.which(peer.name)]
    packages = [peer.debian for peer in missing if peer.debian]
    if any(peer.crate for peer in missing):
        # bupstash links to libsodium.
        packages += ["libsodium-dev", "pkg-config"]
    if packages:
        subprocess.run(["apt-get", "install", "-y", *packages], check=True)
    for peer in missing:
        if peer.crate:
            done = subprocess.run(["cargo", "install", peer.crate, "--locked", *peer.crate_options])
            if done.returncode != 0:
                say(f"{peer.name} could not be built; it is left out")


def limits_program():
    """Builds benches/limits.rs and gives its path."""
    words = ["cargo", "bench", "--locked", "--bench", "limits", "--no-run", "--message-format=json"]
    done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "limits":
            return Path(message["executable"])
    raise Failed("cargo did not say where benches/limits is")
