"""The page: one HTML file that needs nothing else, for a screen, a phone and paper, light and dark."""

import statistics
from html import escape

from bars import BUDGET_BYTES, MEMORY_OVER_BUDGET, shown
from measures import MEASURES
from tools import DEDUPLICATING

STYLE = """
:root{--text:#222;--soft:#555;--line:#ddd;--page:#fff;--own:#0072b2;--peer:#999;--bar:#d55e00;--good:#00734f;--bad:#b00020}
@media (prefers-color-scheme:dark){:root{--text:#e6e6e6;--soft:#aaa;--line:#444;--page:#181818;--own:#56b4e9;--peer:#7a7a7a;
--bar:#e69f00;--good:#4cc38a;--bad:#ff7b7b}}
@media print{:root{--text:#222;--soft:#555;--line:#ddd;--page:#fff;--own:#0072b2;--peer:#999;--bar:#d55e00;--good:#00734f;
--bad:#b00020}}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:var(--text);background:var(--page)}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .8rem .25rem 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:bottom}
td{white-space:nowrap}td:first-child,th:first-child{text-align:left}.bars td:first-child{white-space:normal}
.bars th{padding-top:.9rem}td:last-child,th:last-child{padding-right:0}.wide{overflow-x:auto}
svg{display:block;width:100%;overflow:visible}svg text{font-size:14px;fill:var(--text)}svg .soft{fill:var(--soft);font-size:13px}
.own{fill:var(--own)}.peer{fill:var(--peer)}.bar{stroke:var(--bar);stroke-width:2;stroke-dasharray:5 3}
svg .soft{paint-order:stroke;stroke:var(--page);stroke-width:4px}svg .bar-text{fill:var(--bar);font-size:13px}.OK{color:var(--good)}.MISSED{color:var(--bad);font-weight:600}.SKIPPED,.soft{color:var(--soft)}
figure{margin:0 0 1rem;break-inside:avoid}figcaption,.note{color:var(--soft);font-size:.9rem}
.charts{display:grid;gap:0 3rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.key i{display:inline-block;width:.8em;height:.8em;margin:0 .35em 0 0}.key span{margin-right:1.2em;white-space:nowrap}
@media print{body{font-size:11px;max-width:none;padding:0}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.charts{grid-template-columns:1fr 1fr}}
""".replace("\n", "")

ROW, TOP = 42, 22
# The longest bar leaves this part of the width for what stands behind it.
LONGEST = 72.0


class Row:
    """A bar: a name, a value, the text behind it, whether it is imgstore's, and the bar that it must reach, if any."""

    def __init__(self, name, value, text, is_own, bar=None):
        self.name, self.value, self.text, self.is_own, self.bar = name, value, text, is_own, bar


def chart(label, rows, line_text=""):
    """Horizontal bars, each with a line at the bar it must reach. Positions across are in per cent, so text keeps its
    size whatever the width is."""
    most = max([row.value for row in rows] + [row.bar for row in rows if row.bar])
    parts = [f'<svg height="{TOP + ROW * len(rows)}" role="img" aria-label="{escape(label)}">']
    for number, row in enumerate(rows):
        top, width = TOP + ROW * number, row.value / most * LONGEST
        kind = "own" if row.is_own else "peer"
        parts.append(f'<text x="0" y="{top + 12}">{escape(row.name)}</text>'
                     f'<rect class="{kind}" x="0" y="{top + 17}" width="{width:.2f}%" height="14"/>')
        if row.bar:
            at = row.bar / most * LONGEST
            parts.append(f'<line class="bar" x1="{at:.2f}%" x2="{at:.2f}%" y1="{top + (14 if number else -18)}" '
                         f'y2="{top + 36}"/>')
        parts.append(f'<text class="soft" x="{width:.2f}%" y="{top + 29}" dx="6">{escape(row.text)}</text>')
    if line_text:
        at = rows[0].bar / most * LONGEST
        # Near the right edge the words stand on the line's left.
        anchor, shift = ("end", -5) if at > 60 else ("start", 5)
        parts.append(f'<text class="bar-text" x="{at:.2f}%" y="13" dx="{shift}" text-anchor="{anchor}">{escape(line_text)}'
                     "</text>")
    return "".join(parts) + "</svg>"


def figure(title, drawing, caption=""):
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h2>{escape(title)}</h2>{drawing}{caption}</figure>"


def seconds(value):
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def ratio_chart(results, measure, own, bars, title):
    """imgstore's time as a share of each peer's. `bars` is by peer."""
    there = [name for name in bars if results.has(measure, name)]
    if not there or not results.has(measure, own):
        return ""
    mine, rows = results.median(measure, own), []
    for name in there:
        theirs = results.median(measure, name)
        rows.append(Row(name, mine / theirs, f"{mine / theirs:.2f} of {seconds(theirs)}", True, bars[name]))
    rows.sort(key=lambda row: -row.value)
    one = {row.bar for row in rows}
    text = f"bar {rows[0].bar}" if len(one) == 1 else "bar"
    caption = f"{own}: {seconds(mine)}, as a share of each peer's time; shorter is better."
    if len(one) > 1:
        caption += f" The bar is {bars['qemu-img']} for qemu-img, {bars['restic']} for the others."
    return figure(title, chart(title, rows, text), caption)


def value_chart(title, values, caption, bar):
    """Bytes of each tool; the bar is imgstore's, and stands on its rows."""
    rows = [Row(name, value, megabytes(value), name.startswith("imgstore"), bar)
            for name, value in sorted(values.items(), key=lambda pair: pair[1])]
    return figure(title, chart(title, rows, f"bar {megabytes(bar)}"), caption) if rows else ""


def megabytes(value):
    return f"{value / 1e6:,.0f} MB" if value >= 1e7 else f"{value / 1e6:.1f} MB"


def against(qemu, others):
    """A bar for each peer; qemu-img has one of its own, or none."""
    bars = {name: others for name in DEDUPLICATING}
    return {"qemu-img": qemu, **bars} if qemu else bars


def charts(results):
    yield ratio_chart(results, "h", "imgstore", against(0.4, 0.4), "First snapshot of all eight disks")
    yield ratio_chart(results, "h", "imgstore --no-delta", against(0.3, 0.3), "The same without deltas")
    yield ratio_chart(results, "a", "imgstore", against(0.6, 0.4), "First snapshot of one disk")
    yield ratio_chart(results, "b", "imgstore", against(None, 0.1), "Unchanged disk, read again")
    yield ratio_chart(results, "c", "imgstore", against(0.4, 0.6), "Export of a disk to raw")
    yield limits_chart(results)
    sizes = dict(results.sizes)
    if results.figures.get("repack"):
        sizes["imgstore, after repack"] = results.figures["repack"]["store_bytes"]
    yield value_chart("The store of all eight", sizes, "Bytes on disk; shorter is better.", 1.30e9)
    for what, bar in (("base-rebuild after base", 16e6), ("web-v2 after base and web", 44e6)):
        yield value_chart(f"What {what} adds", results.growth.get(what, {}), "", bar)
    for measure, title in (("h", "Memory of first snapshots"), ("c", "Memory of export or restore")):
        there = [name for name in results.times.get(measure, {}) if name in ("imgstore", "qemu-img", *DEDUPLICATING)]
        peaks = {name: results.peak(measure, name) for name in there}
        yield value_chart(title, peaks, "Peak of anonymous memory.", BUDGET_BYTES + MEMORY_OVER_BUDGET)


def limits_chart(results):
    """What imgstore reaches of what the machine does."""
    rows = []
    for measure, limit, what in (("b", "read + BLAKE3", "unchanged snapshot"), ("c", "limit", "export")):
        if results.has(measure, limit) and results.has(measure, "imgstore"):
            share = results.median(measure, limit) / results.median(measure, "imgstore")
            rows.append(Row(what, share, f"{share:.0%}", True, 0.8))
    if not rows:
        return ""
    return figure("Beside what the machine can do", chart("Speed beside the limits", rows, "bar 80 %"),
                  "imgstore's speed as a share of reading with BLAKE3 alone, and of the slower of decompressing and writing "
                  "alone, in the same rounds; longer is better.")


MARKS = {"OK": "✓", "MISSED": "✗", "SKIPPED": ""}


def verdicts(results):
    rows, last = [], None
    for bar in results.bars:
        if bar["measure"] != last:
            last = bar["measure"]
            rows.append(f"<tr><th colspan=\"3\">{escape(sentence(MEASURES[last]))}</th></tr>")
        most = ("≥ " if bar["at_least"] else "≤ ") + shown(bar["bar"], bar["unit"])
        rows.append(f"<tr><td>{escape(bar['what'])}</td><td class=\"{bar['status']}\">{MARKS[bar['status']]} "
                    f"{shown(bar['value'], bar['unit'])}</td><td>{most}</td></tr>")
    return ("<h2>Bars</h2>\n<div class=\"wide\"><table class=\"bars\">\n" + "\n".join(rows) + "</table></div>")


def sentence(text):
    return text[0].upper() + text[1:]


def times(results):
    parts = []
    for measure, contestants in results.times.items():
        parts.append(f"<h2>{escape(sentence(MEASURES[measure]))}</h2>\n<div class=\"wide\"><table><tr>"
                     "<th></th><th>rounds</th><th>median</th><th>best</th><th>processor</th><th>memory</th>"
                     "<th>then fsync</th></tr>\n")
        for name, row in contestants.items():
            durable = f"{statistics.median(row['fsync_seconds']):.2f} s" if "fsync_seconds" in row else ""
            cells = [str(len(row["seconds"])), seconds(statistics.median(row["seconds"])), seconds(min(row["seconds"])),
                     seconds(statistics.median(row["cpu_seconds"])) if any(row["cpu_seconds"]) else "–",
                     megabytes(max(row["peak_bytes"])) if any(row["peak_bytes"]) else "–", durable]
            parts.append(f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
        parts.append("</table></div>")
    return "".join(parts)


def page(results):
    machine, last = results.machine, results.runs[-1]
    missed = sum(bar["status"] == "MISSED" for bar in results.bars)
    held = sum(bar["status"] == "OK" for bar in results.bars)
    versions = ", ".join(escape(version) for version in results.versions.values())
    absent = "; ".join(f"{escape(name)}: {escape(why)}" for name, why in results.absent.items())
    commands = "".join(f"<li>{escape(run['date'])}, load {run['load']:.1f}: <code>{escape(run['command'])}</code></li>"
                       for run in results.runs)
    failures = "".join(f"<p class=\"MISSED\">Not measured to the end: {escape(run['failure'])}</p>"
                       for run in results.runs if run["failure"])
    return f"""<!DOCTYPE html>
<!-- benches/peers/run -->
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/><title>imgstore beside its peers</title><style>{STYLE}</style></head><body>
<h1>imgstore beside its peers, on eight Debian disks</h1>
<p>{escape(last['date'][:10])}, {machine['processors']} processors ({escape(machine['processor'])}),
{machine['memory_bytes'] / 2**30:.0f} GiB, {escape(machine['system'])}. Medians of interleaved rounds, warm cache.
<strong>{held} bars hold, <span class="{'MISSED' if missed else 'OK'}">{missed} missed</span>.</strong></p>{failures}
<p class="key"><span><i style="background:var(--own)"></i>imgstore</span><span><i style="background:var(--peer)"></i>a peer</span>
<span><i style="background:var(--bar)"></i>the bar</span></p>
<div class="charts">{"".join(charts(results))}</div>
{verdicts(results)}
{times(results)}
<h2>How</h2>
<p class="note">{versions}.{" Not there: " + absent + "." if absent else ""}</p><ul class="note">{commands}</ul>
</body></html>
"""
