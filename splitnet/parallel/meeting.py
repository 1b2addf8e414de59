"""Before processes form groups: each says what it was asked for and what it runs, or why it cannot.

Who was given something else than the others, or cannot begin, is found here, and nothing has been written yet.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import Store

from splitnet.errors import UsageError
from splitnet.parallel.collective import LostRankError

Facts = Mapping[str, str]
"""What must be alike in all processes: its name, as a user would call it, to its value."""


def code() -> str:
    """The versions that compute: splitnet's sources by their hash, PyTorch, Python."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"splitnet {digest.hexdigest()[:12]}, torch {torch.__version__}, Python {platform.python_version()}"


class Meeting:
    """The processes of a job at its beginning, by their common store.

    Every process calls `agree` or `refuse` equally often, in the same order: each waits for all others, at most
    `timeout` seconds.
    """

    def __init__(self, store: Store, rank: int, world: int, timeout: float) -> None:
        self.store, self.rank, self.world, self.timeout = store, rank, world, timeout
        self._rounds = 0
        self._refused: dict[int, str] | None = None

    def agree(self, facts: Facts, note: Any = None) -> list[Any]:
        """Every rank's note, a JSON value. UsageError if facts differ, or another rank refuses."""
        found = self._exchanged({"facts": dict(facts), "note": note})
        self._check_none_refused(found)
        for rank, said in enumerate(found):
            for name in facts:
                theirs, mine = said["facts"].get(name), found[0]["facts"].get(name)
                if theirs != mine:
                    self._refused = {0: f"rank 0 has {name} {mine}, rank {rank} has {theirs}; they must be alike"}
                    raise UsageError(self._refused[0])
        return [said["note"] for said in found]

    def refuse(self, error: UsageError) -> int:
        """Tell the others, unless they know; the lowest rank alone prints the line. The exit status of bad usage."""
        if self._refused is None:
            with suppress(UsageError):
                self._check_none_refused(self._exchanged({"error": str(error)}))
        assert self._refused is not None
        if self.rank == 0:
            lines = set(self._refused.values())
            first = min(self._refused)
            alone = len(self._refused) < self.world or len(lines) > 1
            whose = f"rank {first}: " if alone and not self._refused[first].startswith("rank ") else ""
            sys.stderr.write(f"splitnet: error: {whose}{self._refused[first]}\n")
        return 2

    def _check_none_refused(self, found: list[dict[str, Any]]) -> None:
        refused = {rank: said["error"] for rank, said in enumerate(found) if "error" in said}
        if refused:
            self._refused = refused
            raise UsageError(refused[min(refused)])

    def _exchanged(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        self._rounds += 1
        key = f"meeting/{self._rounds}"
        self.store.set(f"{key}/{self.rank}", json.dumps(own))
        keys = [f"{key}/{rank}" for rank in range(self.world)]
        try:
            self.store.wait(keys, timedelta(seconds=self.timeout))
        except RuntimeError as error:
            missing = next((rank for rank, name in enumerate(keys) if not self.store.check([name])), "?")
            raise LostRankError(f"rank {missing} did not come within {self.timeout:g} s") from error
        return [json.loads(self.store.get(name)) for name in keys]
