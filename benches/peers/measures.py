"""The measures. Each leaves times, sizes and figures in the results, and judges nothing."""

import json
import random
import statistics

from bars import BUDGET_BYTES, SMALL_BUDGET_BYTES
from timing import Failed, Run, Together, du, is_same, remove, say, seconds_to_sync, warm
from tools import Imgstore, ImgstoreNoDelta

IMAGES = ["base", "web", "web-v2", "db", "dev", "base-rebuild", "trixie", "data"]
MEASURES = {
    "a": "first snapshot of base into an empty region",
    "b": "unchanged second snapshot of web-v2",
    "c": "export of dev to raw",
    "h": "first snapshot of the whole corpus, image after image",
    "d": "the whole store over all eight images",
    "e": "every image exported and compared byte by byte",
    "g": "copy of web after base between two regions",
    "f": "peak anonymous memory of imgstore's commands",
    "i": "what a rebuilt and an upgraded image add, and the store after repack",
}
NEEDS = {"a": ["base"], "b": ["web-v2"], "c": ["dev"], "d": IMAGES, "e": IMAGES, "f": ["base", "web"],
         "g": ["base", "web"], "h": IMAGES, "i": IMAGES}


class Comparison:
    """All measures, with the peers that are there."""

    def __init__(self, args, work, peers, limits, results):
        self.args, self.work, self.peers, self.results = args, work, peers, results
        self.limits = limits
        self.kept, self.kept_ids = None, {}

    def disk(self, image):
        return self.args.corpus / f"{image}.raw"

    def deduplicating(self):
        return [peer for peer in self.peers if peer.again_flags is not None]

    # Measuring

    def rounds(self, measure, contests):
        """Runs every contest once in each round, in another order each time, so that none always follows the same one. A
        contest gives its timed runs, by name; a slow one that has a time already is left out."""
        count = self.args.rounds
        for number in range(count):
            random.Random(number + 100 * len(self.results.runs)).shuffle(contests)
            for name, is_slow, contest in contests:
                if is_slow and self.results.has(measure, name):
                    continue
                for name, run in contest().items():
                    run, fsync_seconds = run if isinstance(run, tuple) else (run, None)
                    self.results.add(measure, name, run, fsync_seconds)
                    durable = "" if fsync_seconds is None else f"  and {fsync_seconds:.2f} s to make it durable"
                    say(f"  round {number + 1}/{count}  {name:<24}{run.seconds:8.2f} s{durable}")
        self.table(measure)

    def table(self, measure):
        heads = "".join(f"{head:>10}" for head in ("rounds", "median s", "best s", "cpu s", "peak MB", "imgstore"))
        say(f"  {'':<24}{heads}")
        rows = self.results.times[measure]
        for name, row in rows.items():
            median = statistics.median(row["seconds"])
            own = f"{self.results.median(measure, 'imgstore') / median:.3f} x" if "imgstore" in rows else ""
            cells = [median, min(row["seconds"]), statistics.median(row["cpu_seconds"])]
            cells = "".join(f"{cell:>10.2f}" for cell in cells)
            peak = max(row["peak_bytes"]) / 1e6
            say(f"  {name:<24}{len(row['seconds']):>10}{cells}{peak:>10.0f}{own:>10}")

    def own(self, *contests):
        """imgstore's contests, unless only its peers are asked for."""
        return [] if self.args.no_imgstore else list(contests)

    def stored(self, measure, tools, disk):
        """A store of each tool with a disk in it, made before any round; not of a slow one that has its time already."""
        made = {}
        for tool in tools:
            if not (tool.is_slow and self.results.has(measure, tool.name)):
                made[tool] = tool(self.work / f"{measure}-{tool.name}")
                made[tool].store(disk)
        return made

    # Times

    def a(self):
        base = self.disk("base")

        def first(tool):
            def contest():
                made = tool(self.work / "a")
                warm(base)
                run = made.store(base)
                remove(made.path)
                return {tool.name: run}
            return contest

        contests = self.own(("imgstore", False, first(Imgstore)))
        contests += [(peer.name, peer.is_slow, first(peer)) for peer in self.peers]
        self.rounds("a", contests)

    def b(self):
        disk = self.disk("web-v2")

        def imgstore():
            store = Imgstore(self.work / "b-imgstore")
            warm(disk)
            first = store.store(disk)
            warm(disk)
            again = store.store(disk)
            new = json.loads(again.out)["new_chunks"]
            if new != 0:
                raise Failed(f"an unchanged disk had {new} new chunks")
            remove(store.path)
            return {"imgstore": again, "imgstore, first": first}

        def limit():
            warm(disk)
            return {"read + BLAKE3": Run([self.limits, "read", disk])}

        def again(peer):
            def contest():
                warm(disk)
                return {peer.name: made[peer].again(disk)}
            return contest

        made = self.stored("b", self.deduplicating(), disk)
        contests = self.own(("imgstore", False, imgstore), ("read + BLAKE3", False, limit))
        contests += [(peer.name, peer.is_slow, again(peer)) for peer in self.deduplicating()]
        self.rounds("b", contests)
        for repository in made.values():
            remove(repository.path)

    def c(self):
        disk, folder = self.disk("dev"), self.work / "c-output"
        made = self.stored("c", [*self.own(Imgstore), *self.peers], disk)

        def given_back(name, source, restore):
            """A timed restore into an empty folder, then how long it takes to make it durable, in no time of its own."""
            folder.mkdir()
            warm(source)
            run, file = restore()
            fsync_seconds = seconds_to_sync(file)
            if "dev" not in self.results.verified.get(name, {}):
                self.results.verify(name, "dev", is_same(disk, file))
            remove(folder)
            return {name: (run, fsync_seconds)}

        def imgstore():
            store = made[Imgstore]
            return given_back("imgstore", store.path, lambda: store.restore(disk, folder))

        def limit():
            """The slower of decompressing what imgstore decompresses and of writing as much past the page cache."""
            store = made[Imgstore]
            warm(store.path)
            decompress = json.loads(Run([self.limits, "decompress", store.path / "regions/local"]).out)
            data = decompress["bytes"]
            file = self.work / "c-limit"
            write = json.loads(Run([self.limits, "write", file, data]).out)
            remove(file)
            return {"decompress alone": Given(decompress["seconds"]), "direct write alone": Given(write["seconds"]),
                    "limit": Given(max(decompress["seconds"], write["seconds"]))}

        def cp():
            file = folder / disk.name
            name = "cp --sparse=always"
            return given_back(name, disk, lambda: (Run(["cp", "--sparse=always", disk, file]), file))

        def peers(peer):
            def contest():
                tool = made[peer]
                return given_back(peer.name, tool.path, lambda: tool.restore(disk, folder))
            return contest

        # Memory that holds what was just stored, or that a host took back, costs whoever first wants it: nobody timed.
        folder.mkdir()
        Run(["cp", "--sparse=always", disk, folder / disk.name])
        remove(folder)
        contests = self.own(("imgstore", False, imgstore), ("limit", False, limit))
        contests += self.own(("cp --sparse=always", False, cp))
        contests += [(peer.name, peer.is_slow, peers(peer)) for peer in self.peers]
        self.rounds("c", contests)
        for repository in made.values():
            remove(repository.path)

    def whole(self, tool):
        """All images into a new store: a run for each. Notes what the store took in the end, and what web-v2 added."""
        made = tool(self.work / "h")
        runs, sizes = [], {}
        for image in IMAGES:
            warm(self.disk(image))
            runs.append(made.store(self.disk(image)))
            sizes[image] = du(made.path)
        remove(made.path)
        self.results.sizes[tool.name] = sizes[IMAGES[-1]]
        added = self.results.growth.setdefault("web-v2 after base and web", {})
        added[tool.name] = sizes["web-v2"] - sizes["web"]
        return runs

    def h(self):
        def contest(tool):
            return lambda: {tool.name: Together(self.whole(tool))}

        contests = self.own(("imgstore", False, contest(Imgstore)), ("imgstore --no-delta", False, contest(ImgstoreNoDelta)))
        contests += [(peer.name, peer.is_slow, contest(peer)) for peer in self.peers]
        self.rounds("h", contests)

    # Sizes

    def d(self):
        for tool in [*self.own(Imgstore), *self.peers]:
            if tool.name not in self.results.sizes:
                self.whole(tool)
        sizes = self.results.sizes
        for name, size in sizes.items():
            against = f"{sizes['imgstore'] / size:>10.3f} x" if "imgstore" in sizes else ""
            say(f"  {name:<20}{size:>14,} bytes{against}")

    def keep(self, images):
        """A home with snapshots of these images, for e, f, g and i together."""
        if self.kept is None:
            self.kept = Imgstore(self.work / "kept")
        for image in images:
            if image not in self.kept_ids:
                _, self.kept_ids[image] = self.kept.snapshot(self.disk(image))
        return self.kept

    def e(self):
        store, output = self.keep(IMAGES), self.work / "e.raw"
        for image in IMAGES:
            store.export(self.kept_ids[image], output)
            same = is_same(self.disk(image), output)
            self.results.verify("imgstore", image, same)
            say(f"  {image:<16}{'same' if same else 'DIFFERENT'}")
            remove(output)

    def i(self):
        added = self.results.growth.setdefault("base-rebuild after base", {})
        for tool in [*self.own(Imgstore), *self.peers]:
            if tool.name in added:
                continue
            made = tool(self.work / "i")
            made.store(self.disk("base"))
            before = du(made.path)
            made.store(self.disk("base-rebuild"))
            added[tool.name] = du(made.path) - before
            remove(made.path)
        for what, sizes in self.results.growth.items():
            for name, size in sizes.items():
                say(f"  {what:<28}{name:<20}{size:>14,} bytes")
        if not self.args.no_imgstore:
            self.repack()

    def repack(self):
        store = self.keep(IMAGES)
        run = store.run("repack")
        store.ask("gc", "--grace", "0s")
        size = du(store.home)
        self.results.figures["repack"] = {"seconds": run.seconds, "cpu_seconds": run.cpu, "peak_bytes": run.peak,
                                          "store_bytes": size}
        self.note_memory(BUDGET_BYTES, "repack", run)
        say(f"  repack took {run.seconds:.0f} s, {run.cpu:.0f} s of processor time, {run.peak / 1e6:.0f} MB; "
            f"then the store has {size:,} bytes")

    # Memory

    def note_memory(self, budget, command, run):
        peaks = self.results.figures.setdefault("memory", {}).setdefault(str(budget >> 20), {})
        peaks[command] = max(run.peak, peaks.get(command, 0))

    def f(self):
        for budget in (BUDGET_BYTES, SMALL_BUDGET_BYTES):
            store, output = Imgstore(self.work / "f-imgstore"), self.work / "f.raw"
            memory = ("--memory", f"{budget >> 20}MiB")

            def noted(command, *words):
                run = store.run(*memory, *words)
                self.note_memory(budget, command, run)
                say(f"  budget {budget >> 20:>3} MiB  {command:<24}{run.peak / 1e6:8.1f} MB")
                return json.loads(run.out) if run.out else None

            noted("snapshot", "snapshot", self.disk("base"))
            snapshot = noted("snapshot, with deltas", "snapshot", self.disk("web"))["snapshot_id"]
            noted("snapshot, unchanged", "snapshot", self.disk("web"))
            noted("export", "export", snapshot, output)
            remove(output)
            noted("verify", "verify")
            store.ask("region", "add", "peer", self.work / "f-region")
            noted("copy", "copy", snapshot, "--to", "peer")
            noted("bench dedup", "bench", "dedup", self.disk("base"), self.disk("web"))
            noted("repack", "repack")
            noted("gc", "gc", "--grace", "0s")
            remove(store.path)
            remove(self.work / "f-region")

    def g(self):
        store = self.keep(["base", "web"])
        target = self.work / "g-region"
        store.ask("region", "add", "peer", target)
        store.ask("copy", self.kept_ids["base"], "--to", "peer")
        web = self.kept_ids["web"]
        predicted = store.ask("copy", web, "--to", "peer", "--dry-run")["transferred_bytes"]
        before = store.ask("--region", "peer", "stats")["store_bytes"]
        moved = store.ask("copy", web, "--to", "peer")["transferred_bytes"]
        growth = store.ask("--region", "peer", "stats")["store_bytes"] - before
        again = store.ask("copy", web, "--to", "peer")["transferred_bytes"]
        figures = {"predicted": predicted, "moved": moved, "growth": growth, "moved again": again}
        self.results.figures["copy"] = figures
        for name, value in figures.items():
            say(f"  {name:<16}{value:>14,} bytes")
        if moved == 0:
            raise Failed("web after base moved nothing: there is nothing to judge")
        store.ask("region", "remove", "peer")
        remove(target)


class Given:
    """A time that a program measured itself."""

    def __init__(self, seconds):
        self.seconds, self.cpu, self.peak = seconds, 0.0, 0
