"""Claim: a step costs what it computes: per image no more with larger batches, towers and images than their products.

    python experiments/growth.py [--preset alexnet-paper] [--largest 256] [--batch-size 32] [--rounds 5] [--threads 2]
        [--picture FILE.svg]

Training steps (float32, SGD with momentum, freed memory kept) in one process, each series in alternation: A B C A B C.
    batch   1, 2, 4, … --largest, two towers on one device
    towers  1, 2, 4 in one piece, and each tower by itself on one device: what cutting costs
    size    images of 1/2 to 5/4 of the preset's side, batch --batch-size
The growth of a series is the slope of log time over log multiply-adds: 1 is in proportion. Below it lie small steps,
which the optimizer dominates. Expected on two idle cores: at most 1.05 over the batch (from 4 images on) and over the
size of the image; towers by themselves at most 1.05 times one piece. GFLOP/s are of convolutions and matrix products.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch
from contenders import products
from speed import check_files

import splitnet
from splitnet.allocator import keep_freed_memory
from splitnet.errors import UsageError
from splitnet.measure.meter import OtherLoad, Ratio
from splitnet.measure.svg import WIDTH, Drawing, ink, ticks
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.reporting import counted
from splitnet.training.data import Batch
from splitnet.training.loop import training_step
from splitnet.training.optimizer import make_optimizer

WARM_UP = 2
STEEPEST = DEAREST = 1.05
"""Bounds of a slope, and of towers by themselves over one piece."""

FEWEST = 4
"""Images from which on the batch's slope is taken: below, the weights' own cost is the step's."""

TOWERS = (1, 2, 4)
SIDES = (4, 5, 6, 8, 10)
"""Of the images, in eighths of the preset's."""

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("alexnet-paper", "the network", presets())
    largest: int = option(256, "the last batch of 1, 2, 4, …")
    batch_size: int = option(32, "images in a step of the other series")
    rounds: int = option(5, "measured steps of each")
    threads: int = option(2, "CPU threads")
    picture: Path | None = option(None, "draw the figures into this SVG file")

    def __post_init__(self) -> None:
        bounds = {"largest": (2, 65536), "batch_size": (1, 65536), "rounds": (1, 10**6), "threads": (1, 1024)}
        check_bounds(self, bounds)
        check_files(None, self.picture)


@dataclass(frozen=True)
class Point:
    """One member of a series: what it is, how much it multiplies in a step, and how long its steps take."""

    name: str
    images: int
    multiply_adds: int
    """Of its convolutions and matrix products, forward and backward."""
    seconds: list[float]

    @property
    def per_image(self) -> float:
        """Milliseconds, by the median."""
        return 1000 * median(self.seconds) / self.images


def trained(table: Architecture) -> int:
    """Multiply-adds of a training step, for one image."""
    return sum(product.multiply_adds for product in products(table))


def stepper(table: Architecture, devices: Sequence[str], batches: Sequence[int]) -> list[Step]:
    """A step on each of these batches, all of one network."""
    net = splitnet.build(table, devices=list(devices)).train()
    optimizer = make_optimizer(net.parameters(), "sgd")
    generator = torch.Generator().manual_seed(0)
    most = max(batches)
    shape = (most, table.channels, table.size, table.size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, table.classes, (most,), generator=generator)
    parts = [Batch(images[:n], labels[:n], torch.arange(n)) for n in batches]
    return [lambda part=part: training_step(net, optimizer, part) for part in parts]  # type: ignore[misc]


def alternated(steps: Sequence[Step], rounds: int) -> list[list[float]]:
    """Seconds of each, round by round."""
    found: list[list[float]] = [[] for _ in steps]
    for number in range(WARM_UP + rounds):
        for step, seconds in zip(steps, found, strict=True):
            start = time.perf_counter()
            step()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start)
    return found


def by_batch(options: Options, table: Architecture) -> list[Point]:
    counts = [2**i for i in range(int(math.log2(options.largest)) + 1)]
    seconds = alternated(stepper(table, ["cpu"] * table.towers, counts), options.rounds)
    return [Point(str(n), n, n * trained(table), s) for n, s in zip(counts, seconds, strict=True)]


def by_towers(options: Options) -> dict[str, Point]:
    """In one piece and by themselves; only the numbers of towers that the preset takes."""
    tables = {n: preset(options.preset, n) for n in TOWERS if preset(options.preset, _least(options)).divides(n)}
    layouts = {f"{n}, one piece" if n > 1 else "1": (table, ["cpu"]) for n, table in tables.items()}
    layouts |= {f"{n}, by themselves": (table, ["cpu"] * n) for n, table in tables.items() if n > 1}
    steps = [stepper(table, devices, [options.batch_size])[0] for table, devices in layouts.values()]
    seconds, images = alternated(steps, options.rounds), options.batch_size
    return {
        name: Point(name, images, images * trained(table), s)
        for (name, (table, _)), s in zip(layouts.items(), seconds, strict=True)
    }


def by_size(options: Options, table: Architecture) -> list[Point]:
    """Sizes that the table is too deep for are left out."""
    tables = []
    for eighths in SIDES:
        try:
            found = table.scaled(1, size=table.size * eighths // 8)
            found.rows()
        except UsageError:
            continue
        tables.append(found)
    steps = [stepper(t, ["cpu"] * t.towers, [options.batch_size])[0] for t in tables]
    seconds, images = alternated(steps, options.rounds), options.batch_size
    return [Point(str(t.size), images, images * trained(t), s) for t, s in zip(tables, seconds, strict=True)]


def _least(options: Options) -> int:
    """A number of towers that the preset takes."""
    for towers in (2, 1):
        try:
            return preset(options.preset, towers).towers
        except UsageError:
            continue
    raise UsageError(f"--preset {options.preset}: takes neither 1 nor 2 towers")


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of log y over log x, by least squares; nan of fewer than two."""
    if len(xs) < 2:
        return math.nan
    a, b = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x, y = fmean(a), fmean(b)
    return sum((p - x) * (q - y) for p, q in zip(a, b, strict=True)) / sum((p - x) ** 2 for p in a)


def growth(points: Sequence[Point]) -> float:
    """Slope of the time of a step over its multiply-adds."""
    return slope([p.multiply_adds for p in points], [median(p.seconds) for p in points])


def table_of(title: str, points: Sequence[Point]) -> list[str]:
    lines = [f"{title:20} {'ms a step':>10} {'ms an image':>12} {'GFLOP/s':>9}"]
    for p in points:
        seconds = median(p.seconds)
        speed = 2 * p.multiply_adds / seconds / 1e9
        lines.append(f"{p.name:20} {1000 * seconds:10.1f} {p.per_image:12.2f} {speed:9.1f}")
    return [*lines, ""]


def verdicts(batch: Sequence[Point], towers: dict[str, Point], size: Sequence[Point]) -> list[str]:
    many, rounds = [p for p in batch if p.images >= FEWEST], f"medians of {len(batch[0].seconds)}: slope"
    lines = [
        _judged(f"time over batch, from {FEWEST} images, {rounds}", growth(many), STEEPEST),
        _judged(f"time over multiply-adds, by size of image, {rounds}", growth(size), STEEPEST),
    ]
    for name, apart in towers.items():
        number, _, how = name.partition(", ")
        if how == "by themselves":
            whole = towers[f"{number}, one piece"]
            ratio = Ratio.of(a / b for a, b in zip(apart.seconds, whole.seconds, strict=True))
            inside = "" if ratio.low is None else f", 99 % {ratio.low:.3f}-{ratio.high:.3f}"
            text = f"{number} towers by themselves / in one piece{inside}: median"
            lines.append(_judged(text, ratio.median, DEAREST))
    return lines


def _judged(text: str, value: float, bound: float) -> str:
    if math.isnan(value):
        return f"{text} not measured (at most {bound:.2f})"
    return f"{text} {value:.3f} (at most {bound:.2f}: {'reached' if value <= bound else 'NOT REACHED'})"


# The picture: three panels of milliseconds per image, or per step.

PANEL, TOP, BOTTOM = 226, 64, 250
DIGIT = 8
"""Pixels that one takes, about."""


def picture(title: str, batch: Sequence[Point], towers: dict[str, Point], size: Sequence[Point]) -> Drawing:
    drawing = Drawing(title, "Milliseconds an image by batch, by towers, by size of image.", WIDTH, 330)
    drawing.word(12, 24, title)
    lefts = [56 + i * (PANEL + 54) for i in range(3)]
    _curve(drawing, lefts[0], "ms an image, by batch", batch, "images in a step")
    _bars(drawing, lefts[1], "ms an image, by towers", list(towers.values()))
    _curve(drawing, lefts[2], "ms an image, by side of image", size, "pixels", products=True)
    entries = {"measured": ink("forward"), "in proportion to multiply-adds": ink("backward")}
    drawing.legend(318, entries | {"each tower by itself": ink("exchange")}, lefts[0])
    return drawing


def _frame(drawing: Drawing, left: float, title: str, greatest: float) -> Callable[[float], float]:
    """Lines for round figures; gives the height of a value."""
    drawing.word(left, TOP - 16, title, look="soft")
    marks = ticks(greatest, 4)

    def at(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value / marks[-1]

    for mark in marks:
        drawing.rule(left, at(mark), left + PANEL, at(mark))
        drawing.word(left - 6, at(mark) + 4, f"{mark:,g}", "end", "soft")
    return at


def _curve(
    drawing: Drawing, left: float, title: str, points: Sequence[Point], unit: str, products: bool = False
) -> None:
    """Over a logarithmic axis; with `products`, also what the multiply-adds of the preset's own size would say."""
    xs = [math.log(float(p.name)) for p in points]
    least, span = xs[0], (xs[-1] - xs[0]) or 1.0
    places = [left + 8 + (PANEL - 16) * (x - least) / span for x in xs]
    base = points[len(points) // 2]
    expected = [base.per_image * p.multiply_adds / base.multiply_adds for p in points] if products else []
    at = _frame(drawing, left, title, max([*(p.per_image for p in points), *expected]))
    if expected:
        line = list(zip(places, map(at, expected), strict=True))
        drawing.line(line, ink("backward"), "in proportion to multiply-adds", dashed=True)
    drawing.line([(x, at(p.per_image)) for x, p in zip(places, points, strict=True)], ink("forward"), title)
    free = math.inf
    for x, p in reversed([*zip(places, points, strict=True)]):
        drawing.dot(x, at(p.per_image), ink("forward"), f"{p.name} {unit}: {p.per_image:.2f} ms an image")
        half = DIGIT * len(p.name) / 2
        if x + half < free:  # else it would touch the name on its right
            drawing.word(x, BOTTOM + 18, p.name, "middle", "soft")
            free = x - half - DIGIT / 2
    drawing.word(left + PANEL, BOTTOM + 36, unit, "end", "soft")


def _bars(drawing: Drawing, left: float, title: str, points: Sequence[Point]) -> None:
    at = _frame(drawing, left, title, max(p.per_image for p in points))
    numbers = sorted({p.name.partition(",")[0] for p in points}, key=int)
    room = PANEL / len(numbers)
    for place, number in enumerate(numbers):
        of_number = [p for p in points if p.name.partition(",")[0] == number]
        middle, width = left + room * (place + 0.5), room / 3
        for i, p in enumerate(of_number):
            x = middle + width * (i - len(of_number) / 2)
            colour = ink("exchange" if "themselves" in p.name else "forward")
            drawing.rect(
                x, at(p.per_image), width - 4, BOTTOM - at(p.per_image), colour, f"{p.name}: {p.per_image:.2f}"
            )
        drawing.word(middle, BOTTOM + 18, number, "middle", "soft")
    drawing.word(left + PANEL, BOTTOM + 36, "towers", "end", "soft")


def main() -> None:
    options = parse(Options, "experiments/growth.py", __doc__ or "")
    allocator = keep_freed_memory()
    torch.set_num_threads(options.threads)
    table, beside = preset(options.preset, _least(options)), OtherLoad()
    said = f"{table.name}, float32, {counted(options.threads, 'thread')}"
    print(f"{said}, torch {torch.__version__}; {allocator}", flush=True)
    batch = by_batch(options, table)
    print("\n".join(table_of("batch", batch)), flush=True)
    towers = by_towers(options)
    print("\n".join(table_of(f"towers, batch {options.batch_size}", list(towers.values()))), flush=True)
    size = by_size(options, table)
    print("\n".join(table_of(f"side, batch {options.batch_size}", size)), flush=True)
    print("\n".join(verdicts(batch, towers, size)))
    print(f"others kept busy meanwhile: {beside.cores()} cores")
    if options.picture is not None:
        options.picture.write_text(str(picture(f"Training {said}", batch, towers, size)), encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
