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
td:first-child,th:first-child{text-align:left}td:last-child,th:last-child{padding-right:0}.wide{overflow-x:auto}
svg{display:block;width:100%;overflow:visible}svg text{font-size:14px;fill:var(--text)}svg .soft{fill:var(--soft);font-size:13px}
.own{fill:var(--own)}.peer{fill:var(--peer)}.bar{stroke:var(--bar);stroke-width:2;stroke-dasharray:5 3}
svg .bar-text{fill:var(--bar);font-size:13px}.OK{color:var(--good)}.MISSED{color:var(--bad);font-weight:600}.SKIPPED,.soft{color:var(--soft)}
figure{margin:0 0 1rem;break-inside:avoid}figcaption,.note{color:var(--soft);font-size:.9rem}
.charts{display:grid;gap:0 3rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.key i{display:inline-block;width:.8em;height:.8em;margin:0 .35em 0 0}.key span{margin-right:1.2em;white-space:nowrap}
@media print{body{font-size:11px;max-width:none;padding:0}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.charts{grid-template-columns:1fr 1fr}}
""".replace("\n", "")

ROW, TOP = 42, 22
# The longest bar leaves this part of the width for what stands behind it.
LONGEST = 72.0


def chart(label, rows, most=None, line=None):
    """Horizontal bars. A row is a name, a value, the text behind its bar, and whether it is imgstore's; the line is a
    value, and what it says. Positions across are in per cent, so text keeps its size whatever the width is."""
    values = [value for _, value, _, _ in rows] + ([line[0]] if line else [])
    most = most or max(values)
    height = TOP + ROW * len(rows)
    parts = [f'<svg height="{height}" role="img" aria-label="{escape(label)}">']
    for number, (name, value, text, is_own) in enumerate(rows):
        top, width = TOP + ROW * number, min(value / most, 1.0) * LONGEST
        kind = "own" if is_own else "peer"
        parts.append(f'<text x="0" y="{top + 12}">{escape(name)}</text>'
                     f'<rect class="{kind}" x="0" y="{top + 17}" width="{width:.2f}%" height="14"/>'
                     f'<text class="soft" x="{width:.2f}%" y="{top + 29}" dx="6">{escape(text)}</text>')
    if line:
        at = line[0] / most * LONGEST
        # Near the right edge the words stand on the line's left.
        anchor, shift = ("end", -5) if at > 60 else ("start", 5)
        parts.append(f'<line class="bar" x1="{at:.2f}%" x2="{at:.2f}%" y1="4" y2="{height}"/>'
                     f'<text class="bar-text" x="{at:.2f}%" y="13" dx="{shift}" text-anchor="{anchor}">{escape(line[1])}</text>')
    return "".join(parts) + "</svg>"


def figure(title, drawing, caption=""):
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h2>{escape(title)}</h2>{drawing}{caption}</figure>"


def seconds(value):
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def ratio_chart(results, measure, own, peers, bar, title):
    """imgstore's time as a share of each peer's."""
    rows = []
    for name in peers:
        if results.has(measure, name):
            mine, theirs = results.median(measure, own), results.median(measure, name)
            rows.append((name, mine / theirs, f"{mine / theirs:.2f} of {seconds(theirs)}", False))
    if not rows or not results.has(measure, own):
        return ""
    rows.sort(key=lambda row: -row[1])
    rows = [(name, value, text, True) for name, value, text, _ in rows]
    most = max([bar, *(value for _, value, _, _ in rows)])
    caption = f"{own}: {seconds(results.median(measure, own))}, as a share of each peer's time; shorter is better."
    return figure(title, chart(title, rows, most, (bar, f"bar {bar}")), caption)


def value_chart(title, values, shown_as, caption, line=None):
    rows = [(name, value, shown_as(value), name.startswith("imgstore")) for name, value in
            sorted(values.items(), key=lambda pair: pair[1])]
    return figure(title, chart(title, rows, line=line), caption) if rows else ""


def megabytes(value):
    return f"{value / 1e6:,.0f} MB" if value >= 1e7 else f"{value / 1e6:.1f} MB"


def charts(results):
    dedup, all_peers = DEDUPLICATING, ["qemu-img", *DEDUPLICATING]
    yield ratio_chart(results, "h", "imgstore", all_peers, 0.4, "First snapshot of all eight disks")
    yield ratio_chart(results, "h", "imgstore --no-delta", all_peers, 0.3, "The same without deltas")
    yield ratio_chart(results, "a", "imgstore", all_peers, 0.4, "First snapshot of one disk")
    yield ratio_chart(results, "b", "imgstore", dedup, 0.1, "Unchanged disk, read again")
    yield ratio_chart(results, "c", "imgstore", all_peers, 0.6, "Export of dev (bar 0.4 for qemu-img)")
    yield limits_chart(results)
    sizes = dict(results.sizes)
    if results.figures.get("repack"):
        sizes["imgstore, after repack"] = results.figures["repack"]["store_bytes"]
    yield value_chart("The store of all eight", sizes, megabytes, "Bytes on disk, shorter is better.",
                      (1.30e9, "bar 1,300 MB"))
    for what, bar in (("base-rebuild after base", 16e6), ("web-v2 after base and web", 44e6)):
        yield value_chart(f"Added by {what}", results.growth.get(what, {}), megabytes, "",
                          (bar, f"bar {bar / 1e6:.0f} MB"))
    for measure, title in (("h", "Memory of first snapshots"), ("c", "Memory of export or restore")):
        names = [name for name in results.times.get(measure, {}) if name in ("imgstore", *all_peers)]
        peaks = {name: results.peak(measure, name) for name in names}
        budget = BUDGET_BYTES + MEMORY_OVER_BUDGET
        yield value_chart(title, peaks, megabytes, "Peak of anonymous memory.", (budget, f"bar {budget / 1e6:.0f} MB"))


def limits_chart(results):
    """What imgstore reaches of what the machine does."""
    rows = []
    for measure, limit, what in (("b", "read + BLAKE3", "unchanged snapshot, of read + BLAKE3"),
                                 ("c", "limit", "export, of min(decompress, write)")):
        if results.has(measure, limit):
            share = results.median(measure, limit) / results.median(measure, "imgstore")
            rows.append((what, share, f"{share:.0%}", True))
    if not rows:
        return ""
    return figure("Beside what the machine can do", chart("Speed beside the limits", rows, 1.0, (0.8, "bar 80 %")),
                  "imgstore's speed as a share of the limit, both measured in the same rounds; longer is better.")


def verdicts(results):
    rows = []
    for bar in results.bars:
        most = ("at least " if bar["at_least"] else "") + shown(bar["bar"], bar["unit"])
        rows.append(f"<tr><td>{escape(bar['what'])}</td><td>{shown(bar['value'], bar['unit'])}</td><td>{most}</td>"
                    f"<td class=\"{bar['status']}\">{bar['status'].lower()}</td></tr>")
    return ("<h2>Bars</h2>\n<div class=\"wide\"><table><tr><th>what</th><th>measured</th><th>bar</th><th></th></tr>\n"
            + "\n".join(rows) + "</table></div>")


def times(results):
    parts = []
    for measure, contestants in results.times.items():
        parts.append(f"<h2>{escape(MEASURES[measure][0].upper() + MEASURES[measure][1:])}</h2>\n<div class=\"wide\"><table><tr>"
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
