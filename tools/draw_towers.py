"""Draw the two towers and their crossings from the table: python tools/draw_towers.py > docs/towers.svg"""

import sys

from splitnet.network.architecture import Architecture, Row
from splitnet.network.presets import preset

WIDTH, HEIGHT = 980, 330
LEFT, STEP, BOX = 92, 110, 76
TOP, BOTTOM, TALL = 64, 206, 58
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
  .name { font-weight: 600 } .small { font-size: 11px; fill: #59636e } .bytes { font-size: 11px; fill: #b35900 }
  .tower0 { fill: #ddf4ff; stroke: #0969da } .tower1 { fill: #dafbe1; stroke: #1a7f37 }
  .flow { stroke: #59636e; stroke-width: 1.5 } .cross { stroke: #d4711c; stroke-width: 2 }
  path { fill: none } #flow path { fill: #59636e } #cross path { fill: #d4711c }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .bytes { fill: #ffa657 }
    .tower0 { fill: #12263f; stroke: #4493f8 } .tower1 { fill: #12301c; stroke: #3fb950 }
    .flow { stroke: #9198a1 } #flow path { fill: #9198a1 }
  }"""


def draw(architecture: Architecture) -> str:
    """The SVG: a column for each row of the table, a line of boxes for each tower."""
    rows = architecture.rows()
    parts = [_images(architecture), *(_label(tower) for tower in range(architecture.towers))]
    for column, row in enumerate(rows):
        parts += [_box(row, column, tower) for tower in range(row.holders)]
        parts += _arrows(row, column)
    title = (
        f"{architecture.name}: {architecture.towers} towers that exchange activations only in front of"
        f" {', '.join(row.name for row in rows if row.crosses)}"
    )
    parts.append(f'<text class="small" x="{WIDTH // 2}" y="{HEIGHT - 14}">{caption(architecture)}</text>')
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">
<title>{title}</title>
<style>{STYLE}
</style>
<defs>{_marker("flow")}{_marker("cross")}</defs>
{body}
</svg>
"""


def _marker(name: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        f' markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/></marker>'
    )


def _top(tower: int) -> int:
    return BOTTOM if tower else TOP


def _left(column: int) -> int:
    return LEFT + column * STEP


def _images(architecture: Architecture) -> str:
    middle = (TOP + BOTTOM + TALL) // 2
    size, channels = architecture.size, architecture.channels
    return (
        f'<text class="name" x="36" y="{middle - 3}">images</text>'
        f'<text class="small" x="36" y="{middle + 14}">{channels}×{size}×{size}</text>'
    )


def _label(tower: int) -> str:
    y = _top(tower) + (TALL + 20 if tower else -10)
    return f'<text class="small" style="text-anchor: start" x="{LEFT}" y="{y}">tower {tower} on cuda:{tower}</text>'


def _box(row: Row, column: int, tower: int) -> str:
    x, y = _left(column), _top(tower)
    middle = x + BOX // 2
    side = row.outputs[-1][1]
    shape = f"{row.layer.out // row.holders}" + (f"×{side}×{side}" if row.layer.kernel else "")
    return (
        f'<rect class="tower{tower}" x="{x}" y="{y}" width="{BOX}" height="{TALL}" rx="6"/>'
        f'<text class="name" x="{middle}" y="{y + 25}">{row.name}</text>'
        f'<text class="small" x="{middle}" y="{y + 43}">{shape}</text>'
    )


def _arrows(row: Row, column: int) -> list[str]:
    end, start = _left(column) - 2, _left(column) - (STEP - BOX) + 2
    arrows = []
    for tower in range(row.holders):
        y = _top(tower) + TALL // 2
        if column == 0:  # every tower sees the whole image
            middle = (TOP + BOTTOM + TALL) // 2
            arrows.append(_line("flow", 36, middle + (24 if tower else -20), end, y))
        else:
            arrows.append(_line("flow", start, y, end, y))
    if row.crosses:
        arrows += _crossing(row, start, end)
    return arrows


def _crossing(row: Row, start: int, end: int) -> list[str]:
    up, down = TOP + TALL - 8, BOTTOM + 8
    arrows = [_line("cross", start, down, end, up)]
    if not row.layer.home:
        arrows.append(_line("cross", start, up, end, down))
    middle, label = (start + end) // 2, TOP - 34
    size = sum(t.bytes for t in row.transfers(1) if t.phase == "forward")
    arrows.append(f'<text class="bytes" x="{middle}" y="{label}">{size:,}</text>')
    arrows.append(f'<text class="bytes" x="{middle}" y="{label + 14}">bytes</text>')
    return arrows


def _line(kind: str, x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<path class="{kind}" d="M{x1} {y1}L{x2} {y2}" marker-end="url(#{kind})"/>'


def caption(architecture: Architecture) -> str:
    """One line under the figure."""
    size = architecture.bytes_exchanged(1, "forward")
    return f"orange: all that crosses, in bytes for one float32 image; {size:,} forward, and as many backward"


def main() -> None:
    sys.stdout.write(draw(preset("alexnet", towers=2)))


if __name__ == "__main__":
    main()
