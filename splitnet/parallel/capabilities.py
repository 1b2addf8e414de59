"""What devices can do of what an execution asks for."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from splitnet.errors import UsageError
from splitnet.network.execution import Execution, Precision, Wire
from splitnet.network.response_norm import has_triton
from splitnet.parallel.ranks import Ranks

AMPERE = (8, 0)
"""The first compute capability of CUDA whose products take tf32."""


def check_execution(execution: Execution, devices: Sequence[torch.device], ranks: Ranks | None = None) -> None:
    """UsageError for a precision, a wire or a compilation that these devices, or processes, do not have."""
    _check_known("--precision", execution.precision, get_args(Precision))
    if execution.wire is not None:
        _check_known("--wire", execution.wire, get_args(Wire))
        if ranks is not None and ranks.towers > 2:
            raise UsageError(
                f"--wire {execution.wire}: between processes gradients of more than two towers would be summed in it"
                " (two towers, or one process)"
            )
    for device in dict.fromkeys(devices):
        lacks = _lacks(execution.precision, device)
        if lacks:
            raise UsageError(f"--precision {execution.precision}: {device} {lacks}")
        if execution.compiled:
            _check_compiler(device)


def _check_known(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value}: there are {', '.join(known)}")


def _lacks(precision: Precision, device: torch.device) -> str:
    """Why a device does not compute in that precision; nothing if it does."""
    if precision == "tf32":
        if device.type != "cuda":
            return "has no tf32, which is CUDA's (float32 and bf16 are everywhere)"
        if torch.cuda.get_device_capability(device) < AMPERE:
            return "has no tf32, which CUDA has from compute capability 8.0 on"
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        return "has no bf16, which CUDA has from compute capability 8.0 on"
    return ""


def _check_compiler(device: torch.device) -> None:
    if device.type == "fake":
        raise UsageError(f"--compile: {device} computes operation by operation; torch.compile takes cuda and cpu")
    if device.type == "cuda" and not has_triton(device):
        needs = "the package triton, gcc or clang, Python's headers (Python.h), and compute capability 7.0"
        raise UsageError(f"--compile: {device} needs {needs}")
    if device.type == "cpu" and not _has_cpp_compiler():
        raise UsageError("--compile: on the CPU torch.compile needs a C++ compiler, and there is none")
    if device.type == "cpu" and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise UsageError("--compile: on the CPU torch.compile needs Python's headers (Python.h), and there are none")


def _has_cpp_compiler() -> bool:
    from torch._inductor import cpp_builder, exc  # a second's import, for those who compile

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False
    return True


def use_precision(execution: Execution) -> None:
    """Let CUDA round products in float32 to tf32, or not: it is the process's setting, and cuDNN's default is to."""
    rounds = execution.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounds


def is_slow(precision: Precision, device: torch.device) -> bool:
    """Whether a device computes in that precision without instructions for it, and so slower than in float32."""
    return precision == "bf16" and device.type in {"cpu", "fake"} and not cpu_multiplies_bf16()


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for it (x86's or ARM's), and PyTorch oneDNN, which uses them.

    That oneDNN computes in bf16 says less: with avx512 alone it does, slower than in float32.
    """
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(
        has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )
