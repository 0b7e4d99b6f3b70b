"""What was measured: kept as JSON, and added to by later runs. benches/README.md has its schema."""

import json
import os
import platform
import re
import statistics
import time
from pathlib import Path

SCHEMA = 1


class Results:
    """Times by measure and contestant; sizes and other figures by what they are."""

    def __init__(self):
        self.runs, self.versions, self.absent = [], {}, {}
        self.machine, self.corpus = {}, {}
        self.times, self.sizes, self.growth, self.figures = {}, {}, {}, {}
        self.verified, self.bars = {}, []

    @classmethod
    def read(cls, path):
        results = cls()
        document = json.loads(path.read_text())
        if document.pop("schema") != SCHEMA:
            raise ValueError(f"{path} is of another schema")
        for key, value in document.items():
            setattr(results, key, value)
        return results

    def write(self, path):
        path.write_text(json.dumps({"schema": SCHEMA, **vars(self)}, indent=1) + "\n")

    def begin(self, command):
        self.machine = machine()
        self.runs.append({"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "command": command,
                          "load": os.getloadavg()[0], "failure": None})

    def add(self, measure, name, run, fsync_seconds=None):
        row = self.times.setdefault(measure, {}).setdefault(name, {"seconds": [], "cpu_seconds": [], "peak_bytes": []})
        row["seconds"].append(round(run.seconds, 4))
        row["cpu_seconds"].append(round(run.cpu, 3))
        row["peak_bytes"].append(run.peak)
        if fsync_seconds is not None:
            row.setdefault("fsync_seconds", []).append(round(fsync_seconds, 4))

    def has(self, measure, name):
        return name in self.times.get(measure, {})

    def median(self, measure, name, key="seconds"):
        return statistics.median(self.times[measure][name][key])

    def peak(self, measure, name):
        return max(self.times[measure][name]["peak_bytes"])

    def fastest(self, measure, names):
        """Of the contestants named, the one with the smallest median; None if none was there."""
        there = [name for name in names if self.has(measure, name)]
        return min(there, key=lambda name: self.median(measure, name), default=None)

    def verify(self, name, image, is_same):
        """Notes that what a tool gave back was compared with the original."""
        self.verified.setdefault(name, {})[image] = is_same

    def wrong(self):
        return [f"{name}: {image}" for name, images in self.verified.items() for image, same in images.items() if not same]


def machine():
    processor = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return {"processor": processor[1] if processor else platform.machine(), "processors": os.cpu_count(),
            "memory_bytes": int(memory[1]) << 10, "system": platform.platform()}
