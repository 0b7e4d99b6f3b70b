"""What came of the mutants: kept between runs, counted by area, listed."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from areas import AREAS  # noqa: E402

RESULTS = Path("target/mutants/results.json")
CAUGHT = ("failed", "timeout")


def area(file):
    return next((name for name, pattern in AREAS.items() if re.match(pattern, file)), "other")


class Results:
    """By a mutant's key: what came of it, and which test said so."""

    def __init__(self):
        self.all = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}

    def keep(self, mutant, result, by, seconds):
        self.all[mutant.key] = {"result": result, "by": by, "seconds": round(seconds, 2)}

    def keep_unviable(self, mutants):
        for mutant in mutants:
            if mutant.state == "unviable":
                self.all[mutant.key] = {"result": "unviable"}
        self.write()

    def recall_unviable(self, mutants):
        """Spares the compiler what it said before."""
        for mutant in mutants:
            if self.of(mutant) == "unviable":
                mutant.state = "unviable"

    def of(self, mutant):
        return self.all.get(mutant.key, {}).get("result")

    def write(self):
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        new = RESULTS.with_suffix(".new")
        new.write_text(json.dumps(self.all, indent=1, sort_keys=True))
        new.rename(RESULTS)


def row(name, mutants, results):
    found = Counter(results.of(mutant) for mutant in mutants if mutant.counts)
    unviable = sum(1 for mutant in mutants if mutant.state == "unviable")
    caught, viable = sum(found[result] for result in CAUGHT), found.total() - found[None]
    percent = f"{100 * caught / viable:.1f} %" if viable else "-"
    cells = [viable, caught, percent, found["timeout"], found["missed"], found["not reached"], found[None]]
    return [name, *cells, unviable, len(mutants) - found.total() - unviable]


def report(mutants, results):
    names = ["", "viable", "caught", "", "by time", "missed", "not reached", "not run", "unviable", "left out"]
    rows = [row(name, [m for m in mutants if area(m.site.file) == name], results) for name in [*AREAS, "other"]]
    for cells in [names, *rows, row("all", mutants, results)]:
        print(f"{cells[0]:12}" + "".join(f"{cell:>12}" for cell in cells[1:]))
    print()
    for mutant in mutants:
        if mutant.counts and results.of(mutant) in {"missed", "not reached"}:
            print(f"{results.of(mutant)}: {mutant.place}")
