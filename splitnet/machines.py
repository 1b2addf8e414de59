"""Machines by name, or from a file: two or more GPUs of a kind, and the links between them.

Figures are a vendor's where there is one: peaks. What a program gets of a peak is a share, stated apart and mostly an
assumption, which its source says. Nothing here is measured by this project but `--machine here` (`calibration`).

A file is JSON, with the fields of `Machine` as keys and units of one: FLOP/s, bytes, bytes/s, seconds. Required are
`float32`, `memory_bandwidth`, `memory` and `link`; `python -m splitnet.predict --machine NAME --write FILE` writes one.
"""

import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from splitnet.errors import UsageError

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One kind of GPU, and what joins any two of them. Every figure has an entry in `sources`."""

    name: str
    gpu: str = ""
    float32: float
    """FLOP/s at the peak, a multiplication and an addition being two."""
    tf32: float | None = None
    """None where the GPU has no such units, or none that PyTorch uses."""
    bf16: float | None = None
    float32_share: float = 0.6
    """Of the peak, what this network's products reach."""
    tensor_share: float = 0.4
    """The same of tf32 and bf16."""
    memory_bandwidth: float
    """Bytes/s."""
    memory_share: float = 0.8
    memory: float
    """Bytes."""
    link: float
    """Bytes/s from one GPU to another, one way."""
    link_share: float = 0.8
    latency: float = 10e-6
    """Seconds from asking for a copy between two GPUs to its first byte."""
    both_ways: bool = True
    """Whether a link carries both directions at once, each at full speed."""
    host_link: float | None = None
    """Bytes/s from the host to one GPU, one way; None: as fast as `link`."""
    host_link_share: float | None = None
    """None: as of `link`."""
    launch: float = 10e-6
    """Seconds that an operation takes at least: what it costs to start it."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Of a calibrated machine: FLOP/s of products, bytes/s of other work, by what it is ("conv2 forward", "adam")."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each figure is from."""

    def flops(self, precision: str = "float32") -> float:
        """FLOP/s that products reach. UsageError if the GPU does not compute so."""
        peak: float | None = getattr(self, precision)
        if peak is None:
            there = ", ".join(name for name in PRECISIONS if getattr(self, name))
            raise UsageError(f"--precision {precision}: {self.name} has no such units (it has {there})")
        reached = peak * (self.float32_share if precision == "float32" else self.tensor_share)
        # tf32 is allowed, not asked for: where its units are no faster, a library takes the others
        return max(reached, self.flops()) if precision == "tf32" else reached

    @property
    def bytes_per_second(self) -> float:
        """What operations reach of the memory's bandwidth."""
        return self.memory_bandwidth * self.memory_share

    @property
    def link_bytes_per_second(self) -> float:
        """What copies between two GPUs reach, one way."""
        return self.link * self.link_share

    @property
    def host_bytes_per_second(self) -> float:
        return (self.host_link or self.link) * (self.host_link_share or self.link_share)

    def transfer(self, nbytes: float, answered: bool = True) -> float:
        """Seconds of a copy of that size between two GPUs; `answered`: while the same goes the other way."""
        ways = 2 if answered and not self.both_ways else 1
        return self.latency + ways * nbytes / self.link_bytes_per_second if nbytes else 0.0


def emulate(machine: Machine, here_flops: float) -> tuple[float, float, float]:
    """What makes fake devices a machine: (speed factor, bytes/s of a link, its latency in seconds).

    `here_flops`: FLOP/s that products reach on this CPU, by `calibration`. Measured times divided by the factor are in
    the proportion to the link's that they have on the machine. One factor for all: what is bound by memory is divided
    alike, so the CPU's ratio of memory to arithmetic stays.
    """
    if not (math.isfinite(here_flops) and here_flops > 0):
        raise ValueError(f"no machine computes {here_flops} FLOP/s")
    return machine.flops() / here_flops, machine.link_bytes_per_second, machine.latency


# Sources that several machines share.
_ASSUMED = "assumption"
_LAUNCH = "assumption: what an eager PyTorch operation costs the host, 5 to 25 us"
_LATENCY = "assumption: a copy's start in a stream; the link itself takes 1 to 6 us"
_SHARES = {
    "float32_share": "assumption: good kernels at these shapes; compare titanx-pcie3",
    "tensor_share": "assumption: tensor cores at these shapes, casts and layouts included",
    "memory_share": "assumption: streaming kernels reach 70 to 90 %",
    "launch": _LAUNCH,
    "latency": _LATENCY,
}
_PCIE = {  # one way, x16: 5 GT/s at 8b/10b, then 8, 16 and 32 GT/s at 128b/130b (PCI-SIG base specifications)
    "pcie2": (8.0e9, 0.75, "PCI Express 2.0: 5 GT/s x 16 lanes x 8/10", "NVIDIA CUDA FAQ: up to 6.0 GB/s measured"),
    "pcie3": (15.75e9, 0.76, "PCI Express 3.0: 8 GT/s x 16 lanes x 128/130", "assumption: 12 GB/s, as programs see it"),
    "pcie4": (31.5e9, 0.8, "PCI Express 4.0: 16 GT/s x 16 lanes x 128/130", "assumption: 25 GB/s, as programs see it"),
    "pcie5": (63.0e9, 0.86, "PCI Express 5.0: 32 GT/s x 16 lanes x 128/130", "p2pmark (L. Alonso): 54.3 of 63.0 GB/s"),
}
GIB = 2**30


def _on_pcie(name: str, generation: str, gpu: Machine) -> Machine:
    """The GPU in x16 slots, whose copies to others and from the host take the same way."""
    link, share, source, share_source = _PCIE[generation]
    links = {"link": source, "link_share": share_source, "host_link": source, "host_link_share": share_source}
    slot = replace(gpu, name=name, link=link, link_share=share, host_link=link, host_link_share=share)
    return replace(slot, sources={**gpu.sources, **links, "both_ways": "PCI Express is full duplex"})


def _gpu(gpu: str, data_sheet: str, sources: Mapping[str, str] | None = None, **figures: float) -> Machine:
    """A GPU without its links; `data_sheet` is the source of what `sources` does not name."""
    vendor = dict.fromkeys(figures, data_sheet)
    return Machine(name="", gpu=gpu, link=1.0, **figures, sources=vendor | _SHARES | dict(sources or {}))  # type: ignore[arg-type]


_GTX580 = _gpu(
    "GeForce GTX 580 3 GB",
    "NVIDIA GeForce GTX 580 specifications, 2010: 512 cores at 1,544 MHz, 384 bits at 4,008 MHz",
    {
        "memory": "the paper, section 3.2: GTX 580 of 3 GB; deviceQuery says 3072 MBytes",
        "float32_share": "assumption for kernels of 2012; matrix products of Fermi reach 0.58-0.63"
        " (Nath, Tomov, Dongarra: An Improved MAGMA GEMM for Fermi GPUs, 2010)",
        "launch": "assumption: a CUDA launch from C++, as in 2012",
    },
    float32=1.581e12,
    float32_share=0.35,
    memory_bandwidth=192.4e9,
    memory=3 * GIB,
    launch=7e-6,
)
_K40 = _gpu(
    "Tesla K40",
    "NVIDIA Tesla K40 board specification, 2013: 2,880 cores at 745 MHz",
    {"float32_share": "assumption: as GTX 580's kernels, a generation later"},
    float32=4.29e12,
    float32_share=0.4,
    memory_bandwidth=288e9,
    memory=12 * GIB,
)
_TITAN_X = _gpu(
    "GeForce GTX TITAN X (Maxwell)",
    "NVIDIA GeForce GTX TITAN X specifications, 2015: 3,072 cores at 1,000 MHz",
    {
        "float32_share": "convnet-benchmarks (S. Chintala, 2015): AlexNet, batch 128, forward and backward in 177 ms"
        " (cuda-convnet2), 231 ms (cuDNN 2), 109 ms (Nervana): 0.49, 0.37, 0.79 of the peak"
    },
    float32=6.144e12,
    float32_share=0.49,
    memory_bandwidth=336.5e9,
    memory=12 * GIB,
)
_GTX1080TI = _gpu(
    "GeForce GTX 1080 Ti",
    "NVIDIA GeForce GTX 1080 Ti specifications, 2017: 3,584 cores at 1,582 MHz",
    float32=11.34e12,
    memory_bandwidth=484e9,
    memory=11 * GIB,
)
_RTX4090 = _gpu(
    "GeForce RTX 4090",
    "NVIDIA Ada GPU architecture white paper, 2022 (dense, float32 accumulation)",
    {"latency": "assumption, twice a peer's: without peer access copies go through the host"},
    float32=82.6e12,
    tf32=82.6e12,
    bf16=165.2e12,
    memory_bandwidth=1008e9,
    memory=24 * GIB,
    latency=20e-6,
)
_H100 = _gpu(
    "H100 PCIe 80 GB",
    "NVIDIA H100 data sheet, 2022 (dense: half of what it prints with sparsity)",
    float32=51e12,
    tf32=378e12,
    bf16=756e12,
    memory_bandwidth=2000e9,
    memory=80 * GIB,
)
_V100 = replace(
    _on_pcie(
        "v100-nvlink2",
        "pcie3",
        _gpu(
            "Tesla V100 SXM2 16 GB",
            "NVIDIA Tesla V100 data sheet, 2018 (tensor cores take float16 alone)",
            float32=15.7e12,
            memory_bandwidth=900e9,
            memory=16 * GIB,
        ),
    ),
    link=50e9,
    link_share=0.958,
)
_A100 = replace(
    _on_pcie(
        "a100-nvlink3",
        "pcie4",
        _gpu(
            "A100 SXM4 40 GB",
            "NVIDIA A100 data sheet, 2020 (dense)",
            float32=19.5e12,
            tf32=156e12,
            bf16=312e12,
            memory_bandwidth=1555e9,
            memory=40 * GIB,
        ),
    ),
    link=300e9,
    link_share=0.8,
)
_H100_SXM = replace(
    _on_pcie(
        "h100-nvlink4",
        "pcie5",
        replace(_H100, gpu="H100 SXM5 80 GB", float32=67e12, tf32=494.7e12, bf16=989.4e12, memory_bandwidth=3350e9),
    ),
    link=450e9,
    link_share=0.8,
)


def _over(machine: Machine, link: str, share: str) -> Machine:
    """The machine, with the sources of a link that is not the slot's."""
    return replace(machine, sources={**machine.sources, "link": link, "link_share": share, "both_ways": link})


_ALL = (
    _on_pcie("gtx580-pcie2", "pcie2", _GTX580),
    _on_pcie("k40-pcie3", "pcie3", _K40),
    _on_pcie("titanx-pcie3", "pcie3", _TITAN_X),
    _on_pcie("gtx1080ti-pcie3", "pcie3", _GTX1080TI),
    _over(
        _V100,
        "NVIDIA Tesla V100 data sheet: NVLink 2, 25 GB/s one way; two links join a pair (Dell C4130, DGX-1)",
        "Dell HPC solution guide, 2017: p2pBandwidthLatencyTest, 47.9 of 50 GB/s",
    ),
    _over(_A100, "NVIDIA A100 data sheet: NVLink 3, 600 GB/s both ways together", "assumption"),
    _on_pcie("rtx4090-pcie4", "pcie4", _RTX4090),
    _on_pcie("h100-pcie4", "pcie4", _H100),
    _on_pcie("h100-pcie5", "pcie5", _H100),
    _over(_H100_SXM, "NVIDIA H100 data sheet: NVLink 4, 900 GB/s both ways together", "assumption"),
)
MACHINES = {machine.name: machine for machine in _ALL}
HERE = "here"
"""What --machine calls this one, calibrated."""

_SHARE = ("float32_share", "tensor_share", "memory_share", "link_share", "host_link_share")
_SECONDS = ("latency", "launch")
_LEAST, _MOST, LEAST_MEMORY = 1e3, 1e18, 2**20
"""FLOP/s, bytes/s and bytes of one GPU beyond which a figure is a slip; its memory in bytes, likewise at least."""
_KEYS = {entry.name: entry for entry in fields(Machine)}


def machine(name: str, option: str = "--machine", here: bool = True) -> Machine:
    """The machine of that name, or of a file. UsageError names what is wrong.

    `here` is not among them; `here`: whether that can be said in its place.
    """
    if name in MACHINES:
        return MACHINES[name]
    path = Path(name)
    if name and (path.suffix == ".json" or os.path.lexists(path)):  # unlike Path.exists no error where nobody may look
        return read(path, option)
    there = f"{', '.join(MACHINES)}{f', and {HERE}' if here else ''}"
    raise UsageError(f"{option} {name or repr(name)}: no such machine or file (there are {there})")


def read(path: Path, option: str = "--machine") -> Machine:
    """The machine that a file describes. UsageError names the figures that are missing, or one that cannot be."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise UsageError(f"{option} {path}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{option} {path}: an object of figures is wanted, not {type(found).__name__}")
    found = {"name": path.stem, **found}
    for key, value in found.items():
        if key not in _KEYS:
            raise UsageError(f"{option} {path}: {key!r} is no figure of a machine (there are {', '.join(_KEYS)})")
        if right := _instead(key, value):
            raise UsageError(f"{option} {path}: {key} is {reprlib.repr(value)}, not {right}")
    wanted = (key for key, entry in _KEYS.items() if entry.default is MISSING and entry.default_factory is MISSING)
    if missing := [key for key in wanted if key not in found]:
        raise UsageError(f"{option} {path}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return Machine(**found)


def _instead(key: str, value: Any) -> str:
    """What would be right in place of a value; "" where it is."""
    if key in ("name", "gpu"):
        return "" if _is_line(value) else "a line of text"
    if key == "both_ways":
        return "" if isinstance(value, bool) else "true or false"
    if key == "sources":
        texts = isinstance(value, dict) and all(key in _KEYS and _is_line(text) for key, text in value.items())
        return "" if texts else "a line of text for each figure, by its name"
    if key == "measured":
        rates = isinstance(value, dict) and all(_between(rate, _LEAST, _MOST) for rate in value.values())
        return "" if rates else f"a number above {_LEAST:g} for each kind of work"
    if value is None and _KEYS[key].default is None:
        return ""
    if key == "memory":
        return "" if _between(value, LEAST_MEMORY - 1, _MOST) else f"a size of at least {LEAST_MEMORY:,} bytes"
    if key in _SECONDS:
        return "" if (value == 0 and not isinstance(value, bool)) or _between(value, 0, 1) else "seconds, 0 to 1"
    if key in _SHARE:
        return "" if _between(value, 1e-3, 1) else "a share, above 0.001 and at most 1"
    return "" if _between(value, _LEAST, _MOST) else f"a number above {_LEAST:g}, at most {_MOST:g}"


def _is_line(value: Any) -> bool:
    """Whether a terminal can show it: no control characters, and not nothing."""
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _between(value: Any, least: float, most: float) -> bool:
    """Whether it is a number above `least` and at most `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least < value <= most


def as_json(found: Machine) -> str:
    """A file that describes the machine."""
    return json.dumps(asdict(found), indent=2) + "\n"
