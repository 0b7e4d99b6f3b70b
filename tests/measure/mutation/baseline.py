"""The tests, with what each reaches and how long it takes while no mutant is on."""

import hashlib
import json
from pathlib import Path

import build
import runner

KNOWN = Path("target/mutants/baseline.json")


def take(run, programs, pool):
    """All tests that pass. Of programs that are the same as before, what was noted then."""
    known = json.loads(KNOWN.read_text()) if KNOWN.is_file() else {}
    program = digest(build.TREE.parent / "build/debug/imgstore")
    kept, tests, todo = {}, [], []
    for name, executable in sorted(programs.items()):
        mark = f"{digest(executable)} {program}"
        kept[mark] = known.get(mark, {})
        for test in runner.listed(name, executable, build.TREE.resolve()):
            tests.append(test)
            noted = kept[mark].get(test.name)
            if noted:
                test.seconds, test.cpu, test.passes, test.reached = *noted[:3], set(noted[3])
            else:
                todo.append((test, kept[mark]))
    print(f"{len(tests)} tests, {len(todo)} of them new or changed", flush=True)
    for test, place in pool.map(lambda each: note(run, *each), todo):
        place[test.name] = [test.seconds, test.cpu, test.passes, sorted(test.reached)]
    KNOWN.write_text(json.dumps(kept))
    for test in tests:
        if not test.passes:
            print(f"left out, it fails without a mutant: {test.title}")
    return [test for test in tests if test.passes]


def note(run, test, place):
    test.passes = run.reach(test).result == "passed"
    return test, place


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
