"""Commands that are run to the end: what they took, and what they held."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

SAMPLE_SECONDS = 0.02


class Failed(Exception):
    """A tool failed, or said something that it must not say: there is nothing to compare."""


def descendants(pid):
    """A process and all that it started."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            # A process that has ended has no folder any more.
            tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
        except OSError:
            continue
        for task in tasks:
            try:
                todo += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def rss_anon(pid):
    """Anonymous memory of a process and of what it started, in bytes; 0 once it has ended."""
    total = 0
    for one in descendants(pid):
        try:
            text = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        found = re.search(r"^RssAnon:\s+(\d+) kB", text, re.M)
        total += int(found[1]) << 10 if found else 0
    return total


class Run:
    """One finished command: what it took and what it said. `output` is a file for its standard output."""

    def __init__(self, command, env=None, may_fail=False, cwd=None, output=None):
        command = [str(word) for word in command]
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as err:
            out = open(output, "wb") if output else said
            started = time.monotonic()
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
            self.peak, done = 0, threading.Event()

            def sample():
                while not done.is_set():
                    self.peak = max(self.peak, rss_anon(child.pid))
                    done.wait(SAMPLE_SECONDS)

            sampler = threading.Thread(target=sample)
            sampler.start()
            try:
                _, status, usage = os.wait4(child.pid, 0)
                self.seconds = time.monotonic() - started
                child.returncode = self.code = os.waitstatus_to_exitcode(status)
            finally:
                done.set()
                sampler.join()
                if child.returncode is None:
                    child.kill()
                    child.wait()
                if output:
                    out.close()
            self.cpu = usage.ru_utime + usage.ru_stime
            said.seek(0)
            err.seek(0)
            self.out = said.read().decode(errors="replace")
            if self.code != 0 and not may_fail:
                why = err.read().decode(errors="replace").strip()[-2000:]
                raise Failed(f"{' '.join(command)}: exit code {self.code}\n{why}")


class Together:
    """Several runs as one."""

    def __init__(self, runs):
        self.seconds = sum(run.seconds for run in runs)
        self.cpu = sum(run.cpu for run in runs)
        self.peak = max(run.peak for run in runs)


def seconds_to_sync(path):
    """Makes a file durable; how long that took."""
    started = time.monotonic()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return time.monotonic() - started


def warm(*paths):
    """Brings files into the page cache and what others have written out of the way, before a timed run."""
    for path in paths:
        files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
        for start in range(0, len(files), 100):
            subprocess.run(["cat", "--", *files[start:start + 100]], stdout=subprocess.DEVNULL, check=True)
    os.sync()


def is_same(one, other):
    return Run(["cmp", one, other], may_fail=True).code == 0


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def du(path):
    done = subprocess.run(["du", "-sb", "--apparent-size", path], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def say(text=""):
    print(text, flush=True)
