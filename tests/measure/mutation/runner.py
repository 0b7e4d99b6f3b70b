"""Runs a test in a process of its own, with a mutant on or noting what it reaches."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

MEMORY_BYTES = 4 << 30
SCRATCH_BYTES = 4 << 30
# A test may stand still for so many times as long as it takes without a mutant, and at least so long, and take longer by
# far as long as it moves; it may use so much of the processor.
TIMES, SECONDS_MIN, PATIENCE = 8, 20, 10
CPU_TIMES, CPU_SECONDS_MIN = 4, 5
# What fails and takes no longer than this does not hang on the machine's speed.
SURE_SECONDS = 1
# More states and operations reach no other line.
SHORT = {
    "IMGSTORE_CRASH_STATES": "4000",
    "IMGSTORE_MODEL_OPERATIONS": "3000",
}


@dataclass
class Test:
    program: str
    executable: str
    name: str
    seconds: float = 0.0
    cpu: float = 0.0
    passes: bool = True
    reached: set = field(default_factory=set)

    @property
    def title(self):
        return f"{self.program}: {self.name}"


@dataclass
class Outcome:
    result: str  # passed, failed, spins, timeout
    seconds: float
    cpu: float


def listed(program, executable, tree):
    done = subprocess.run([executable, "--list", "--format", "terse"], cwd=tree, capture_output=True, text=True)
    names = [line.removesuffix(": test") for line in done.stdout.splitlines() if line.endswith(": test")]
    return [Test(program, executable, name) for name in names]


class Runner:
    def __init__(self, tree):
        self.tree = tree
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.scratch = Path(tempfile.mkdtemp(prefix="imgstore-mutants-", dir=place))
        self.lock, self.number, self.running, self.stopped = threading.Lock(), 0, set(), False

    def stop(self):
        """Ends what is running, which says nothing of tests."""
        self.stopped = True
        for process in list(self.running):
            kill(process)

    def clean(self):
        shutil.rmtree(self.scratch, ignore_errors=True)

    def reach(self, test):
        """Runs a test with no mutant on, and keeps what it reaches and how long it takes."""
        with self.lock:
            self.number += 1
            seen = self.scratch / f"seen-{self.number}"
        seen.mkdir()
        outcome = self.run(test, {"IMGSTORE_MUTANTS_SEEN": str(seen)}, 600, 600)
        for notes in seen.iterdir():
            test.reached.update(at for at, byte in enumerate(notes.read_bytes()) if byte)
        test.seconds, test.cpu = outcome.seconds, outcome.cpu
        return outcome

    def catches(self, test, mutant):
        """Whether a test fails with a mutant on: "failed", "timeout", or nothing. A long test, or one that does not
        end, has to do so twice.
        """
        limit = max(SECONDS_MIN, TIMES * test.seconds), max(CPU_SECONDS_MIN, CPU_TIMES * test.cpu)
        environment = {"IMGSTORE_MUTANT": str(mutant.id)}
        first = self.run(test, environment, *limit)
        if first.result == "passed":
            return ""
        if first.result == "spins":
            return "timeout"
        if first.result == "failed" and test.seconds < SURE_SECONDS:
            return "failed"
        # The machine may have been busy with something else.
        second = self.run(test, environment, *limit)
        return {"passed": "", "spins": "timeout"}.get(second.result, second.result)

    def run(self, test, environment, seconds, cpu):
        with self.lock:
            self.number += 1
            place = self.scratch / str(self.number)
        place.mkdir()
        command = [test.executable, "--exact", test.name, "--test-threads=1", "-q"]
        process = subprocess.Popen(
            command,
            cwd=self.tree,
            env=dict(os.environ, **SHORT, **environment, TMPDIR=str(place)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for kind, most in [
            (resource.RLIMIT_CPU, int(cpu) + 1),
            (resource.RLIMIT_AS, MEMORY_BYTES),
            (resource.RLIMIT_CORE, 0),
        ]:
            resource.prlimit(process.pid, kind, (most, most))
        self.running.add(process)
        try:
            return wait(process, seconds, place)
        finally:
            self.running.discard(process)
            kill(process)
            process.wait()
            shutil.rmtree(place, ignore_errors=True)


def wait(process, seconds, place):
    """Like `Popen.wait`, with the time of the processor; gives up on what stands still for so long, or fills the disk.

    Who is short of the processor, or stopped, does not stand still; who uses it up comes to a limit of its own.
    """
    began = moved = last = time.monotonic()
    used, pause = 0.0, 0.002
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.monotonic()
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            over = process.returncode in {-signal.SIGXCPU, -signal.SIGKILL}
            result = "spins" if over else "failed" if process.returncode else "passed"
            return Outcome(result, now - began, usage.ru_utime + usage.ru_stime)
        if now - last > 2:
            # Whoever stopped the tests stopped this process, too.
            late = now - last - 2
            began, moved, last = began + late, moved + late, now
            using = used_by(process.pid)
            if using is None or using > used + 0.05:
                used, moved = using or used, now
            if now - moved > seconds or now - began > PATIENCE * seconds or full(place):
                return Outcome("timeout", now - began, 0.0)
        time.sleep(pause)
        pause = min(pause * 1.2, 0.05)


def used_by(session):
    """Seconds of the processor that a test and what it started have used; none if one of them is stopped."""
    ticks = 0
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            if fields[0] == "T":
                return None
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def full(place):
    """Whether a test that ran wild fills the disk, which is memory at best."""
    disk = shutil.disk_usage(place)
    return disk.free < SCRATCH_BYTES


def kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
