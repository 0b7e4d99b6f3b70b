"""Line coverage from an lcov file: by part, and what is left in the parts that must be whole.

Unit tests within a file are not counted: what tests the program is not the program.
"""

import pathlib
import re
import sys
from collections import defaultdict

from areas import AREAS


def tests_begin(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("#[cfg(test)]") and lines[number].startswith("mod tests"):
            return number
    return len(lines) + 1


def read(lcov):
    files, path, end = {}, None, 0
    for line in open(lcov):
        key, _, rest = line.strip().partition(":")
        if key == "SF":
            path = pathlib.Path(rest).relative_to(pathlib.Path.cwd())
            end = tests_begin(path)
            files[path] = {}
        elif key == "DA":
            number, count = rest.split(",")[:2]
            if int(number) < end:
                files[path][int(number)] = int(count)
    return files


def ratio(lines):
    ran = sum(1 for count in lines if count)
    return f"{ran:6} of {len(lines):6} lines, {100 * ran / max(1, len(lines)):6.2f} %"


files = read(sys.argv[1])
folders = defaultdict(list)
for path, lines in files.items():
    folders["/".join(path.parts[:2])].extend(lines.values())
for folder, lines in sorted(folders.items()):
    print(f"{folder:24} {ratio(lines)}")
print(f"{'all':24} {ratio([count for lines in files.values() for count in lines.values()])}")
print()
for part, pattern in AREAS.items():
    inside = {path: lines for path, lines in files.items() if re.match(pattern, str(path))}
    print(f"{part:24} {ratio([count for lines in inside.values() for count in lines.values()])}")
    for path, lines in sorted(inside.items()):
        left = [number for number, count in sorted(lines.items()) if not count]
        text = path.read_text().splitlines()
        for number in left:
            print(f"    {path}:{number}: {text[number - 1].strip()}")
