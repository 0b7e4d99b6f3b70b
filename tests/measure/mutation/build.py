"""A copy of the tree with all mutants woven in, built once."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import rust
import weave
from find import Finder

TREE = Path("target/mutants/tree")
RUNTIME = Path(__file__).with_name("runtime.rs")
ROUNDS_MAX = 30
# They read the sources, which are others in the copy; mount file systems, which stay if they are ended; or are about
# foreign disks, which are none of what is measured.
NO_TESTS = re.compile("layering|policy|docs|free_space|hints_cli|ssh|kill|formats.*|hints|assess|lock_free")


class Tree:
    """The copy, its mutants, and what of them compiles."""

    def __init__(self, files):
        self.sources = {file: Path(file).read_bytes() for file in files}
        self.sites = [site for file, source in self.sources.items() for site in Finder(file, source).sites]
        self.mutants = [mutant for site in self.sites for mutant in site.mutants]
        # In constants last: they are never on, and the numbers of the others stay as they are.
        for number, mutant in enumerate(sorted(self.mutants, key=lambda mutant: mutant.site.const == "const")):
            mutant.id = number
        # A constant's value is computed by the compiler, which cannot ask which mutant is on.
        self.const_fns, self.woven = set(), {}

    def build(self):
        """Builds the tests; the programs that cargo made, with their names."""
        copy_tracked(self.sources)
        for _ in range(ROUNDS_MAX):
            self.write()
            errors = cargo("check", "--lib")
            if not errors:
                break
            self.drop(errors)
            print(f"{len(errors)} errors of the compiler: {dict(self.counted())}", flush=True)
        else:
            sys.exit(f"does not compile after {ROUNDS_MAX} rounds")
        return programs()

    def write(self):
        for mutant in self.mutants:
            const = mutant.site.const
            if const and (const == "const" or const.split("::")[-1] in self.const_fns):
                mutant.state = "const"
        for file, source in self.sources.items():
            plain = weave.without_const(source, rust.parse(source), self.const_fns)
            self.woven[file] = weave.Woven(plain, [site for site in self.sites if site.file == file])
            write(TREE / file, bytes(self.woven[file].out))
        runtime = RUNTIME.read_text().replace("MUTANTS: usize = 0", f"MUTANTS: usize = {len(self.mutants)}")
        write(TREE / "src/mutation.rs", runtime.encode())
        write(TREE / "src/lib.rs", Path("src/lib.rs").read_bytes() + b"\n#[allow(missing_docs)]\npub mod mutation;\n")

    def drop(self, errors):
        """Leaves out the mutants that the compiler complains about."""
        dropped = 0
        for error in errors:
            if (error["code"] or {}).get("code") == "E0015":
                self.const_fns.add(error["message"].split("`")[1].split("::")[-1])
                dropped += 1
            else:
                dropped += self.drop_one(error)
        if not dropped:
            sys.exit("cargo check fails:\n" + "\n".join(error["rendered"] for error in errors))

    def drop_one(self, error):
        """How many mutants an error takes away: the one in whose text it is, or else all of the place around it."""
        spans = sorted(error["spans"], key=lambda span: not span["is_primary"])
        for whole_place in (False, True):
            blamed = [mutant for span in spans for mutant in self.blame(span, whole_place)]
            if not blamed:
                continue
            blamed = blamed if whole_place else blamed[:1]
            alive = [mutant for mutant in blamed if mutant.state == "alive"]
            if whole_place and alive:
                print("left out as a whole: " + error["message"], *[m.place for m in alive], sep="\n    ")
            for mutant in alive:
                mutant.state = "unwoven" if whole_place else "unviable"
            return len(alive)
        return 0

    def blame(self, span, whole_place):
        woven = self.woven.get(span["file_name"])
        start, end = span["byte_start"], span["byte_end"]
        parts = woven.ranges if woven else []
        around = [part for part in parts if part[0] <= start and end <= part[1] and part[3] == whole_place]
        if not around:
            return []
        return min(around, key=lambda part: part[1] - part[0])[2]

    def counted(self):
        return Counter(mutant.state for mutant in self.mutants)


def copy_tracked(woven):
    """Copies what git knows or would add; what is the same keeps its time, so that cargo builds little anew."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], check=True, capture_output=True)
    names = {name for name in listed.stdout.decode().split("\0") if name and Path(name).is_file()}
    for name in names - set(woven) - {"src/lib.rs"}:
        write(TREE / name, Path(name).read_bytes())
        shutil.copymode(name, TREE / name)
    for path in TREE.rglob("*"):
        inside = str(path.relative_to(TREE))
        if path.is_file() and inside not in names | {"src/mutation.rs"} and not inside.startswith("target/"):
            path.unlink()


def write(path, content):
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def run_cargo(*arguments, **options):
    environment = dict(os.environ, CARGO_TARGET_DIR=str(Path("target/mutants/build").resolve()))
    # Mutants are full of what lints are against.
    environment["RUSTFLAGS"] = "--cap-lints=allow"
    command = ["cargo", *arguments, "--locked", "--message-format=json"]
    return subprocess.run(command, cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True, **options)


def cargo(*arguments):
    """The compiler's errors."""
    done = run_cargo(*arguments, "--quiet", stderr=subprocess.PIPE)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    messages = [line["message"] for line in messages if line["reason"] == "compiler-message"]
    errors = [message for message in messages if message["level"] == "error" and message["spans"]]
    if done.returncode and not errors:
        sys.exit(done.stderr)
    return errors


def programs():
    names = sorted(path.stem for path in Path("tests").glob("*.rs") if not NO_TESTS.fullmatch(path.stem))
    done = run_cargo("test", "--no-run", "--quiet", "--lib", *[word for name in names for word in ("--test", name)])
    if done.returncode:
        sys.exit(done.stdout)
    built = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    built = [line for line in built if line.get("executable") and line["profile"]["test"]]
    return {line["target"]["name"]: line["executable"] for line in built if line["target"]["kind"] != ["bin"]}
