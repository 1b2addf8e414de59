"""Claim: ours trains 2.3 times as fast as plain PyTorch as installed, and close to the machine's limit.

    python experiments/speed.py [--preset alexnet-paper] [--batch-size 64] [--rounds 12] [--threads 2]
        [--only ours,plain] [--json FILE] [--picture FILE.svg]

Each contender is a process of its own, since the allocator is the process's, and all make a step in turn: A B C A B C.
The others wait meanwhile and compute nothing. Ratios are taken round by round, with their 99 % interval. The product
share is the time of the step's convolutions and matrix products alone, in a process like ours, over ours in one piece.
Memory: what a process had resident at most, over what it had before it built the network (images included), and the
peak of its tensors. Plain PyTorch is an nn.Sequential of nn.Conv2d(groups=2), nn.LocalResponseNorm over all channels,
nn.Dropout and the optimizer in its default form, on float images made beforehand; ours begins with uint8 images.
Expected, on two idle cores: the targets that it prints.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Settings, bf16_lacks
from contest import Contest, DeadContenderError

from splitnet.errors import UsageError
from splitnet.measure.meter import Ratio, Spread
from splitnet.measure.records import environment, plain
from splitnet.measure.svg import RIGHT, WIDTH, Drawing, ink, ticks
from splitnet.options import check_bounds, fail, guarded, option, parse
from splitnet.reporting import counted

PRESETS = {"alexnet-paper": "sgd", "fashion": "adam"}
"""And the optimizer of its source: the paper's, the textbook's."""

PRODUCTS = tuple(f"products{dense}{end}" for dense in ("", "-dense") for end in ("", "-bf16"))
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """Speed of one contender over that of another: at least so much, with `most` at most."""

    text: str
    name: str
    base: str
    bound: float
    most: bool = False


SHARE = "product share: products / step in one piece"
TARGETS = {
    "alexnet-paper": (
        Target("float32 / plain as installed", "ours", "plain", 2.3),
        Target("float32 / plain with our allocator", "ours", "plain-kept", 1.35),
        Target(SHARE, "ours-whole", "products", 0.80),
        Target("bf16 / plain float32 as installed", "ours-bf16", "plain", 4.0),
        Target("time of two towers / in one piece", "ours-whole", "ours", 1.02, most=True),
    ),
    "fashion": (
        Target("dense / the textbook's, as installed", "ours-dense", "plain-dense", 1.2),
        Target("towers / the textbook's with groups=2", "ours", "plain", 1.2),
        Target("dense bf16 / the textbook's float32", "ours-dense-bf16", "plain-dense", 2.2),
        Target("towers bf16 / the same with groups=2", "ours-bf16", "plain", 2.2),
        Target(SHARE, "ours-whole", "products", 0.80),
        Target("time of two towers / in one piece", "ours-whole", "ours", 1.02, most=True),
    ),
}
MEMORY = (("ours", "plain"), ("ours-whole", "plain"), ("ours-dense", "plain-dense"))
"""Pairs whose first needs no more than the second at its peak."""


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("alexnet-paper", "the network", tuple(PRESETS))
    batch_size: int = option(64, "images in a step")
    rounds: int = option(12, "measured steps of each contender")
    threads: int = option(2, "CPU threads")
    optimizer: str | None = option(
        None, "the optimizer (its source's: the paper's SGD, the textbook's Adam)", ("adam", "sgd")
    )
    only: str | None = option(
        None, f"contenders, joined by commas: {', '.join(CONTENDERS)} (all that the preset and this CPU have)"
    )
    json: Path | None = option(None, "write the figures to this file")
    picture: Path | None = option(None, "draw them into this SVG file")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (2, 65536), "rounds": (1, 10**6), "threads": (1, 1024)})
        check_files(self.json, self.picture)


def check_files(json_file: Path | None, picture: Path | None) -> None:
    """UsageError for a file that cannot be written once all is measured."""
    if picture is not None and picture.suffix != ".svg":
        raise UsageError(f"--picture {picture}: the picture is SVG; name it .svg")
    for flag, path in (("--json", json_file), ("--picture", picture)):
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            raise UsageError(f"{flag} {path}: {'is a folder' if path.is_dir() else 'no such folder'}")


def chosen(options: Options) -> tuple[list[str], list[str]]:
    """Names of the contenders in the order of their steps, and lines about those that are left out."""
    lacks = bf16_lacks()
    if options.only is not None:
        names = [name.strip() for name in options.only.split(",")]
        for name in names:
            if name not in CONTENDERS:
                raise UsageError(f"--only {name}: no such contender (there are {', '.join(CONTENDERS)})")
            if lacks and CONTENDERS[name].precision == "bf16":
                raise UsageError(f"--only {name}: {lacks}")
        return list(dict.fromkeys(names)), []
    dense = () if options.preset == "fashion" else ("plain-dense", "products-dense")  # the textbook's is
    asked = [name for name in CONTENDERS if not name.startswith(dense)]
    here = [name for name in asked if not lacks or CONTENDERS[name].precision != "bf16"]
    left = [name for name in asked if name not in here]
    return here, [f"left out: {', '.join(left)}: {lacks}"] if left else []


def result(options: Options, contest: Contest, other_load: float | None, left_out: list[str]) -> dict[str, Any]:
    """All figures, as --json writes them."""
    images, found = options.batch_size, {c.name: c for c in contest.contestants}
    entries: dict[str, dict[str, Any]] = {}
    for name, contestant in found.items():
        entries[name] = {
            "said": CONTENDERS[name].said,
            "allocator": contestant.told[0].get("allocator"),
            "images_per_second": Spread.of(images / s for s in contestant.seconds),
            "seconds": contestant.seconds,
            "resident": contestant.resident(),
            "tensors": contestant.told[0].get("tensors"),
        }
        for base in ("plain", "plain-kept"):
            if base in found and name not in (base, *PRODUCTS):
                entries[name][f"to {base}"] = speed(contestant.seconds, found[base].seconds)
    settings = {name: getattr(options, name) for name in ("preset", "batch_size", "rounds", "threads")}
    settings |= {"optimizer": contest.settings.optimizer, "other_load": other_load, "left_out": left_out}
    judged = list(judgements(TARGETS[options.preset], entries))
    return plain(environment() | settings | {"contenders": entries, "targets": judged})


def speed(own: Sequence[float], base: Sequence[float]) -> Ratio:
    """From the seconds of the steps, round by round."""
    return Ratio.of(b / a for a, b in zip(own, base, strict=True))


def judgements(targets: Sequence[Target], entries: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What was aimed at, what came out, and whether that is reached: None where it was not measured."""
    for target in targets:
        entry: dict[str, Any] = {"text": target.text, "bound": target.bound, "most": target.most}
        if target.name in entries and target.base in entries:
            ratio = speed(entries[target.name]["seconds"], entries[target.base]["seconds"])
            reached = ratio.median <= target.bound if target.most else ratio.median >= target.bound
            entry |= {"value": ratio, "reached": reached}
        yield entry
    for name, base in MEMORY:
        for kind in ("resident", "tensors"):
            values = [entries.get(who, {}).get(kind) for who in (name, base)]
            if values[0] and values[1]:
                share = values[0] / values[1]
                text = f"peak memory of {name} / {base}, {kind}"
                value = {"median": share, "n": 1}
                yield {"text": text, "bound": 1.0, "most": True, "value": value, "reached": share <= 1}


def told(found: dict[str, Any]) -> Iterator[str]:
    """The figures as lines."""
    machine = found["machine"]
    threads = counted(found["threads"], "thread")
    yield f"{found['preset']}, batch {found['batch_size']}, {found['optimizer']}, {threads}, training"
    versions = f"torch {found['packages']['torch']}, Python {found['python']}"
    yield f"{versions}, {machine['processor']}, {machine['cores']} cores"
    busy = "not told" if found["other_load"] is None else f"{found['other_load']} cores"
    yield f"others kept busy meanwhile: {busy}"
    yield from found["left_out"]
    yield ""
    yield f"{'images/s':20} {'median (least-greatest, n)':30} {'/ plain [99 %]':22} {'/ plain-kept [99 %]':22}"
    for name, entry in found["contenders"].items():
        s = entry["images_per_second"]
        figures = f"{s['median']:6.1f} ({s['least']:.1f}-{s['greatest']:.1f}, n={s['n']})"
        plain_, kept = (_interval(entry.get(f"to {base}")) for base in ("plain", "plain-kept"))
        yield f"{name:20} {figures:30} {plain_:22} {kept:22} {entry['said']}"
    yield ""
    yield f"{'peak memory, MiB':20} {'resident':>10} {'tensors':>10}"
    for name, entry in found["contenders"].items():
        yield f"{name:20} {_mib(entry['resident']):>10} {_mib(entry['tensors']):>10}"
    yield ""
    for target in found["targets"]:
        bound = f"{'at most' if target['most'] else 'at least'} {target['bound']:.2f}"
        if "value" not in target:
            yield f"{target['text']}: not measured ({bound})"
            continue
        verdict = "reached" if target["reached"] else "NOT REACHED"
        yield f"{target['text']}: {_interval(target['value'])} ({bound}: {verdict})"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:,.0f}"


def _interval(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    inside = "" if ratio.get("low") is None else f" [{ratio['low']:.2f}-{ratio['high']:.2f}]"
    return f"{ratio['median']:.3f}{inside}"


LEFT = 150


def picture(found: dict[str, Any]) -> Drawing:
    """A bar for each contender: median images/s, with a whisker from the slowest to the fastest step."""
    shown = {name: entry for name, entry in found["contenders"].items() if name not in PRODUCTS}
    title = f"Training {found['preset']}, batch {found['batch_size']}, {counted(found['threads'], 'thread')}, images/s"
    said = "; ".join(f"{entry['said']}: {entry['images_per_second']['median']:.1f}" for entry in shown.values())
    drawing = Drawing(title, said + ".", WIDTH, 84 + 34 * len(shown))
    marks = ticks(max(entry["images_per_second"]["greatest"] for entry in shown.values()))
    at = [LEFT + (WIDTH - LEFT - RIGHT) * mark / marks[-1] for mark in marks]
    bottom = 44 + 34 * len(shown)
    drawing.word(12, 24, title)
    for mark, x in zip(marks, at, strict=True):
        drawing.rule(x, 44, x, bottom)
        drawing.word(x, bottom + 16, f"{mark:,g}", "middle", "soft")
    scale = (at[-1] - LEFT) / marks[-1]
    for place, (name, entry) in enumerate(shown.items()):
        figures, y = entry["images_per_second"], 50 + 34 * place
        colour = ink("forward" if name.startswith("ours") else "other")
        drawing.word(LEFT - 8, y + 15, name, "end")
        told_of = f"{entry['said']}: {figures['median']:.1f} ({figures['least']:.1f}-{figures['greatest']:.1f})"
        drawing.rect(LEFT, y, scale * figures["median"], 22, colour, told_of)
        least, greatest = (LEFT + scale * figures[end] for end in ("least", "greatest"))
        drawing.rule(least, y + 11, greatest, y + 11, "ink")
        for x in (least, greatest):
            drawing.rule(x, y + 7, x, y + 15, "ink")
        drawing.word(LEFT + 6, y + 15, f"{figures['median']:.1f}", look="on")
    return drawing


def main() -> int:
    options = parse(Options, "experiments/speed.py", __doc__ or "")
    names, left_out = chosen(options)
    optimizer = options.optimizer or PRESETS[options.preset]
    settings = Settings(
        preset=options.preset, batch_size=options.batch_size, threads=options.threads, optimizer=optimizer
    )
    try:
        with Contest(names, settings) as contest:
            contest.prepare()
            other_load = contest.run(options.rounds)
            found = result(options, contest, other_load, left_out)
    except DeadContenderError as error:
        return fail(str(error))
    print("\n".join(told(found)))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.picture is not None:
        options.picture.write_text(str(picture(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    guarded(main)
