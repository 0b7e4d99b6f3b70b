"""The plot of growth: small panels in one SVG, which shows itself light or dark as the page does."""

from html import escape

STYLE = """text{font:13px system-ui,sans-serif;fill:#222}.soft{fill:#666;font-size:11px}.title{font-weight:600}
.page{fill:#fff}.axis{stroke:#bbb}.grid{stroke:#eee}.line{fill:none;stroke:#0072b2;stroke-width:1.5}.dot{fill:#0072b2}
@media (prefers-color-scheme:dark){text{fill:#e6e6e6}.soft{fill:#aaa}.page{fill:#181818}.axis{stroke:#666}
.grid{stroke:#333}.line{stroke:#56b4e9}.dot{fill:#56b4e9}}""".replace("\n", "")

# Title, key, what the value is divided by, and the unit.
PANELS = [
    ("Time to add an image", "seconds", 1, "s"),
    ("Peak memory of that", "peak_bytes", 1e6, "MB"),
    ("Time to open and list", "open_seconds", 1e-3, "ms"),
    ("gc after deleting one", "gc_seconds", 1, "s"),
    ("Store", "store_bytes", 1e6, "MB"),
    ("Index", "index_bytes", 1e6, "MB"),
    ("Feature tables", "features_bytes", 1e6, "MB"),
    ("Log without checkpoints", "log_bytes", 1e3, "kB"),
]
COLUMNS, WIDTH, HEIGHT, LEFT, TOP, GAP = 2, 300, 120, 46, 34, 34


def round_up(value):
    """The next of 1, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    unit = 1.0
    while unit < value:
        unit *= 10
    while unit > value:
        unit /= 10
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * unit >= value * 0.999)


def panel(title, points, unit, at_x, at_y):
    """Values from zero on, over the number of images."""
    last, most = max(x for x, _ in points), round_up(max(y for _, y in points) or 1)
    inner = WIDTH - LEFT - 12
    placed = [(at_x + LEFT + x / last * inner, at_y + TOP + HEIGHT * (1 - y / most)) for x, y in points]
    bottom = at_y + TOP + HEIGHT
    parts = [f'<text class="title" x="{at_x}" y="{at_y + 18}">{escape(title)}, {unit}</text>']
    for share in (0, 0.5, 1):
        y = bottom - HEIGHT * share
        kind = "axis" if share == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{at_x + LEFT}" x2="{at_x + LEFT + inner}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="soft" x="{at_x + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most * share:g}</text>')
    for x in (0, last // 2, last):
        parts.append(f'<text class="soft" x="{at_x + LEFT + x / last * inner:.1f}" y="{bottom + 15}" '
                     f'text-anchor="middle">{x}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts.append(f'<polyline class="line" points="{path}"/>')
    if len(placed) <= 40:
        parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in placed]
    return "".join(parts)


def drawing(document):
    rows = document["images"]
    lines = -(-len(PANELS) // COLUMNS)
    width, height = COLUMNS * (WIDTH + 20), lines * (TOP + HEIGHT + GAP) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
             f'aria-label="Growth over {len(rows)} images"><style>{STYLE}</style>'
             f'<rect class="page" width="{width}" height="{height}"/>']
    for number, (title, key, divisor, unit) in enumerate(PANELS):
        points = [(row["image"], row[key] / divisor) for row in rows if key in row]
        at_x, at_y = number % COLUMNS * (WIDTH + 20) + 10, number // COLUMNS * (TOP + HEIGHT + GAP)
        parts.append(panel(title, points, unit, at_x, at_y))
    return "\n".join(parts) + "\n</svg>\n"
