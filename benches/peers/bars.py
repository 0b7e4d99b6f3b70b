"""The bars: what imgstore must reach, from what was measured."""

from tools import DEDUPLICATING

BUDGET_BYTES, SMALL_BUDGET_BYTES = 512 << 20, 64 << 20
MEMORY_OVER_BUDGET = 100_000_000


class Bars:
    """Every bar whose measure was run, with its verdict."""

    def __init__(self, results):
        self.results, self.bars = results, []

    def judge(self, measure, what, value, bar, unit="x", at_least=False):
        """`value` must not exceed the bar, or must not be less; a value of None was not measured."""
        if value is None:
            status = "SKIPPED"
        else:
            holds = value >= bar if at_least else value <= bar
            status = "OK" if holds else "MISSED"
        self.bars.append({"measure": measure, "what": what, "value": value, "bar": bar, "unit": unit,
                          "at_least": at_least, "status": status})

    def ratio(self, measure, own, rivals, bar, missing):
        """The median time of imgstore against that of the fastest rival."""
        if not self.results.has(measure, own):
            return
        rival = self.results.fastest(measure, rivals)
        if rival is None:
            self.judge(measure, f"time of {own} / {missing} (not there)", None, bar)
            return
        value = self.results.median(measure, own) / self.results.median(measure, rival)
        self.judge(measure, f"time of {own} / {rival}", value, bar)

    def first_snapshots(self):
        self.ratio("a", "imgstore", ["qemu-img"], 0.6, "qemu-img")
        self.ratio("a", "imgstore", DEDUPLICATING, 0.4, "a deduplicating peer")
        for own, bar in (("imgstore", 0.4), ("imgstore --no-delta", 0.3)):
            self.ratio("h", own, ["qemu-img"], bar, "qemu-img")
            self.ratio("h", own, DEDUPLICATING, bar, "a deduplicating peer")

    def unchanged(self):
        self.ratio("b", "imgstore", DEDUPLICATING, 0.1, "a deduplicating peer")
        self.ratio("b", "imgstore", ["imgstore, first"], 0.25, "")
        if self.results.has("b", "read + BLAKE3"):
            share = self.results.median("b", "read + BLAKE3") / self.results.median("b", "imgstore")
            self.judge("b", "speed of imgstore / read + BLAKE3 alone", share, 0.8, at_least=True)

    def exports(self):
        if not self.results.has("c", "imgstore"):
            return
        own = self.results.median("c", "imgstore")
        row = self.results.times["c"].get("cp --sparse=always")
        if row:
            durable = sorted(sum(pair) for pair in zip(row["seconds"], row["fsync_seconds"]))
            self.judge("c", "time of imgstore / cp --sparse=always and fsync", own / durable[len(durable) // 2], 1.0)
        self.ratio("c", "imgstore", ["qemu-img"], 0.4, "qemu-img")
        self.ratio("c", "imgstore", DEDUPLICATING, 0.6, "a peer that restores")
        limit = self.results.fastest("c", ["limit"])
        if limit:
            share = self.results.median("c", "limit") / own
            self.judge("c", "speed of export / min(decompress, direct write)", share, 0.8, at_least=True)

    def stores(self):
        sizes = self.results.sizes
        own = sizes.get("imgstore")
        if own is None:
            return
        for peer, bar in (("restic", 0.80), ("zpaq", 0.95)):
            self.judge("d", f"store of imgstore / {peer}", own / sizes[peer] if peer in sizes else None, bar)
        self.judge("d", "store of imgstore", own, 1.30e9, "bytes")

    def growth(self):
        bars = {"base-rebuild after base": 16e6, "web-v2 after base and web": 44e6}
        for what, bar in bars.items():
            value = self.results.growth.get(what, {}).get("imgstore")
            if value is not None:
                self.judge("i", what, value, bar, "bytes")
        repacked = self.results.figures.get("repack")
        if repacked:
            self.judge("i", "store after repack and gc", repacked["store_bytes"], 1.18e9, "bytes")

    def verified(self):
        own = self.results.verified.get("imgstore")
        if own:
            different = sum(not same for same in own.values())
            self.judge("e", f"images of {len(own)} that came back different", different, 0, "images")
        others = [same for name, images in self.results.verified.items() if name != "imgstore" for same in images.values()]
        if others:
            self.judge("c", f"of {len(others)} other tools' restores, different", sum(not s for s in others), 0, "images")

    def memory(self):
        for budget in (BUDGET_BYTES, SMALL_BUDGET_BYTES):
            peaks = self.results.figures.get("memory", {}).get(str(budget >> 20))
            if peaks:
                command = max(peaks, key=peaks.get)
                what = f"memory of {len(peaks)} commands, budget {budget >> 20} MiB: {command}"
                self.judge("f", what, peaks[command], budget + MEMORY_OVER_BUDGET, "bytes")

    def copy(self):
        copy = self.results.figures.get("copy")
        if copy:
            self.judge("g", "bytes moved, off the prediction", abs(copy["moved"] - copy["predicted"]), 0, "bytes")
            self.judge("g", "growth of the target / bytes moved", copy["growth"] / copy["moved"], 1.01)
            self.judge("g", "bytes moved by copying again", copy["moved again"], 0, "bytes")


def judge(results):
    bars = Bars(results)
    for part in (bars.first_snapshots, bars.unchanged, bars.exports, bars.stores, bars.verified, bars.memory, bars.copy,
                 bars.growth):
        part()
    return bars.bars


def shown(value, unit):
    if value is None:
        return "–"
    if unit == "x":
        return f"{value:.3f} x"
    if unit == "bytes" and value >= 1e6:
        return f"{value / 1e6:,.1f} MB"
    return f"{int(value):,} {unit}"
