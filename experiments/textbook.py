"""Claim: the textbook's five epochs of Fashion-MNIST come out again, dense, in two towers, and with LeNet.

    python experiments/textbook.py [--only "LeNet,dense,two towers"] [--seeds 1] [--devices cuda:0,cuda:1]

Source: Dive-into-DL-PyTorch (09c8bac), chapters 5.6 (AlexNet, batch 128) and 5.5 (LeNet, batch 256): Adam 0.001, five
epochs. Its printed losses are sums of the batches' means over the number of images; times 60,000 over the number of
batches they are means: AlexNet's 0.0047 to 0.0018 are 0.601 to 0.230, within half of their last digit. One run each, so
the book has no spread: its losses are held against the interval that one more of our runs would fall into. Here
each network is trained by `python -m splitnet.run --recipe textbook` in a folder of its own under `--runs`, with
checkpoints, so that an interrupted command goes on; losses and tests are those of its records. Two towers are another,
slightly smaller network (45.4 against 46.8 million parameters), and no figure of the book is theirs. One seed shows no
claim, but its table says what that training came to.
Expected: AlexNet's best test accuracy at least 0.90 and its last at least 0.89 (the book: 0.902, 0.902), two towers not
a point below dense, and LeNet's last at least 0.74 (0.759, and 0.749 in the notebook).
Takes hours for AlexNet on a CPU, a minute for LeNet.
"""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from conduct import Outcomes, Table, write
from measures import BEST, LAST
from results_file import RESULTS, ResultsFile
from trials import BLOCK, Epoch, Outcome
from verdicts import Claim, Interval

from splitnet.errors import UsageError
from splitnet.measure.records import read_run, read_steps
from splitnet.network.presets import preset
from splitnet.options import check_bounds, fail, guarded, option, parse
from splitnet.training.data import NAMES


@dataclass(frozen=True, slots=True)
class Network:
    """One of the book's networks, and an epoch a line: printed loss, mean loss, training and test accuracy."""

    name: str
    preset: str
    towers: int
    batch_size: int
    book: tuple[tuple[float, float, float, float], ...] = ()


ALEXNET = (
    (0.0047, 0.601, 0.770, 0.865),
    (0.0025, 0.320, 0.879, 0.889),
    (0.0022, 0.281, 0.898, 0.901),
    (0.0019, 0.243, 0.908, 0.900),
    (0.0018, 0.230, 0.913, 0.902),
)
LENET = (
    (0.0072, 1.838, 0.322, 0.584),
    (0.0037, 0.945, 0.649, 0.699),
    (0.0030, 0.766, 0.718, 0.724),
    (0.0027, 0.689, 0.741, 0.746),
    (0.0024, 0.613, 0.759, 0.759),
)
NETWORKS = {
    network.name: network
    for network in (
        Network("LeNet", "lenet", 1, 256, LENET),
        Network("dense", "fashion", 1, 128, ALEXNET),
        Network("two towers", "fashion", 2, 128),
    )
}
HALF_DIGIT = 0.00005
"""How far a loss that the book prints can be from what it was."""

GUESS = 0.1
"""The accuracy of one that guesses one of ten classes."""

SAME = "The recipe, images, network and batch; not the order of images, the weights drawn, or PyTorch's version (0.4)."
OTHERS = "Two towers are another network than the book's; what it reached is the measure, not the figure."


@dataclass(frozen=True, kw_only=True)
class Options:
    only: str = option("LeNet,dense,two towers", "the networks, joined by commas")
    seeds: int = option(1, "trainings of each")
    epochs: int = option(5, "passes over the training images")
    devices: str | None = option(None, "of the towers (run's own choice); one tower takes the first")
    data: str = option("fashion-mnist", "the images", NAMES)
    data_dir: Path | None = option(None, "where they are")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")
    save_every: int = option(200, "steps from one checkpoint to the next")
    runs: Path = option(Path("profiles/textbook"), "the folder of the runs' folders")
    fresh: bool = option(False, "forget the trials that are there, and train anew")
    out: Path | None = option(None, "the folder that gets the results (experiments/results)")

    def __post_init__(self) -> None:
        most = 10**6
        check_bounds(self, {"seeds": (1, most), "epochs": (1, most), "save_every": (1, most), "threads": (1, 1024)})
        for name in self.names:
            if name not in NETWORKS:
                raise UsageError(f"--only {self.only}: no {name} (there are {', '.join(NETWORKS)})")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.only.split(",")]


CLAIMS = [
    Claim(
        text=text, source=source, published=published, measure=measure, more=more, less=less, above=above,
        comparable=OTHERS if "two" in more else SAME,
    )
    for text, source, published, measure, more, less, above in (
        ("AlexNet's best test accuracy is above 90 %", "textbook, 5.6", "90.2", BEST, "dense", "", 90.0),
        ("AlexNet's last test accuracy is above 89 %", "textbook, 5.6", "90.2", LAST, "dense", "", 89.0),
        ("two towers' best test accuracy is above 90 %", "textbook, 5.6", "90.2 (dense)", BEST, "two towers", "", 90.0),
        ("two towers' last test accuracy is above 89 %", "textbook, 5.6", "90.2 (dense)", LAST, "two towers", "", 89.0),
        ("two towers lose less than a point to dense", "our question", "", LAST, "two towers", "dense", -1.0),
        ("LeNet's last test accuracy is above 74 %", "textbook, 5.5", "75.9, 74.9", LAST, "LeNet", "", 74.0),
    )
]  # fmt: skip


def run(network: Network, seed: int, options: Options) -> Outcome:
    """Train it in a folder of its own, from where it was left. KeyboardInterrupt if it was interrupted."""
    parent = options.runs / f"{network.name.replace(' ', '-')}-{options.data}-{options.epochs}-seed{seed}"
    before = [] if options.fresh else folders(parent)
    for folder in before:
        if read_run(folder)["status"] == "finished":
            return outcome(folder)
    going_on = [folder for folder in before if any((folder / "checkpoints").glob("step-*"))]
    words = ["--resume", str(going_on[-1])] if going_on else beginning(network, seed, options, parent)
    if options.devices:
        words += ["--devices", options.devices.partition(",")[0] if network.towers == 1 else options.devices]
    if options.threads:
        words += ["--threads", str(options.threads)]
    code = subprocess.run([sys.executable, "-m", "splitnet.run", *words], check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        sys.exit(fail(f"{network.name}, seed {seed}: splitnet.run ended with exit status {code}; see above"))
    return outcome(going_on[-1] if going_on else folders(parent)[-1])


def beginning(network: Network, seed: int, options: Options, parent: Path) -> list[str]:
    """The command line of a run that begins."""
    words = ["--recipe", "textbook", "--preset", network.preset, "--towers", str(network.towers)]
    words += ["--batch-size", str(network.batch_size), "--epochs", str(options.epochs), "--seed", str(seed)]
    words += ["--data", options.data, "--save-every", str(options.save_every), "--out", str(parent)]
    words += ["--no-compare", "--no-profile"]
    return words + (["--data-dir", str(options.data_dir)] if options.data_dir else [])


def folders(parent: Path) -> list[Path]:
    """Of runs, the latest last."""
    return sorted(path.parent for path in parent.glob("*/run.json"))


def outcome(folder: Path) -> Outcome:
    """What a finished run recorded. Its training accuracy is the book's: of the images as they were learnt from."""
    records = read_steps(folder / "steps.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    tests = {record["step"]: record for record in records if record["kind"] == "test"}
    epochs = []
    for part in parts(steps):
        images = sum(record["images"] for record in part)
        loss, accuracy = (sum(r[what] * r["images"] for r in part) / images for what in ("loss", "accuracy"))
        test = tests[part[-1]["step"] + 1]
        epochs.append(Epoch(loss, accuracy, accuracy, test["loss"], test["accuracy"]))
    shares = [record["accuracy"] for record in steps]
    whole = range(0, len(shares) - BLOCK + 1, BLOCK)
    curve = tuple(round(fmean(shares[i : i + BLOCK]), 5) for i in whole)
    return Outcome(tuple(epochs), curve, 0, sum(record["seconds"] for record in steps), len(steps), GUESS)


def parts(steps: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The steps of each epoch."""
    found: list[Mapping[str, Any]] = []
    for record in steps:
        found.append(record)
        if record["ends_epoch"]:
            yield found
            found = []


def table_of(network: Network, outcomes: Mapping[int, Outcome]) -> Table:
    """Epoch by epoch, the book's figures beside the means over seeds."""
    headings = (network.name, "printed", "book's loss", "loss", "book's training", "training", "book's test", "test")
    rows = []
    for number in range(max(len(found.epochs) for found in outcomes.values())):
        epochs = [found.epochs[number] for found in outcomes.values() if len(found.epochs) > number]
        mean = [fmean(getattr(e, what) for e in epochs) for what in ("loss", "accuracy", "test_accuracy")]
        printed, *book = network.book[number] if number < len(network.book) else (None, None, None, None)
        pairs = [cell for theirs, ours in zip(book, mean, strict=True) for cell in (_told(theirs), f"{ours:.4f}")]
        rows.append((f"epoch {number + 1}", "-" if printed is None else f"{printed:.4f}", *pairs))
    return Table(f"{network.name}, n {len(outcomes)}: the book's figures beside the means over seeds", headings, rows)


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def bands(outcomes: Outcomes) -> list[str]:
    """Where the book's figures lie, for networks that were trained from several seeds."""
    lines = []
    for name, found in outcomes.items():
        for number, line in enumerate(NETWORKS[name].book):
            values = [o.epochs[number].loss for o in found.values() if len(o.epochs) > number]
            if len(values) < 2:
                continue
            rounded = HALF_DIGIT / line[0] * line[1]
            low, high = one_more(values)
            inside = "inside" if low <= line[1] + rounded and line[1] - rounded <= high else "outside"
            told = f"{low:.3f} to {high:.3f}, where one more of ours would be (99 %, n {len(values)})"
            lines.append(f"{name}, loss of epoch {number + 1}: the book's {line[1]:.3f} is {inside} of {told}.")
    return lines


def one_more(values: Sequence[float]) -> tuple[float, float]:
    """Where one more value would lie with 99 % of chance (Student's, for two or more)."""
    mean = Interval.of(values)
    assert mean.high is not None
    half = (mean.high - mean.mean) * math.sqrt(mean.n + 1)
    return mean.mean - half, mean.mean + half


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/textbook.py", __doc__ or "", argv)
    path = (options.out or RESULTS) / "textbook.json"
    with ResultsFile.open(path, "textbook", options.fresh) as file:
        file.begin(
            {"recipe": "textbook", "epochs": options.epochs, "data": options.data},
            {
                n.name: {"parameters": preset(n.preset, n.towers).parameters, "batch": n.batch_size}
                for n in NETWORKS.values()
            },
        )
        for seed in range(options.seeds):
            for name in options.names:
                if seed not in file.outcomes().get(name, {}):
                    file.add(name, seed, run(NETWORKS[name], seed, options))
        conclude(file, options)


def conclude(file: ResultsFile, options: Options) -> None:
    """Print and keep what all trainings say."""
    outcomes = file.outcomes()
    judgements = [judgement for claim in CLAIMS if (judgement := claim.judge(outcomes)) is not None]
    tables = [table_of(NETWORKS[name], found) for name, found in outcomes.items()]
    for table in tables:
        print("\n".join([*table.lines(), ""]))
    print("\n".join(judgement.line for judgement in judgements))
    size = f"The network, images and batch of the book, {options.epochs} epochs of {options.data}"
    write(file, __doc__ or "", [j.record() for j in judgements], tables, size, " ".join(bands(outcomes)))


if __name__ == "__main__":
    guarded(main)
