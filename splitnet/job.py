"""What a run was asked to do: its options, and all that is decided before anything is written."""

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from splitnet import fitting, recipes, weight_files
from splitnet.allocator import keep_freed_memory
from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution, Precision, Wire
from splitnet.network.presets import preset, presets
from splitnet.network.towers import SplitNet
from splitnet.network.weights import Initial
from splitnet.options import LARGEST, check_bounds, option
from splitnet.parallel import ranks as processes
from splitnet.parallel.capabilities import check_execution
from splitnet.parallel.exchange import Link
from splitnet.parallel.placement import Placement, check_processes, host, place
from splitnet.parallel.ranks import Ranks
from splitnet.party import Party
from splitnet.pixels import FILE, measure, read_pixels
from splitnet.recipes import RecipeOptions
from splitnet.training import class_names
from splitnet.training.augment import PLAIN, Noise, View
from splitnet.training.checkpoint import Checkpoint
from splitnet.training.data import NAMES, Dataset, batches, load
from splitnet.training.folder import read_side


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network, its images, and how long it is trained."""

    preset: str = option("fashion", "the network", presets())
    towers: int = option(2, "towers that share it; 1 is the dense network")
    crosses: str | None = option(None, "rows that read every tower: names joined by commas, all, or none")
    devices: str | None = option(None, "one for each tower, joined by commas, or one for the whole network")
    data: str = option("fashion-mnist", "the images", NAMES)
    data_dir: Path | None = option(None, "where they are; an imagefolder has train/<class>/… and val/<class>/…")
    class_names: Path | None = option(
        None, "what an imagefolder's classes are called: a text file, a line each, with or without the folder's name"
    )
    workers: int = option(
        4, "threads that decode images, and read the next batch while a step runs; 0 reads when the step asks"
    )
    epochs: int | None = option(None, "passes over the training set, tested after each")
    steps: int | None = option(None, "steps, not epochs; 0 only tests, on all test images (30 if neither is given)")
    batch_size: int = option(64, "images in a step")


@dataclass(frozen=True, kw_only=True)
class RunOptions(RecipeOptions, NetworkOptions):
    """The command line, and the record of it in run.json."""

    weights: Path | None = option(None, "start from these: safetensors, by the whole network's names")
    resume: Path | None = option(None, "go on with this run, in its folder, from its last checkpoint", metavar="RUN")
    save_every: int | None = option(None, "steps from one checkpoint to the next; the last two are kept")
    precision: str = option("float32", "what products are computed in", get_args(Precision))
    wire: str | None = option(None, "what activations and gradients are cast to while they cross", get_args(Wire))
    overlap: bool = option(False, "rows begin with their own tower's channels while the others' are under way")
    compile: bool = option(False, "compile what a row computes (torch.compile: cuda and cpu)")
    keep_memory: bool = option(True, "let glibc keep freed memory for the next step (CPU)")
    machine: str | None = option(
        None, "fake devices' clocks run as this pair of GPUs (in float32): a name of predict's table, a file, or here"
    )
    seed: int = option(0, "of weights, order and dropout")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")
    link: str = option("device", "between devices, or through host memory where that link is unsound", get_args(Link))
    timeout: int = option(60, "seconds until a job ends of which a process died, hangs or is cut off")
    memory_limit: str | None = option(
        None, "what each device may hold, such as 3GiB; one line says what does not fit", metavar="SIZE"
    )
    memory_snapshot: bool = option(False, "write CUDA's record of the measured steps' memory")
    profile: bool = option(True, "record a few steps of the training as a trace")
    look: bool = option(True, "follow what the towers learn, and show it in the page")
    compare: bool = option(True, "measure in alternation beside the same on one device")
    out: Path = option(Path("profiles"), "the folder that gets the run's folder")

    def __post_init__(self) -> None:
        least = {
            "epochs": 1,
            "steps": 0,
            "seed": 0,
            "save_every": 1,
            "conv1_drop": 0,
            "conv1_freeze": 0,
            "noise_until": 0,
        }
        most = {"threads": (1, 1024), "batch_size": (1, 65536), "timeout": (5, 86400), "workers": (0, 256)}
        check_bounds(self, {name: (n, LARGEST) for name, n in least.items()} | most)
        if self.epochs is not None and self.steps is not None:
            raise UsageError(f"--steps {self.steps}: give it or --epochs {self.epochs}, not both")
        if self.memory_snapshot and (not self.compare or self.steps == 0):
            raise UsageError("--memory-snapshot: is of the comparison's steps, so not with --no-compare or --steps 0")
        self.check_recipe()

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
    view: View = PLAIN
    """What it sees of images."""
    checkpoint: Checkpoint | None = None
    """Where to go on."""
    allocator: str = ""
    """What the CPU's memory is freed to."""
    other_names: str = ""
    """What is to be said of classes that the weights call otherwise."""

    @property
    def limit(self) -> int | None:
        """Bytes that each device may hold."""
        return fitting.read_limit(self.options.memory_limit)

    @property
    def link(self) -> Link:
        return "host" if self.options.link == "host" else "device"

    @property
    def execution(self) -> Execution:
        options: Any = self.options
        return Execution(options.precision, options.wire, options.overlap, options.compile)

    @property
    def ranks(self) -> Ranks | None:
        return self.placement.ranks

    @property
    def settings(self) -> dict[str, Any]:
        """What defines the training: a checkpoint goes on only where these are the same."""
        data = f"{self.dataset.name} of {len(self.dataset.train)} training images"
        same = ("preset", "towers", "crosses", "batch_size", "optimizer", "seed")
        settings = {name: getattr(self.options, name) for name in same} | {"data": data}
        plain = RunOptions()  # what is as it was before there were such options is left out
        changed = {name: getattr(self.options, name) for name in ("precision", "wire", *recipes.LASTING)}
        settings |= {name: value for name, value in changed.items() if value != getattr(plain, name)}
        return settings | ({"mean_image": self.view.digest} if self.view.digest else {})

    def network(self) -> SplitNet:
        net = host(self.architecture, self.placement, self.options.seed, self.link, self.execution)
        if self.state is not None:
            net.load_whole_state_dict(self.state)
        elif self.options.init != "pytorch":  # which the network has already
            net.load_whole_state_dict(weights.draw(self.architecture, self.options.seed, self.init))
        return net

    @property
    def init(self) -> Initial:
        options: Any = self.options
        return options.init


def prepare(options: RunOptions, party: Party, checkpoint: Checkpoint | None = None) -> Job:
    """Read and check everything that a person can get wrong. UsageError, and nothing left behind."""
    allocator = keep_freed_memory() if options.keep_memory else "as it is: --no-keep-memory"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    architecture = preset(options.preset, options.towers, options.crosses)
    check_can_save(options)
    placement = _placed(options, architecture, party)
    try:
        dataset = load(
            options.data, options.data_dir, size=architecture.size, seed=options.seed, workers=options.workers
        )
        architecture = architecture.adapted(dataset.channels, len(dataset.classes))
        scales: Any = options.dropout_scales
        architecture = replace(architecture, dropout_scales=scales)
        state = None if options.weights is None else weights.read(options.weights, architecture, options.pixels)
        view = _view(options, dataset, architecture)
        if options.class_names is not None:
            if dataset.name != "imagefolder":
                raise UsageError(f"--class-names {options.class_names}: is for an imagefolder, not {dataset.name}")
            dataset = replace(dataset, classes=class_names.read(options.class_names, dataset.classes))
        other_names = "" if options.weights is None else _compared(options.weights, dataset)
    except OSError as error:  # a path that cannot even be looked at
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    for split in (dataset.train, dataset.test):
        next(batches(split, 1), None)  # fails here, not under way, if not one of its images can be read
    facts = {"data": _told(dataset), "--weights": state and _hash(state), "mean image or colours": view.digest}
    gpus = party.agree(facts, party.several and processes.own_gpu())
    if placement is None:
        party.join(options.towers, gpus)
        placement = place(architecture, ranks=party.ranks)
    check_link(options, placement)
    fitting.check(placement.devices, options.memory_limit, options.memory_snapshot)
    job = Job(options, dataset, architecture, placement, state, view, checkpoint, allocator, other_names)
    check_execution(job.execution, placement.devices, placement.ranks)
    return job


def _compared(path: Path, dataset: Dataset) -> str:
    """What is to be said of the weights' names of classes. UsageError if they stand in another order."""
    try:
        return class_names.compared(dataset.classes, weight_files.classes_of(path))
    except UsageError as error:
        raise UsageError(f"--weights {path}: {error}") from error


def _view(options: RunOptions, dataset: Dataset, architecture: Architecture) -> View:
    """UsageError if the mean image or the colours' components are not there, or are others'."""
    wanted: Any = options
    noisy = has_noise(options, dataset)
    if noisy and dataset.channels != 3:
        channels = f"{dataset.channels} channel{'s' * (dataset.channels != 1)}"
        raise UsageError(f"--color-noise {options.color_noise:g}: images of {channels} have no colours")
    pixels = None
    if noisy or options.pixels == "minus-mean":
        if dataset.name == "imagefolder":
            assert options.data_dir is not None
            side = read_side(architecture.size)
            pixels = read_pixels(options.data_dir / FILE, channels=3, side=side, classes=dataset.classes)
        else:
            pixels = measure(dataset.train)
    mean = pixels.mean if pixels is not None and options.pixels == "minus-mean" else None
    noise = None
    if pixels is not None and pixels.components is not None and noisy:
        noise = Noise(pixels.components, options.color_noise, options.noise_shrinks, options.noise_until or None)
    measured = 0 if pixels is None else pixels.images
    view = View(mean, wanted.crops, options.flips, noise, options.views, measured=measured)
    view.check(dataset.channels)
    return view


def has_noise(options: RunOptions, dataset: Dataset) -> bool:
    """Whether there is noise of colours: what a recipe says of them does not hold for grey images."""
    of_recipe = str(options.color_noise) == recipes.RECIPES.get(options.recipe or "", {}).get("color_noise")
    return options.color_noise > 0 and not (of_recipe and dataset.channels == 1)


def check_link(options: RunOptions, placement: Placement) -> None:
    """UsageError where something would go over a link that is to be avoided."""
    ranks = placement.ranks
    for name, given in {"overlap": options.overlap, f"wire {options.wire}": options.wire}.items():
        if given and options.resume is None and (placement.whole or options.towers == 1):
            raise UsageError(f"--{name}: nothing crosses in {options.preset} on {placement}")
    if options.link == "host" and ranks is not None and ranks.replicas > 1 and ranks.device.type != "cpu":
        raise UsageError(f"--link host: gradients of {ranks.replicas} replicas are summed over the direct link (NCCL)")


def check_can_save(options: RunOptions) -> None:
    """UsageError if checkpoints are wanted and what reads and writes them is not installed."""
    if (options.save_every or options.resume) and find_spec("safetensors") is None:
        what = f"--save-every {options.save_every}" if options.save_every else f"--resume {options.resume}"
        raise UsageError(f"{what}: checkpoints need the package safetensors, which is not installed")


def _placed(options: RunOptions, architecture: Architecture, party: Party) -> Placement | None:
    """Where one process has its towers; None for several, which have to agree. UsageError for what cannot be had."""
    if not party.several:
        placement = place(architecture, None if options.devices is None else options.devices.split(","))
        fitting.check(placement.devices, options.memory_limit, options.memory_snapshot)
        return placement
    check_processes(architecture, options.devices)
    return None


def _told(dataset: Dataset) -> str:
    train, test = len(dataset.train), len(dataset.test)
    return f"{dataset.name} ({train:,} training and {test:,} test images of {len(dataset.classes)} classes)"


def _hash(state: dict[str, Tensor]) -> str:
    """Of the weights, so that processes that read them from their own disks notice another file."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
