"""Checkpoints that must be refused: damaged in every place, foreign, or made to do harm.

`damaged(good, number)` copies a run's folder and damages its newest checkpoint in the way of that number. "Right
sums" means that SHA256SUMS was made anew, as whoever forges a checkpoint would.
"""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from layouts import small
from safetensors.torch import load_file, save

from splitnet.errors import UsageError
from splitnet.network import weights
from splitnet.training.checkpoint import Checkpoint, Checkpoints, check_fits

LENET = small("lenet", 1)
WEIGHTS, OPTIMIZER, STATE, SUMS = FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS")

Damage = Callable[[Path], object]
"""What is done to the folder of a checkpoint."""


def damaged(good: Path, number: int) -> tuple[str, Path]:
    """What was done, and the copy of the run's folder that it was done to, beside it."""
    what, damage = CASES[number]
    run = good.with_name(f"{good.name}-{number}")
    shutil.copytree(good, run)
    damage(max((run / "checkpoints").iterdir()))
    return what, run


def resum(folder: Path) -> None:
    """Right sums over whatever is there."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES[:3]]
    (folder / SUMS).write_text("".join(lines))


# Damage, as disks, networks and people do it.


def truncated(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: min(int(len(data) * share), len(data) - 1)])


def flipped(folder: Path, name: str, share: float, bit: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[min(int(len(data) * share), len(data) - 1)] ^= 1 << bit
    (folder / name).write_bytes(data)


def swapped(folder: Path, one: str, other: str, right_sums: bool = False) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)
    if right_sums:
        resum(folder)


def longer(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n")


def zeroed(folder: Path, name: str) -> None:
    """As a file system leaves a file whose bytes never reached the disk."""
    (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def instead(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    """Something that is no file, where a file was."""
    (folder / name).unlink()
    make(folder / name)


def linked(path: Path) -> None:
    """A link to the right bytes, outside of the folder."""
    original = path.parents[3] / "run" / "checkpoints" / path.parent.name / path.name
    path.symlink_to(original)


def folder_instead(folder: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(folder)
    make(folder)


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("step-0000000099"))


# Forged: the sums are right.


def forged(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    resum(folder)


def tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other tensors in a file of the right format."""
    state = load_file(folder / name)
    change(state)
    forged(folder, name, save(state))


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.update({name: make(state.get(name, torch.zeros(2))).contiguous()})


def named(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.update({new: state.pop(old)})


def holding(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def header(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    """Another header over the same bytes."""
    data = (folder / name).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    found = json.loads(data[8 : 8 + length])
    change(found)
    text = json.dumps(found).encode()
    forged(folder, name, struct.pack("<Q", len(text)) + text + data[8 + length :])


def field(key: str, value: object) -> Callable[[dict], object]:
    """Change a field of the header's first tensor."""
    return lambda found: next(iter(found[n] for n in found if n != "__metadata__")).update({key: value})


def state(folder: Path, **fields: object) -> None:
    """Other fields in state.json; ... takes one out."""
    found = json.loads((folder / STATE).read_text()) | fields
    text = json.dumps({key: value for key, value in found.items() if value is not ...})
    forged(folder, STATE, text.encode())


def state_text(folder: Path, old: str, new: str) -> None:
    """Other text in state.json, where JSON's own writer would not put it."""
    found = json.loads((folder / STATE).read_text())
    text = json.dumps(found | {"settings": "HERE"})
    assert old in text
    forged(folder, STATE, text.replace(old, new).encode("utf-8", "surrogatepass"))


def sums(folder: Path, change: Callable[[str], str]) -> None:
    text = (folder / SUMS).read_text()
    assert change(text) != text
    (folder / SUMS).write_bytes(change(text).encode())


RAN = Path(tempfile.gettempdir()) / "splitnet-ran-code"


class Harmful:
    """Whoever unpickles it has run code."""

    def __reduce__(self):
        return (Path.touch, (RAN,))


def _pickled() -> bytes:
    return pickle.dumps(Harmful())


def _torch_saved() -> bytes:
    file = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(3)}, file)
    return file.getvalue()


def _raw(length: int, text: bytes, data: bytes = bytes(64)) -> bytes:
    return struct.pack("<Q", length) + text + data


def _one(**fields: object) -> bytes:
    text = json.dumps({"conv1.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | fields}).encode()
    return _raw(len(text), text)


def _two(first: list[int], second: list[int], name: str = "conv1.bias") -> bytes:
    row = {"dtype": "F32", "shape": [8]}
    text = json.dumps({"conv1.weight": row | {"data_offsets": first}, name: row | {"data_offsets": second}}).encode()
    return _raw(len(text), text)


def _forgeries() -> Iterator[tuple[str, bytes]]:
    """Contents that are no safetensors file of ours, whatever the sums say."""
    yield "a header of 2**60 bytes", _raw(2**60, b"{}")
    yield "a header of 2**64 - 1 bytes", _raw(2**64 - 1, b"{}")
    yield "a header longer than the file", _raw(1000, b"{}")
    yield "a header that nests 100,000 deep", _raw(200_000, b"[" * 100_000 + b"]" * 100_000)
    yield "a header that nests 100,000 tables", _raw(600_001, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield "a header that is no JSON", _raw(4, b"\xff\xfe\x00{")
    yield "a header that is a list", _raw(2, b"[]")
    yield "overlapping offsets", _two([0, 32], [16, 48])
    yield "overlapping offsets of a name of two lines", _two([0, 32], [16, 48], "conv1\n\x1b[2J.bias")
    yield "offsets past the end", _two([0, 32], [2**40, 2**40 + 32])
    yield "offsets with a hole", _two([0, 32], [40, 72])
    yield "offsets backwards", _two([32, 0], [32, 64])
    yield "negative offsets", _two([-32, 0], [0, 32])
    yield "a shape of 2**124 numbers", _one(shape=[2**62, 2**62])
    yield "a shape that is negative", _one(shape=[-16])
    yield "a shape of 2**62 times nothing", _one(shape=[2**62, 0], data_offsets=[0, 0])
    yield "an unknown dtype", _one(dtype="F1024")
    yield "a dtype that PyTorch lacks", _one(dtype="F8_E8M0", shape=[64])
    yield "a pickle", _pickled()
    yield "a file of torch.save", _torch_saved()
    yield "seven bytes", b"1234567"


def _simple(folder_step: int = 10) -> Iterator[tuple[str, Damage]]:
    places = random.Random(1)
    for name in FILES:
        for share in (0.0, 0.01, 0.3, 0.6, 0.9, 1.0):
            yield f"{name}: truncated to {share:.0%}", partial(truncated, name=name, share=share)
        for number in range(9):
            share, bit = (0.0, number % 8) if number < 2 else (places.random(), places.randrange(8))
            share = 1.0 if number == 8 else share
            yield f"{name}: bit {bit} at {share:.4f} flipped", partial(flipped, name=name, share=share, bit=bit)
        yield f"{name}: a line longer", partial(longer, name=name)
        yield f"{name}: zeros", partial(zeroed, name=name)
        yield f"{name}: removed", partial(instead, name=name, make=lambda path: None)
        yield f"{name}: a folder", partial(instead, name=name, make=Path.mkdir)
        yield f"{name}: a pipe", partial(instead, name=name, make=os.mkfifo)
        yield f"{name}: a link out", partial(instead, name=name, make=linked)
        yield f"{name}: a link to itself", partial(instead, name=name, make=lambda path: path.symlink_to(path.name))
    yield f"{STATE}: /dev/zero", partial(instead, name=STATE, make=lambda path: path.symlink_to("/dev/zero"))
    for one, other in ((WEIGHTS, OPTIMIZER), (OPTIMIZER, STATE), (STATE, SUMS)):
        yield f"{one} and {other} swapped", partial(swapped, one=one, other=other)
    for one, other in ((WEIGHTS, OPTIMIZER), (OPTIMIZER, STATE), (STATE, WEIGHTS)):
        yield f"{one} and {other} swapped, right sums", partial(swapped, one=one, other=other, right_sums=True)
    yield "the folder of another step", moved
    for what, make in (
        ("a file", Path.touch),
        ("a pipe", os.mkfifo),
        ("empty", Path.mkdir),
        ("a link to an older one", lambda path: path.symlink_to("step-0000000005")),
        (
            "a link to the right one elsewhere",
            lambda path: path.symlink_to(path.parents[2] / "run/checkpoints" / path.name),
        ),
    ):
        yield f"the folder: {what}", partial(folder_instead, make=make)
    changes: list[tuple[str, Callable[[str], str]]] = [
        ("in capitals", str.upper),
        ("in another order", lambda text: "".join(sorted(text.splitlines(True), reverse=True))),
        ("doubled", lambda text: text * 2),
        ("with CRLF", lambda text: text.replace("\n", "\r\n")),
        ("of binary files", lambda text: text.replace("  ", " *")),
        ("of files elsewhere", lambda text: text.replace("  ", "  ../../")),
        ("and a file more", lambda text: text + "0" * 64 + "  /etc/passwd\n"),
        ("20 MB long", lambda text: text + "\n" * 20_000_000),
    ]
    for what, change in changes:
        yield f"sums {what}", partial(sums, change=change)


def _tensor_cases() -> Iterator[tuple[str, Damage]]:
    for what, content in _forgeries():
        for name in (WEIGHTS, OPTIMIZER):
            yield f"{name}: {what}, right sums", partial(forged, name=name, content=content)
    bias, average, step = "conv1.bias", "conv1.bias.exp_avg", "conv1.bias.step"
    changes: list[tuple[str, str, Callable[[dict[str, torch.Tensor]], object]]] = [
        (WEIGHTS, "no tensors", dict.clear),
        (WEIGHTS, "a weight less", lambda state: state.pop(bias)),
        (WEIGHTS, "a weight more", put("conv9.weight", torch.ones_like)),
        (WEIGHTS, "another name", named(bias, "conv1.gain")),
        (WEIGHTS, "a name that leads out", named(bias, "../../conv1.bias")),
        (WEIGHTS, "a name of two lines", named(bias, "conv1\n\x1b[2J.bias")),
        (WEIGHTS, "no name", named(bias, "")),
        (WEIGHTS, "a name of 100,000 letters", named(bias, "a" * 100_000 + ".bias")),
        (WEIGHTS, "another shape", put(bias, lambda t: t[:-1])),
        (WEIGHTS, "an axis more", put(bias, lambda t: t[None])),
        (WEIGHTS, "NaN", put(bias, holding(float("nan")))),
        (WEIGHTS, "infinity", put(bias, holding(float("inf")))),
        (WEIGHTS, "whole numbers", put(bias, lambda t: t.long())),
        (WEIGHTS, "one in half", put(bias, lambda t: t.half())),
        (WEIGHTS, "complex numbers", put(bias, lambda t: t.to(torch.complex64))),
        (WEIGHTS, "another network", lambda state: [state.clear(), state.update({"fc1.weight": torch.ones(2, 2)})]),
        (OPTIMIZER, "a tensor less", lambda state: state.pop(average)),
        (OPTIMIZER, "no counts but one", lambda state: [state.pop(n) for n in list(state) if n.endswith("s.step")]),
        (OPTIMIZER, "of no weight", named(average, "conv9.bias.exp_avg")),
        (OPTIMIZER, "a name that leads out", named(average, "../conv1.bias.exp_avg")),
        (OPTIMIZER, "another shape", put(average, lambda t: t[:-1])),
        (OPTIMIZER, "0-dim", put(average, lambda t: t.sum())),
        (OPTIMIZER, "another dtype", put(average, lambda t: t.double())),
        (OPTIMIZER, "NaN", put(average, holding(float("nan")))),
        (OPTIMIZER, "a count of NaN", put(step, lambda t: t * float("nan"))),
        (OPTIMIZER, "a count of infinity", put(step, lambda t: t * float("inf"))),
        (OPTIMIZER, "a negative count", put(step, torch.neg)),
        (OPTIMIZER, "half a step", put(step, lambda t: t + 0.5)),
        (OPTIMIZER, "a count of shape (1,)", put(step, lambda t: t[None])),
        (OPTIMIZER, "a count that is text", put(step, lambda t: t.to(torch.uint8))),
    ]
    for name, what, change in changes:
        yield f"{name}: {what}, right sums", partial(tensors, name=name, change=change)
    for what, key, value in (
        ("its first dtype I32", "dtype", "I32"),
        ("its first offsets null", "data_offsets", None),
        ("its first offsets text", "data_offsets", ["0", "4"]),
        ("its first shape a table", "shape", {}),
    ):
        yield f"{WEIGHTS}: {what}, right sums", partial(header, name=WEIGHTS, change=field(key, value))


def _state_cases() -> Iterator[tuple[str, Damage]]:
    fields: list[dict[str, object]] = [
        {"schema": 2},
        {"schema": 0},
        {"schema": "1"},
        {"schema": True},
        {"schema": ...},
        {"step": -10},
        {"step": 10.0},
        {"step": "10"},
        {"step": True},
        {"step": None},
        {"step": 11},
        {"step": 2**63},
        {"epoch": -1},
        {"epoch": ...},
        {"batch": 0.5},
        {"batch": 2**200},
        {"settings": []},
        {"settings": ...},
        {"schedule": {}},
        {"schedule": [1]},
        {"code": "print()"},
    ]
    for changed in fields:
        yield f"{STATE}: {changed}, right sums", partial(state, **changed)
    for what, new in (
        ("NaN", '{"lr": NaN}'),
        ("Infinity", "[-Infinity]"),
        ("1e999", "[1e999]"),
        ("an integer of 5,000 digits", "9" * 5000),
        ("an integer of 4,000 digits", '{"lr": ' + "9" * 4000 + "}"),
        ("500 levels", '{"a":' * 500 + "1" + "}" * 500),
        ("100,000 levels", "[" * 100_000 + "]" * 100_000),
        ("half a surrogate pair", '{"preset": "\\ud800"}'),
        ("a key of half a surrogate pair", '{"\\ud800": 1}'),
        ("bytes that are not UTF-8", '"\ud800"'),
    ):
        yield f"{STATE}: {what}, right sums", partial(state_text, old='"HERE"', new=new)
    for what, content in (
        ("nothing", b""),
        ("a list", b"[]"),
        ("null", b"null"),
        ("a number", b"1"),
        ("an empty table", b"{}"),
        ("a pickle", _pickled()),
        ("UTF-16", '{"schema": 1}'.encode("utf-16")),
        ("20 MB of blanks", b" " * 20_000_000),
    ):
        yield f"{STATE}: {what}, right sums", partial(forged, name=STATE, content=content)


def _cases() -> list[tuple[str, Damage]]:
    found = [*_simple(), *_tensor_cases(), *_state_cases()]
    random.Random(0).shuffle(found)  # so that the first twenty are of every kind
    return found


CASES = _cases()


# What must come of it.


def good_run(parent: Path) -> Path:
    """A run with two checkpoints of Adam's, after 5 and 10 steps."""
    run = parent / "run"
    run.mkdir()
    numbers = torch.Generator().manual_seed(0)
    state = weights.draw(LENET, 0)
    kept = {f"{name}.step": torch.tensor(10.0) for name in state}
    for kind in ("exp_avg", "exp_avg_sq"):
        kept |= {f"{name}.{kind}": torch.rand(tensor.shape, generator=numbers) for name, tensor in state.items()}
    settings = {"preset": "lenet", "seed": 0, "lr": None}
    for step in (5, 10):
        Checkpoints(run).save(Checkpoint(step, 0, step, settings, [{"lr": 0.1}], state, kept))
    return run


def read(run: Path) -> None:
    """Read the last checkpoint as whoever goes on from it does."""
    check_fits(Checkpoints(run).last(), LENET)


def refused(good: Path, number: int) -> str:
    """The one line that a damaged run is refused with. Nothing may be touched; waiting counts as another exception."""
    what, run = damaged(good, number)
    before = contents(good.parent)
    old = signal.signal(signal.SIGALRM, _waits)
    signal.alarm(60)
    try:
        read(run)
    except UsageError as error:
        line = str(error)
    else:
        raise AssertionError(f"{what}: it was read")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert Checkpoints(run).steps()[0] == 5, what
    assert contents(good.parent) == before, what
    assert not RAN.exists(), what
    assert line, what
    assert all(letter.isprintable() for letter in line), what
    assert len(line) < 1000, what
    shutil.rmtree(run)
    return line


def _waits(*_: object) -> None:
    raise TimeoutError("it waits for something")


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind and bytes of everything below a folder, without following what leads out of it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path.relative_to(folder))] = (mode, path.read_bytes() if stat.S_ISREG(mode) else b"")
    return found
