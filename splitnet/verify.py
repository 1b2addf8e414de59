"""Prove that the towers on their devices compute the same function as the whole network on one device."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

import torch
from rich.console import Console

from splitnet import tables
from splitnet.compiling import without_cuda_notice
from splitnet.equality import (
    STEPS,
    TOLERANCES,
    Comparison,
    Trial,
    across_the_seam,
    attempt,
    compare,
    identical,
    images,
    tolerances,
)
from splitnet.errors import UsageError
from splitnet.faults import FAULTS, broken, check_has_place
from splitnet.measure.manner import crossed
from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution, Precision, Wire
from splitnet.network.presets import preset, presets
from splitnet.options import LARGEST, check_bounds, guarded, option, out_of_memory, parse, refuse
from splitnet.parallel.capabilities import check_execution
from splitnet.parallel.placement import Placement, host, place

PRECISIONS = ("float64", *get_args(Precision))
PLAIN = ("float64", None)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The command line."""

    preset: str = option("fashion", "the network", presets())
    towers: int = option(2, "towers that share it")
    crosses: str | None = option(None, "rows that read every tower: names joined by commas, all, or none")
    devices: str | None = option(None, "one for each tower, joined by commas")
    precision: str = option("float64", "of the proof", PRECISIONS)
    wire: str | None = option(None, "what activations and gradients are cast to while they cross", get_args(Wire))
    overlap: bool = option(False, "rows begin with their own tower's channels while the others' are under way")
    compile: bool = option(False, "compile what the towers' rows compute (torch.compile: cuda and cpu)")
    break_: str | None = option(None, "make a mistake on purpose, which must be found", tuple(FAULTS))
    batch_size: int = option(4, "images in a step")
    seed: int = option(0, "of weights, images and dropout")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (2, 65536), "seed": (0, LARGEST), "threads": (1, 1024)})

    @property
    def how(self) -> list[str]:
        """What is proven: the precision, and options that are not as usual."""
        compiled = ["compiled"] * self.compile
        return [self.precision, *crossed(vars(self)), *compiled]

    @property
    def execution(self) -> Execution:
        """Of the towers. Proofs in float64 turn the whole network into that."""
        precision: Any = "float32" if self.precision == "float64" else self.precision
        wire: Any = self.wire
        return Execution(precision, wire, self.overlap, self.compile)


def check(options: VerifyOptions) -> tuple[Architecture, Placement]:
    """What is to be proven, and where. UsageError if there is nothing to prove."""
    architecture = preset(options.preset, options.towers, options.crosses)
    if options.break_ is not None:
        check_has_place(options.break_, architecture)
        rounds = [f"--{n} {v}" for n, v in vars(options).items() if n in ("precision", "wire") and v not in PLAIN]
        if options.break_ == "lrn-across" and rounds:
            raise UsageError(
                f"--break lrn-across {' '.join(rounds)}: it moves outputs and gradients by no more than that may round;"
                " it is shown in float64, without a wire"
            )
        if options.overlap or options.compile:
            asked = "--overlap" if options.overlap else "--compile"
            raise UsageError(
                f"--break {options.break_} {asked}: the mistake is made in crossings that a row waits for, and in rows"
                " as they are; it is shown without --overlap and --compile"
            )
    placement = place(architecture, None if options.devices is None else options.devices.split(","))
    if placement.whole:
        raise UsageError(
            f"--towers {options.towers} on {placement}: one piece on one device has nothing to be compared with"
            " (name a device for each of two or more towers)"
        )
    check_execution(options.execution, placement.devices)
    return architecture, placement


class Proof:
    """Runs the layouts on the same images from the same weights."""

    def __init__(self, options: VerifyOptions, architecture: Architecture, placement: Placement) -> None:
        self.options, self.architecture, self.placement = options, architecture, placement
        self.dtype = torch.float64 if options.precision == "float64" else torch.float32
        self.tolerances = tolerances(options.precision, options.execution)
        self.pixels, self.labels = images(architecture, options.batch_size, options.seed, self.dtype)

    def trial(
        self, placement: Placement, architecture: Architecture, execution: Execution, fault: str | None = None
    ) -> Trial:
        net = host(architecture, placement, self.options.seed, execution=execution).to(self.dtype)
        if fault is not None:
            net = broken(fault, net, placement.devices)
        return attempt(net, self.pixels, self.labels)

    def towers(self) -> Trial:
        return self.trial(self.placement, self.architecture, self.options.execution, self.options.break_)

    def against_whole(self, towers: Trial) -> list[Comparison]:
        """Every row against the whole network in one piece on the first device, the worst first.

        It computes in the same precision, row by row, and nothing crosses in it.
        """
        seam = self.options.break_ == "lrn-across"
        table = across_the_seam(self.architecture) if seam else self.architecture
        plain = Execution(self.options.execution.precision)
        whole = self.trial(Placement(self.placement.devices[:1], ""), table, plain)
        return sorted(compare(self.architecture, towers, whole), key=lambda row: -row.excess(self.tolerances))

    def against_towers(self, towers: Trial) -> Iterator[tuple[str, list[str]]]:
        """(where, names of what is not equal to the bit) for all towers on one device."""
        first = self.placement.devices[0]
        for device in dict.fromkeys((first, torch.device("cpu") if first.type == "fake" else first)):
            together = Placement((device,) * self.architecture.towers, "")
            yield str(device), identical(towers, self.trial(together, self.architecture, self.options.execution))


@contextmanager
def exact_kernels() -> Iterator[None]:
    """On CUDA: deterministic algorithms, and no products in TF32; as it was before, afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    products.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before[1:]


def prove(proof: Proof, console: Console) -> bool:
    """Print every row, the worst first, and what follows from it."""
    options, tolerances = proof.options, proof.tolerances
    towers = proof.towers()
    rows = proof.against_whole(towers)
    console.print(tables.differences(rows, tolerances, options.how, STEPS))
    worst = rows[0].excess(tolerances)
    equal = worst <= 1
    whole = f"the whole network on {proof.placement.devices[0]}"
    if tolerances is TOLERANCES["float64"]:
        found = f"{'equal' if equal else 'do NOT equal'} {whole}"
    else:  # where so much is rounded, nothing is shown to be equal
        found = f"{'agree' if equal else 'do NOT agree'} with {whole} within the tolerances above"
        found += f" ({', '.join(options.how)})"
    times = f"{worst:.2g}" if isfinite(worst) else "infinitely many"  # nothing may differ, or it is no number
    console.print(f"Towers {found}: the worst is {times} times its tolerance ({rows[0].row}).", highlight=False)
    for device, wrong in proof.against_towers(towers):
        equal = equal and not wrong
        found = "equal bit for bit" if not wrong else f"NOT equal in {len(wrong)} places, first {wrong[0]}"
        console.print(f"Towers on {proof.placement} and all on {device}: {found}.", highlight=False)
    if options.break_ is not None:
        exact = tolerances is TOLERANCES["float64"]
        enough, told = (1000, "NOT found a thousandfold") if exact else (1, "NOT found")
        found = f"found, {times} times the tolerance" if worst > enough else told
        console.print(f"Broken on purpose ({options.break_}: {FAULTS[options.break_]}): {found}.", highlight=False)
    return equal


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 proven, 1 not, 2 for bad usage."""
    console = tables.console()
    try:
        options = parse(VerifyOptions, "verify", __doc__ or "", argv)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        architecture, placement = check(options)
        console.print(tables.devices(architecture, placement, options.how), highlight=False, soft_wrap=True)
        if options.compile:
            without_cuda_notice()
        with exact_kernels():
            return 0 if prove(Proof(options, architecture, placement), console) else 1
    except UsageError as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130
    except torch.OutOfMemoryError as error:
        return out_of_memory(error)


if __name__ == "__main__":
    guarded(main)
