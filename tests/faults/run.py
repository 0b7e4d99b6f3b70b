"""Every system call that a command writes with fails once, on a real file system: nothing acknowledged is lost.

usage: run.py IMGSTORE FOLDER [KIND...]

For each command, each kind of call and up to 14 of its calls in turn, strace lets that one call fail with EIO, ENOSPC or what
else it can fail with: the n-th of its kind in each thread, as strace counts. The command may fail, with a sentence and not by a
signal; what was acknowledged before and by it, in both regions, reads as it was taken or is gone if it was deleted, the disks of
instances on record are those of their image, a check finds nothing, and the next command works. Only calls that did fail count.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys

IMGSTORE, FOLDER = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
CALLS = {
    "fsync": ["EIO", "ENOSPC"],
    "fdatasync": ["EIO"],
    "write": ["EIO", "ENOSPC"],
    "pwritev": ["EIO", "ENOSPC"],
    "pwrite64": ["EIO", "ENOSPC"],
    "ftruncate": ["ENOSPC"],
    # A disk is made to share the blocks of another by it, on XFS and btrfs.
    "ioctl": ["EIO", "ENOSPC", "EOPNOTSUPP", "EINTR"],
    "renameat2": ["EIO"],
    "rename": ["EIO"],
    "openat": ["EIO", "ENOSPC", "EMFILE"],
    "rmdir": ["EIO"],
    "getdents64": ["EIO"],
    "read": ["EIO", "EINTR"],
    "mkdir": ["ENOSPC"],
    "unlink": ["EIO"],
    "fchmod": ["EIO"],
    "pread64": ["EIO"],
}
# Calls of one kind that are tried in one command: the first ones, and then some of the rest.
EACH_MAX = 14
KINDS = ["snapshot", "copy", "delete", "gc", "repair", "launch", "export", "bundle", "create-volume", "delete-volume", "terminate"]
failures = []
checks = injected = in_vain = 0
machines = outputs = None


def check(holds, what):
    global checks
    checks += 1
    if not holds:
        failures.append(what)
        print(f"FAILED: {what}", flush=True)


def run(*args, strace=()):
    command = [*strace, IMGSTORE, "--home", f"{FOLDER}/home", "--quiet", *args]
    return subprocess.run(command, capture_output=True)


def must(*args):
    done = run(*args)
    if done.returncode != 0:
        sys.exit(f"FAILED: {args}: {done.stderr.decode()}")
    return done.stdout


def write_disk(draw):
    """A disk that shares most of its content with the one before."""
    with open(f"{FOLDER}/disk.raw", "r+b") as file:
        for _ in range(6):
            file.seek(draw.randrange(256) * 4096)
            file.write(draw.randbytes(4096 * draw.randrange(1, 4)))
    return open(f"{FOLDER}/disk.raw", "rb").read()


class Machines:
    """An image, and what is launched of it."""

    def __init__(self, disk):
        self.content = open(disk, "rb").read()
        self.image = must("import", "--name", "machine", disk).decode().strip()
        self.folder = f"{FOLDER}/vms"

    def end(self, what, may_leave):
        """Checks the disks of all instances, that there is nothing else, and takes all away."""
        instances = json.loads(must("instances", "--json"))["instances"]
        instances = [instance for instance in instances if instance["state"] != "terminated"]
        for instance in instances:
            for volume in instance["volumes"]:
                with open(volume["path"], "rb") as disk:
                    check(disk.read() == self.content, f"{what}: {volume['path']}")
        known = {os.path.basename(instance["path"]) for instance in instances}
        left = set(os.listdir(self.folder)) - known if os.path.isdir(self.folder) else set()
        check(may_leave or not left, f"{what}: nobody knows {left}")
        if instances:
            must("terminate", *[instance["instance_id"] for instance in instances])
            check(may_leave or not os.listdir(self.folder), f"{what}: disks are left after terminate")
        shutil.rmtree(self.folder, ignore_errors=True)
        return len(instances)


class Outputs:
    """What leaves the store otherwise: files, bundles, volumes, and instances that are terminated."""

    KINDS = ("export", "bundle", "create-volume", "delete-volume", "terminate")

    def __init__(self, machines):
        self.machines, self.content = machines, machines.content
        self.top, self.folder = f"{FOLDER}/out", f"{FOLDER}/out/x/y"
        self.snapshot = json.loads(must("images", "--json"))["images"][0]["devices"][0]["snapshot_id"]

    def command(self, kind):
        """A command, after what it needs was made. What it takes away, if it does."""
        if kind == "export":
            return ["export", self.machines.image, self.folder, "--all"]
        if kind == "bundle":
            return ["bundle", self.machines.image, self.folder]
        make_volume = ["create-volume", "--snapshot", self.snapshot, "--output", self.folder]
        if kind == "create-volume":
            return make_volume
        if kind == "delete-volume":
            return ["delete-volume", must(*make_volume).decode().strip()]
        return ["terminate", must("launch", self.machines.image, "--output", self.folder).decode().strip()]

    def files(self):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(self.top) for name in names]
        return {path: open(path, "rb").read() for path in found}

    def end(self, kind, what, args, done, call):
        """Whatever has its name is whole, and nothing else is left that nobody was told of."""
        files, said = self.files(), (done.stdout + done.stderr).decode()
        may_leave = call in ("unlink", "rmdir")
        if kind == "export":
            known = {f"{self.folder}/xvda.raw"}
            check(done.returncode != 0 or set(files) == known, f"{what}: it succeeded, and there is {set(files)}")
            check(all(files[path] == self.content for path in known & set(files)), f"{what}: wrong bytes")
            check(may_leave or set(files) <= known, f"{what}: left {set(files) - known}")
        elif kind == "bundle":
            is_named = any(path.endswith(".manifest.json") for path in files)
            check(done.returncode != 0 or is_named, f"{what}: it succeeded, and there is no manifest")
            if is_named:
                manifest = next(path for path in files if path.endswith(".manifest.json"))
                must("unbundle", manifest, f"{FOLDER}/unbundled")
                check(open(f"{FOLDER}/unbundled", "rb").read() == self.content, f"{what}: wrong bytes")
                os.remove(f"{FOLDER}/unbundled")
            check(may_leave or is_named or not files, f"{what}: left {set(files)}")
        else:
            if kind == "terminate" and done.returncode != 0:
                # It says so where nobody knows whether it took effect.
                again = run(*args)
                check(again.returncode in (0, 3), f"{what}: it cannot be done again: {again.stderr.decode()}")
                files, said = self.files(), said + again.stderr.decode()
            instances = json.loads(must("instances", "--json"))["instances"]
            volumes = json.loads(must("volumes", "--json"))["volumes"]
            known = {volume["path"] for volume in volumes}
            known |= {volume["path"] for one in instances if one["state"] != "terminated" for volume in one["volumes"]}
            for path in known:
                check(files.get(path) == self.content, f"{what}: {path} is on record")
            # Of an instance its folder is named.
            is_told = lambda path: os.path.basename(path) in said or os.path.basename(os.path.dirname(path)) in said
            unknown = {path for path in files if path not in known and not is_told(path)}
            check(may_leave or not unknown, f"{what}: nobody knows {unknown}, nor was told: {said}")
            told = done.stderr.decode()
            folders = os.listdir(self.folder) if kind == "terminate" and os.path.isdir(self.folder) else []
            untold = [name for name in folders if done.returncode == 0 and name in args and name not in told]
            check(not untold, f"{what}: the folder stays, and nobody was told: {untold}")
            running = [one["instance_id"] for one in instances if one["state"] != "terminated"]
            if running:
                must("terminate", *running)
            for volume in json.loads(must("volumes", "--json"))["volumes"]:
                must("delete-volume", volume["volume_id"])
        empty = [folder for folder, folders, names in os.walk(self.top) if not folders and not names]
        # Who deletes or terminates leaves the folder that was named for it.
        if kind in ("export", "bundle", "create-volume") and done.returncode != 0 and not files and call != "rmdir":
            check(not empty, f"{what}: left the folder {empty}")
        shutil.rmtree(self.top, ignore_errors=True)


def command_of(kind, kept, draw):
    """A command of a kind, and the id of the snapshot that it takes away."""
    if kind in Outputs.KINDS:
        return outputs.command(kind), None
    if kind == "launch":
        return ["launch", machines.image, "--count", "3", "--output", machines.folder], None
    if kind == "snapshot":
        return ["snapshot", f"{FOLDER}/disk.raw"], None
    if kind == "copy":
        return ["copy", next(reversed(kept)), "--to", "backup"], None
    if kind == "delete":
        gone = draw.choice(list(kept)[:-1])
        return ["delete-snapshot", gone], gone
    if kind == "gc":
        return ["gc", "--grace", "0s"], None
    return ["repair", "--from", "backup"], None


def count(kind, call, known, draw):
    """How often the busiest thread of the command makes a call, by a run that is not disturbed."""
    log = f"{FOLDER}/strace"
    args, gone = command_of(kind, known.kept, draw)
    done = run(*args, strace=["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}"])
    check(done.returncode == 0, f"{args}: {done.stderr.decode()}")
    known.learn(f"{kind}, undisturbed", kind, args, gone, done)
    threads = [line.split()[0] for line in open(log) if re.search(rf"\b{call}\(", line)]
    return done, max(map(threads.count, set(threads)), default=0)


class Known:
    """What was acknowledged: snapshots here, copies in the other region, deletions."""

    def __init__(self):
        self.kept, self.copies, self.deleted = {}, {}, []

    def learn(self, what, kind, args, gone, done, content=None):
        """Takes in what a command says that it did."""
        printed = re.fullmatch(r"snap-[0-9a-f]{17}", done.stdout.decode().strip())
        if kind in ("snapshot", "copy") and done.returncode == 0:
            check(printed, f"{what}: it succeeded and said {done.stdout!r}")
        if printed and kind == "snapshot" and content is not None:
            self.kept[printed.group()] = content
        if printed and kind == "copy":
            self.copies[printed.group()] = self.kept[args[1]]
        if gone:
            # One whose deletion failed may be there or not.
            del self.kept[gone]
            if done.returncode == 0:
                self.deleted.append(gone)

    def forget_some(self):
        """Of many copies the last ones are enough."""
        self.copies = dict(list(self.copies.items())[-6:])
        self.deleted = self.deleted[-3:]

    def check(self, what, draw):
        self.forget_some()
        for region, there in (("local", self.kept), ("backup", self.copies)):
            for id in draw.sample(list(there), min(2, len(there))):
                exported = run("--region", region, "export", id, "-")
                is_it = exported.returncode == 0 and exported.stdout == there[id]
                check(is_it, f"{what}: {id} in {region}: {exported.stderr.decode()}")
            checked = run("--region", region, "verify")
            check(checked.returncode == 0, f"{what}: {region}: {checked.stdout.decode()}{checked.stderr.decode()}")
        for id in self.deleted:
            check(run("show", id).returncode == 3, f"{what}: {id} was deleted and is there")


def main():
    global injected, in_vain, machines, outputs
    draw = random.Random(5)
    shutil.rmtree(f"{FOLDER}/home", ignore_errors=True)
    shutil.rmtree(f"{FOLDER}/away", ignore_errors=True)
    with open(f"{FOLDER}/disk.raw", "wb") as file:
        file.write(draw.randbytes(1 << 20))
    known = Known()
    kept, log = known.kept, f"{FOLDER}/strace"

    def take():
        content = write_disk(draw)
        kept[must("snapshot", f"{FOLDER}/disk.raw").decode().strip()] = content

    take()
    machines = Machines(f"{FOLDER}/disk.raw")
    outputs = Outputs(machines)
    must("region", "add", "backup", f"{FOLDER}/away")
    must("copy", machines.image, "--to", "backup")
    for kind in sys.argv[3:] or KINDS:
        for call, errors in CALLS.items():
            while len(kept) < 5:
                take()
            content = write_disk(draw)
            done, calls = count(kind, call, known, draw)
            if kind == "snapshot":
                kept[done.stdout.decode().strip()] = content
            if kind == "launch":
                check(machines.end(kind, may_leave=False) == 3, "launch: not three instances")
            if kind in Outputs.KINDS:
                outputs.end(kind, f"{kind}, undisturbed", [], done, "")
            places = list(range(1, calls + 1))
            places = places[: EACH_MAX // 2] + draw.sample(places[EACH_MAX // 2 :], min(EACH_MAX // 2, max(0, calls - EACH_MAX // 2)))
            for error in errors:
                for place in places:
                    while len(kept) < 4:
                        take()
                    if kind == "gc":
                        # Something to collect.
                        take()
                        gone = draw.choice(list(kept)[:-1])
                        must("delete-snapshot", gone)
                        del kept[gone]
                        known.deleted.append(gone)
                    content = write_disk(draw)
                    args, gone = command_of(kind, kept, draw)
                    fault = f"inject={call}:error={error}:when={place}"
                    done = run(*args, strace=["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", fault])
                    what = f"{kind}, {call} {place} of {calls} {error}"
                    if done.returncode == 127 and b"shared libraries" in done.stderr:
                        # It was the loader's call: the program never began.
                        continue
                    has_failed = "(INJECTED)" in open(log).read()
                    injected += has_failed
                    in_vain += not has_failed
                    check(done.returncode in range(0, 9), f"{what}: exit {done.returncode}: {done.stderr.decode()}")
                    if done.returncode != 0 and call != "write":
                        # A write that fails may be that of the sentence. Findings are on standard output.
                        said = done.stderr + done.stdout
                        check(said.strip() != b"", f"{what}: it failed and said nothing")
                    known.learn(what, kind, args, gone, done, content)
                    if kind == "launch":
                        launched = machines.end(what, may_leave=call == "unlink")
                        check(launched == 3 or (done.returncode != 0 and launched == 0), f"{what}: {launched} instances")
                    if kind in Outputs.KINDS:
                        outputs.end(kind, what, args, done, call)
                    known.check(what, draw)
    check(injected > 4 * in_vain, f"{in_vain} of {injected + in_vain} runs met no call that failed")
    print(f"{injected} calls failed once")
    print(f"{checks - len(failures)} passed, {len(failures)} failed")
    sys.exit(bool(failures))


main()
