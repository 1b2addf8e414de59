"""Read weights of other programs, write them as safetensors or ONNX, verify them.

SOURCE is Caffe's bvlc_alexnet (.npy or .caffemodel), torchvision's or the
textbook's AlexNet (of PyTorch, or safetensors), a checkpoint of the code of
2012 or of cuda-convnet2, or a run. OUT ends in .safetensors or .onnx.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from splitnet import onnx_graph, tables, weight_files
from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.network.architecture import Architecture
from splitnet.network.foreign import LAYOUTS, Source, from_splitnet, scales_in_tests
from splitnet.network.presets import preset, presets
from splitnet.network.weights import METADATA, State
from splitnet.onnx_graph import OPSET, OPSETS
from splitnet.options import check_bounds, fail, guarded, option, parse, positional, refuse
from splitnet.parallel.placement import build

LIMIT = 1e-4
"""The largest difference between logits allowed, over the largest logit."""

IMAGES = 4
MOST_TOWERS = 8
"""Numbers of towers that are tried where nothing says how many there are."""


SCALES: Mapping[str, Any] = {"0..1": "0..1", "minus-mean": "0..255 minus mean"}
"""What a run calls the pixels that its network sees, and what tables do."""
PIXELS = {table: run for run, table in SCALES.items()}

NORMALISED = "minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)"
"""What torchvision's download was trained on: pytorch.org/vision, AlexNet_Weights.IMAGENET1K_V1."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """The command line."""

    source: Path = positional("weights: a file, or a run's folder, whose last checkpoint is taken")
    out: Path = positional("the file to write, which must not be there: .safetensors or .onnx")
    from_: str | None = option(None, "what SOURCE is, where it does not say", weight_files.KINDS)
    preset: str | None = option(None, "the network, where SOURCE does not say and several have its shapes", presets())
    towers: int | None = option(None, "towers that share it, likewise")
    crosses: str | None = option(None, "rows that read every tower: names joined by commas, all, or none")
    classes: Path | None = option(None, "names of the classes, to go with the weights: a text file, a line each")
    opset: int | None = option(None, f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]} (default {OPSET})")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")

    def __post_init__(self) -> None:
        check_bounds(self, {"towers": (1, 1024), "threads": (1, 1024)})

    @property
    def to_onnx(self) -> bool:
        return self.out.suffix == ".onnx"

    def check_out(self) -> None:
        """UsageError if OUT cannot be what is asked for; nothing is written yet."""
        if self.out.suffix not in (".safetensors", ".onnx"):
            raise UsageError(f"{self.out}: a name that ends in .safetensors or .onnx is expected")
        if os.path.lexists(self.out):
            raise UsageError(f"{self.out}: is there already; name another, or remove it")
        if not self.out.parent.is_dir():
            raise UsageError(f"{self.out.parent}: no such folder")
        if self.to_onnx:
            onnx_graph.check_can_export(OPSET if self.opset is None else self.opset)
        elif self.opset is not None:
            raise UsageError(f"--opset {self.opset}: is for a name that ends in .onnx, not {self.out.name}")
        if find_spec("safetensors") is None:
            raise UsageError(f"{self.out}: needs the package safetensors: pip install safetensors")


@dataclass(frozen=True, slots=True)
class Conversion:
    """Weights as they were found, and as they are here."""

    options: ConvertOptions
    source: Source
    architecture: Architecture
    state: State
    classes: tuple[str, ...] | None

    @property
    def metadata(self) -> dict[str, str]:
        """What the weights are of, for whoever reads the file."""
        table = self.architecture
        crosses = ",".join(layer.name for layer in table.layers if layer.crosses and not layer.home)
        said = {"preset": table.name, "towers": table.towers, "crosses": crosses or "none"}
        said |= {"dropout_scales": table.dropout_scales, "pixels": PIXELS[table.pixels], "images": self.images}
        return {METADATA: json.dumps(said | ({"classes": self.classes} if self.classes else {}))}

    @property
    def images(self) -> str:
        """What the network reads."""
        table = self.architecture
        normalised = f", {NORMALISED}" * (self.source.layout == "torchvision")
        shape = f"{table.channels}x{table.size}x{table.size}"
        return f"{shape}, {'RGB ' * (table.channels == 3)}{table.pixels}{normalised}"

    def encoded(self) -> bytes:
        """All of the file."""
        if self.options.to_onnx:
            opset = OPSET if self.options.opset is None else self.options.opset
            return onnx_graph.encode(self.architecture, self.state, opset, self.metadata)
        from safetensors.torch import save

        return save(self.state, self.metadata)

    def checks(self, path: Path) -> Iterator[tuple[str, bool]]:
        """What the file as written gives, compared with what it should, and whether that is close enough."""
        table, batch = self.architecture, images(self.architecture)
        state = self.state if self.options.to_onnx else read_back(path)
        if not self.options.to_onnx:
            yield same("weights", state, self.state)
            if self.source.layout not in LAYOUTS:
                return  # by our names before and after: there is nothing else to compare with
        whole = logits(table, state, ["cpu"], batch)
        if self.source.layout in LAYOUTS:
            layout = LAYOUTS[self.source.layout]
            with torch.no_grad():
                theirs = layout.logits(self.source, batch)
            yield close(f"{table.name} on cpu, and {layout.what}", whole, theirs)
        if self.options.to_onnx:
            found = onnx_graph.run(path, batch)
            yield close(f"onnxruntime, and {table.name} on cpu", found, whole)
            if table.towers > 1 and not table.norm.across_towers:
                towers = logits(table, state, ["cpu"] * table.towers, batch)
                yield close(f"onnxruntime, and {table.towers} towers on cpu", found, towers)


def read(options: ConvertOptions) -> Conversion:
    """Everything that a person can get wrong. UsageError, and nothing written."""
    options.check_out()
    source = weight_files.read(options.source, options.from_)
    try:
        architecture = network_of(source, options)
        whole = LAYOUTS[source.layout].whole if source.layout in LAYOUTS else from_splitnet
        state = whole(architecture, source)
    except UsageError as error:
        raise UsageError(str(error) if str(error).startswith("--") else f"{options.source}: {error}") from error
    classes = source.settings.get("classes")
    if options.classes is not None:
        classes = weight_files.read_classes(options.classes, architecture.classes)
    elif classes is not None and (not isinstance(classes, list) or len(classes) != architecture.classes):
        raise UsageError(f"{options.source}: its names of classes are not {architecture.classes:,}")
    return Conversion(options, source, architecture, state, None if classes is None else tuple(map(str, classes)))


def network_of(source: Source, options: ConvertOptions) -> Architecture:
    """The table that the weights are of. UsageError if it is none of ours, or if several could be meant."""
    if source.layout not in LAYOUTS:
        return _own(source, options)
    layout = LAYOUTS[source.layout]
    for name, settled in {"preset": layout.preset, "towers": layout.towers, "crosses": None}.items():
        asked = getattr(options, name)
        if asked not in (None, settled):
            raise UsageError(f"--{name} {asked}: these are {layout.preset}'s, of {layout.towers} tower(s)")
    table = layout.table(source, preset(layout.preset, layout.towers))
    return replace(table, dropout_scales="testing") if scales_in_tests(table, source) else table


def _own(source: Source, options: ConvertOptions) -> Architecture:
    """Of weights by our names: as the file says, as said where it does not, or the only table of their shapes."""
    for name, of in {"preset": "{}'s", "towers": "of {} tower(s)"}.items():  # other crossings have other shapes
        asked, theirs = getattr(options, name), _setting(source, name)
        if None not in (asked, theirs) and asked != theirs:
            raise UsageError(f"--{name} {asked}: these are {of.format(theirs)}, as {options.source} says")
    said = {name: getattr(options, name) or _setting(source, name) for name in ("preset", "towers", "crosses")}
    names = presets() if said["preset"] is None else (said["preset"],)
    counts = range(1, MOST_TOWERS + 1) if said["towers"] is None else (said["towers"],)
    if len(names) == len(counts) == 1:
        return _adapted(preset(names[0], counts[0], said["crosses"]), source)
    fits = []
    for name in names:
        for towers in counts:
            try:
                table = _adapted(preset(name, towers, said["crosses"]), source)
            except UsageError:  # no such number of towers, or no such row
                continue
            if weights.fits(table, source.tensors):
                fits.append(table)
    if len(fits) != 1:
        wanted = "say which, with --preset and --towers"
        several = ", ".join(f"{table.name} with {table.towers}" for table in fits)
        reason = f"the shapes are those of {several} towers" if fits else "the shapes are those of no preset"
        raise UsageError(f"{reason}: {wanted}")
    return fits[0]


def _adapted(table: Architecture, source: Source) -> Architecture:
    """For the images and classes that the weights are for, with dropout and pixels as they were trained with."""
    first, last = (source.tensors.get(f"{row.name}.weight") for row in (table.layers[0], table.layers[-1]))
    channels = first.shape[1] or None if first is not None and first.dim() == 4 else None
    classes = len(last) or None if last is not None and last.dim() else None
    scales: Any = _setting(source, "dropout_scales") or "training"
    if scales not in ("training", "testing"):
        raise UsageError(f"dropout_scales {scales!r}: training or testing is expected")
    pixels = SCALES.get(_setting(source, "pixels") or "0..1") if source.settings else table.pixels
    if pixels is None:
        raise UsageError(f"pixels {source.settings['pixels']!r}: {' or '.join(SCALES)} is expected")
    return replace(table.adapted(channels, classes), dropout_scales=scales, pixels=pixels)


def _setting(source: Source, name: str) -> Any:
    """What the run that wrote the weights had; None if the file does not say."""
    value = source.settings.get(name)
    if value is not None and type(value) is not (int if name == "towers" else str):
        raise UsageError(f"{name} {value!r} is not what {name} can be")
    return value


def images(architecture: Architecture) -> Tensor:
    """(IMAGES, C, S, S) of random pixels, always the same, on the scale that the network was meant for."""
    shape = (IMAGES, architecture.channels, architecture.size, architecture.size)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return pixels if architecture.pixels == "0..1" else 255 * pixels - 128


def logits(architecture: Architecture, state: State, devices: Sequence[str], batch: Tensor) -> Tensor:
    net = build(architecture, devices=devices)
    net.load_whole_state_dict(state)
    with torch.no_grad():
        return net.eval()(batch)


def read_back(path: Path) -> State:
    from safetensors.torch import load

    return load(path.read_bytes())


def close(what: str, found: Tensor, expected: Tensor) -> tuple[str, bool]:
    """The largest difference over the largest logit expected; infinite for what is not a number."""
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        worst = float("inf")
    elif torch.equal(found, expected):
        worst = 0.0
    else:
        worst = ((found - expected).abs().max() / expected.abs().max()).item()
    return f"{what}: differ by {worst:.1e} of the largest logit (at most {LIMIT:.0e})", worst <= LIMIT


def same(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, bool]:
    """The same names, and the same bits."""
    equal = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    return f"{what} read back: {'equal' if equal else 'NOT equal'}", equal


def notes(conversion: Conversion) -> Iterator[str]:
    """What was found, and what was done to the numbers beside moving them, and to names."""
    table, source = conversion.architecture, conversion.source
    what = LAYOUTS[source.layout].what if source.layout in LAYOUTS else "weights by splitnet's own names"
    several = f"{table.towers} tower{'s' * (table.towers > 1)}"
    yield f"{conversion.options.source}: {what}; {table.name}, {several}, {table.parameters:,} parameters"
    own = source.settings.get("classes")
    pairs = zip(own if isinstance(own, list) else (), conversion.classes or (), strict=False)
    if other := next((f"class {i} was {a!r}, is now {b!r}" for i, (a, b) in enumerate(pairs) if str(a) != b), ""):
        yield f"--classes replaces its own names of classes: {other}."
    if source.layout in ("caffe-npy", "caffemodel"):
        yield "conv1's input channels are reversed: Caffe reads BGR, splitnet RGB."
    if source.keeps and table.dropout_scales == "testing":
        yield "Its hs halves in tests what fc7 and fc8 read: so do --dropout-scales testing, and --recipe 2012."
    elif source.keeps:
        factors = " and ".join(f"{keep:g}" for keep in sorted(set(source.keeps.values())))
        yield f"fc7's and fc8's weights are multiplied by {factors}, as hs does with what they read in tests."
        yield "Train on with --dropout-scales training, under --recipe 2012 too; these weights then learn faster."
    elif source.layout == "cuda-convnet":
        yield "No hs layer is in it: dropout is taken to be made up for in training."
    elif source.layout == "torchvision":
        yield f"Its download was trained on pixels {NORMALISED}, which no --pixels of run gives."
    elif source.layout == "splitnet" and table.pixels != "0..1" and source.settings:
        yield "It reads pixels of 0..255 minus the mean image of its training images, which is not in the file."
    elif source.layout == "splitnet" and not source.settings:
        yield "The file does not say how it was trained: dropout is taken to be made up for in training."


@contextmanager
def aside(out: Path) -> Iterator[Path]:
    """A name beside OUT for a file under way, which is gone afterwards."""
    path = out.with_name(f".convert-{os.getpid()}.aside")
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def write(conversion: Conversion, console: Console) -> str:
    """Write OUT if all checks pass; the first that does not, in words, or ""."""
    out = conversion.options.out
    with aside(out) as path:
        try:
            path.write_bytes(conversion.encoded())
            for line, passed in conversion.checks(path):
                if not passed:
                    return f"{out}: not written: {line}"
                console.print(line, highlight=False, soft_wrap=True, markup=False)
            if os.path.lexists(out):
                raise UsageError(f"{out}: is there by now; name another, or remove it")
            path.rename(out)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written ({error.strerror})") from error
    console.print(f"Written: {out} ({out.stat().st_size:,} bytes)", highlight=False, soft_wrap=True, markup=False)
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written and verified, 1 if a check fails, 2 for bad usage; only 0 leaves a file."""
    console = tables.console()
    try:
        options = parse(ConvertOptions, "convert", __doc__ or "", argv)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        conversion = read(options)
        for line in notes(conversion):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        failed = write(conversion, console)
        return fail(failed) if failed else 0
    except UsageError as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    guarded(main)
