"""What a run was asked to do: its options, and all that is decided before anything is written."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splitnet import fitting
from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset, presets
from splitnet.network.towers import SplitNet
from splitnet.options import LARGEST, check_bounds, option
from splitnet.parallel.placement import Placement, host, place
from splitnet.training.data import NAMES, Dataset, batches, load
from splitnet.training.optimizer import LEARNING_RATES


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The command line, and the record of it in run.json."""

    preset: str = option("fashion", "the network", presets())
    towers: int = option(2, "towers that share it; 1 is the dense network")
    crosses: str | None = option(None, "rows that read every tower: names joined by commas, all, or none")
    devices: str | None = option(None, "one for each tower, joined by commas, or one for the whole network")
    data: str = option("fashion-mnist", "the images", NAMES)
    data_dir: Path | None = option(None, "where they are; an imagefolder has train/<class>/… and val/<class>/…")
    epochs: int | None = option(None, "passes over the training set, tested after each")
    steps: int | None = option(None, "steps, not epochs; 0 only tests, on all test images (30 if neither is given)")
    batch_size: int = option(64, "images in a step")
    optimizer: str = option("adam", "the optimizer; SGD has momentum 0.9", tuple(LEARNING_RATES))
    lr: float | None = option(None, "learning rate (Adam 0.001, SGD 0.01)")
    weights: Path | None = option(None, "start from these: safetensors, by the whole network's names")
    seed: int = option(0, "of weights, order and dropout")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")
    memory_limit: str | None = option(
        None, "what each device may hold, such as 3GiB; one line says what does not fit", metavar="SIZE"
    )
    memory_snapshot: bool = option(False, "write CUDA's record of the measured steps' memory")
    profile: bool = option(True, "record a few steps of the training as a trace")
    compare: bool = option(True, "measure in alternation beside the same on one device")
    out: Path = option(Path("profiles"), "the folder that gets the run's folder")

    def __post_init__(self) -> None:
        least = {"epochs": 1, "steps": 0, "seed": 0}
        most = {"threads": (1, 1024), "batch_size": (1, 65536)}
        check_bounds(self, {name: (n, LARGEST) for name, n in least.items()} | most)
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"--steps {self.steps}: give it or --epochs {self.epochs}, not both")
        if self.memory_snapshot and (not self.compare or self.steps == 0):
            raise UsageError("--memory-snapshot: is of the comparison's steps, so not with --no-compare or --steps 0")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr {self.lr}: a positive number")

    @property
    def limits(self) -> dict[str, int | None]:
        """Where training ends."""
        return {"epochs": self.epochs, "steps": 30 if self.epochs is None and self.steps is None else self.steps}


@dataclass(frozen=True, slots=True)
class Job:
    """All that is decided before anything is written."""

    options: RunOptions
    dataset: Dataset
    architecture: Architecture
    placement: Placement
    state: dict[str, Tensor] | None
    """Weights to start from; None draws them."""

    @property
    def limit(self) -> int | None:
        """Bytes that each device may hold."""
        return fitting.read_limit(self.options.memory_limit)

    def network(self) -> SplitNet:
        net = host(self.architecture, self.placement, self.options.seed)
        if self.state is not None:
            net.load_whole_state_dict(self.state)
        return net


def prepare(options: RunOptions) -> Job:
    """Read and check everything that a person can get wrong. UsageError, and nothing left behind."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    architecture = preset(options.preset, options.towers, options.crosses)
    placement = place(architecture, None if options.devices is None else options.devices.split(","))
    fitting.check(placement.devices, options.memory_limit, options.memory_snapshot)
    try:
        dataset = load(options.data, options.data_dir, size=architecture.size, seed=options.seed)
        architecture = architecture.adapted(dataset.channels, len(dataset.classes))
        state = None if options.weights is None else weights.read(options.weights, architecture)
    except OSError as error:  # a path that cannot even be looked at
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    for split in (dataset.train, dataset.test):
        next(batches(split, 1), None)  # fails here, not under way, if not one of its images can be read
    return Job(options, dataset, architecture, placement, state)
