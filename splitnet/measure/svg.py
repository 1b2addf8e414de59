"""Small pictures as SVG text: no library, no script, and they paint their own ground, light or dark as the reader's."""

from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

WIDTH, RIGHT = 860, 24
"""Of every picture, and its right margin, in pixels."""

INKS = {
    "forward": "#2f74b5",
    "backward": "#b8631a",
    "optimizer": "#2e8057",
    "data": "#8460b8",
    "exchange": "#d13f5c",
    "input": "#8a6a3a",
    "other": "#6b7480",
    "parameters": "#2f74b5",
    "gradients": "#b8631a",
    "activations": "#8460b8",
}
"""Colours that stand out from both grounds, and white words from them; what is not here is drawn as "other"."""

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.ground{fill:#ffffff}.soft{fill:#57606a}"
    ".rule{stroke:#d0d7de}.line{fill:none;stroke-width:1.5}.ink{stroke:#24292f}.on{fill:#ffffff;font-size:11px}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117}.soft{fill:#9da7b3}"
    ".rule{stroke:#30363d}.ink{stroke:#e6edf3}.on{fill:#ffffff}}"
)


def ink(name: str) -> str:
    return INKS.get(name, INKS["other"])


def number(value: float) -> str:
    """A coordinate: two decimals at most, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass
class Drawing:
    """Grows from the top; `title` is what a screen reader says of it, `text` the longer description."""

    title: str
    text: str
    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, width: float, height: float, colour: str, title: str = "") -> None:
        where = f'x="{number(x)}" y="{number(y)}" width="{number(max(width, 0.4))}" height="{number(height)}"'
        self._add("rect", f'{where} fill="{colour}"', f"<title>{escape(title)}</title>" if title else "")

    def word(self, x: float, y: float, text: str, anchor: str = "start", look: str = "") -> None:
        """`anchor`: start, middle or end of the text is at x; `look`: a class of STYLE."""
        place = f'x="{number(x)}" y="{number(y)}"'
        place += f' text-anchor="{anchor}"' if anchor != "start" else ""
        self._add("text", place + (f' class="{look}"' if look else ""), escape(text))

    def rule(self, x1: float, y1: float, x2: float, y2: float, look: str = "rule") -> None:
        ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
        self._add("line", f'{ends} class="{look}"', "")

    def line(
        self, points: list[tuple[float, float]], colour: str, title: str, dashed: bool = False, dotted: bool = False
    ) -> None:
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ' stroke-dasharray="2 4"' if dotted else ""
        self._add(
            "polyline", f'points="{path}" class="line" stroke="{colour}"{dash}', f"<title>{escape(title)}</title>"
        )

    def dot(self, x: float, y: float, colour: str, title: str) -> None:
        place = f'cx="{number(x)}" cy="{number(y)}" r="4" fill="{colour}"'
        self._add("circle", place, f"<title>{escape(title)}</title>")

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str, title: str) -> None:
        ends = "".join(f' {n}="{number(v)}"' for n, v in zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True))
        look = f'{ends} stroke="{colour}" stroke-width="1.2" marker-end="url(#head)"'
        self._add("line", look.strip(), f"<title>{escape(title)}</title>")

    def legend(self, y: float, entries: dict[str, str], x: float = 12) -> None:
        """A line of coloured squares, each with its word: name -> colour."""
        for name, colour in entries.items():
            self.rect(x, y - 10, 11, 11, colour)
            self.word(x + 16, y, name, look="soft")
            x += 34 + 7 * len(name)

    def _add(self, kind: str, attributes: str, content: str) -> None:
        self.parts.append(f"<{kind} {attributes}>{content}</{kind}>" if content else f"<{kind} {attributes}/>")

    def __str__(self) -> str:
        width, height = number(self.width), number(self.height)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' role="img" aria-label={quoteattr(self.title)}>'
            f"<title>{escape(self.title)}</title><desc>{escape(self.text)}</desc><style>{STYLE}</style>"
            f'<defs><marker id="head" viewBox="0 0 6 6" refX="5.5" refY="3" markerWidth="5" markerHeight="5"'
            f' orient="auto">'
            f'<path d="M0 0L6 3L0 6z" fill="{INKS["exchange"]}"/></marker></defs>'
            f'<rect class="ground" width="{width}" height="{height}" rx="8"/>'
        )
        return "\n".join([head, *self.parts, "</svg>\n"])


def ticks(greatest: float, about: int = 5) -> list[float]:
    """Round figures from 0 that cover `greatest`, about so many."""
    if greatest <= 0:
        return [0.0, 1.0]
    step = 10.0 ** _exponent(greatest / about)
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * about >= greatest)
    count = int(-(-greatest // step))
    return [step * i for i in range(count + 1)]


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])
