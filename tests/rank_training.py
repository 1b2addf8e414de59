"""Train small networks in several processes: `torchrun --nproc-per-node N tests/rank_training.py OUT TOWERS [cuda]`.

Rank 0 writes OUT/<case>.safetensors; see experiments/layouts.py, whose training this is.
"""

import sys
from pathlib import Path

import torch
from layouts import small

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.layouts import Trained, trained
from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution
from splitnet.parallel import ranks as processes
from splitnet.parallel.ranks import Ranks

STEPS, BATCH = 8, 12
"""Of five steps is an epoch."""

REST = 7
"""Images in its last batch, which replicas cannot share equally."""


def cases(towers: int) -> dict[str, tuple[Architecture, torch.dtype, Execution]]:
    """The networks that are trained."""
    plain = {
        f"{name}-{towers}-{str(dtype).removeprefix('torch.')}": (small(name, towers), dtype, Execution())
        for name in ("fashion", "alexnet")
        for dtype in (torch.float64, torch.float32)
    }
    crossing = {
        "overlap": Execution(overlap=True),
        "wire": Execution(wire="float16"),
        "overlap-wire": Execution(wire="bf16", overlap=True),
    }
    others = {f"{how}-{towers}-float64": (small("alexnet", towers), torch.float64, e) for how, e in crossing.items()}
    return plain | (others if towers > 1 else {})


def attempt(case: str, towers: int, *, ranks: Ranks | None = None, devices: list[str] | None = None) -> Trained:
    architecture, dtype, execution = cases(towers)[case]
    how = {"steps": STEPS, "batch_size": BATCH, "lr": 0.01}
    return trained(architecture, dtype, ranks=ranks, devices=devices, execution=execution, **how)


def main(out: Path, towers: int, device: str = "cpu") -> None:
    torch.set_num_threads(1)
    ranks = processes.join(towers, [device == "cuda"] * processes.world(), processes.job_store(), timeout=60)
    for case in cases(towers):
        found = attempt(case, towers, ranks=ranks)
        if ranks.rank == 0:
            found.save(out / f"{case}.safetensors")
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
