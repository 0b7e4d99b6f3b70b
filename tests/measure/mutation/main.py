"""The mutation score: builds all mutants at once, and runs for each the tests that reach it until one fails."""

import argparse
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import baseline
import build
import runner
from score import Results, report

# What catches much is tried first, if it takes no longer.
QUICK_SECONDS = 2


def arguments():
    parser = argparse.ArgumentParser(prog="tests/measure/mutants", description=__doc__)
    parser.add_argument("files", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=2, help="tests that run at a time")
    parser.add_argument("--shard", metavar="K/N", default="0/1", help="each Nth mutant, from the Kth, counted from 0")
    parser.add_argument("--only", metavar="REGEX", default="", help="mutants whose line in the list matches")
    parser.add_argument("--missed", action="store_true", help="again those that were missed before")
    parser.add_argument("--again", action="store_true", help="also those of which the outcome is known")
    parser.add_argument("--most", metavar="SECONDS", type=float, default=120, help="tests for one mutant")
    return parser.parse_args()


class Score:
    def __init__(self, options):
        self.options, self.results = options, Results()
        self.tree = build.Tree(options.files)
        self.lock, self.done, self.began = threading.Lock(), 0, time.monotonic()
        self.killers = defaultdict(Counter)

    def chosen(self):
        """The mutants that are to be run."""
        shard, shards = map(int, self.options.shard.split("/"))
        alive = [mutant for mutant in self.tree.mutants if mutant.counts]
        for mutant in alive[shard::shards]:
            result = self.results.of(mutant)
            missed = self.options.missed and result in {"missed", "not reached"}
            if (result is None or missed or self.options.again) and re.search(self.options.only, mutant.place):
                yield mutant

    def run(self):
        self.results.recall_unviable(self.tree.mutants)
        programs = self.tree.build()
        self.results.keep_unviable(self.tree.mutants)
        print(f"{len(self.tree.mutants)} mutants: {dict(self.tree.counted())}", flush=True)
        run = runner.Runner(build.TREE.resolve())
        pool = ThreadPoolExecutor(self.options.jobs)
        try:
            tests = baseline.take(run, programs, pool)
            seconds = sum(test.seconds for test in tests)
            print(f"{len(tests)} tests pass, in {seconds:.0f} s; after {self.minutes()}", flush=True)
            todo = list(self.chosen())
            list(pool.map(lambda mutant: self.judge(run, tests, mutant, len(todo)), todo))
        finally:
            run.stop()
            pool.shutdown(cancel_futures=True)
            run.clean()
            self.results.write()
        report(self.tree.mutants, self.results)
        print(f"\n{self.minutes()}")

    def judge(self, run, tests, mutant, count):
        began, spent = time.monotonic(), 0.0
        place = mutant.site.mutants[0].id
        reaching = [test for test in tests if place in test.reached]
        result, by = "missed" if reaching else "not reached", ""
        for test in self.ordered(reaching, mutant.site):
            if spent > self.options.most:
                by = f"{spent:.0f} s of tests, not all"
                break
            caught = run.catches(test, mutant)
            spent += test.seconds
            if caught:
                result, by = caught, test.title
                break
        with self.lock:
            if run.stopped:
                return
            if by and result != "missed":
                self.killers[mutant.site.file][by] += 1
                self.killers[mutant.site.file, mutant.site.function][by] += 1
            self.results.keep(mutant, result, by, time.monotonic() - began)
            self.done += 1
            if self.done % 20 == 0:
                self.results.write()
            seconds = time.monotonic() - began
            print(f"{self.done}/{count} {result} {mutant.place} [{by}] {seconds:.1f} s", flush=True)

    def ordered(self, tests, site):
        """First those that caught others in this function and file, then the quickest."""
        function, file = self.killers[site.file, site.function], self.killers[site.file]
        quick = {test.title for test in tests if test.seconds < QUICK_SECONDS}
        first = [title for title, _ in function.most_common() if title in quick][:3]
        first += [title for title, _ in file.most_common() if title in quick][:5]
        rank = {title: at for at, title in reversed(list(enumerate(first)))}
        return sorted(tests, key=lambda test: (rank.get(test.title, len(first)), test.seconds))

    def minutes(self):
        return f"{(time.monotonic() - self.began) / 60:.0f} min"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    try:
        Score(arguments()).run()
    except KeyboardInterrupt:
        sys.exit("stopped: the next run goes on from here")
