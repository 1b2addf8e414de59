"""The processes that make a run together: this one, or those of a job that torchrun started."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NoReturn, Self

from splitnet.errors import UsageError
from splitnet.options import fail, refuse
from splitnet.parallel import ranks as processes
from splitnet.parallel.collective import LostRankError
from splitnet.parallel.meeting import Meeting, code
from splitnet.parallel.ranks import Ranks
from splitnet.parallel.watch import COLLECTIVE, Watch

START = 60.0
"""Seconds to wait for the others before --timeout has been read."""


class Party:
    """What one process alone does by itself, and those of a job do in agreement.

    Enter it, `watch` the others, `agree` on what is to be done, `join` them. The `rank` is 0 for one that is alone.
    """

    def __init__(self) -> None:
        self.ranks: Ranks | None = None
        self.several = processes.launched()
        self.rank = processes.rank() if self.several else 0
        self.timeout = START
        self._watch: Watch | None = None
        self._open = ExitStack()
        if self.several:
            self._store = processes.job_store(START)
            self._meeting = Meeting(self._store, self.rank, processes.world(), START)

    @property
    def first(self) -> bool:
        """Whether this one prints and writes."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._open.__exit__(kind, error, at)
        finally:
            if self.ranks is not None:
                processes.leave()

    def watch(self, timeout: float) -> None:
        """From here on, who dies or hangs is named within `timeout` seconds, and every process ends."""
        self.timeout = timeout
        if self.several:
            self._meeting.timeout = timeout
            self._watch = Watch(lambda: processes.job_store(timeout / 6), self.rank, processes.world(), timeout)
            self._open.enter_context(self._watch)

    def agree(self, facts: Mapping[str, Any], note: Any = None) -> list[Any]:
        """Everybody's note, a JSON value. UsageError if somebody's facts differ from another's, or somebody refuses."""
        if not self.several:
            return [note]
        return self._meeting.agree({name: str(value) for name, value in facts.items()}, note)

    def refuse(self, error: UsageError) -> int:
        """One line for all; the exit status of bad usage."""
        if not self.several:
            return refuse(error)
        try:
            return self._meeting.refuse(error)
        except LostRankError:  # nobody is there to agree with
            return refuse(error)

    def join(self, towers: int, gpus: list[bool]) -> None:
        """Form groups with the others, if there are any."""
        if self.several:
            limit = self.timeout * COLLECTIVE
            self.ranks = processes.join(towers, gpus, self._store, limit, self._watch.at if self._watch else None)

    def share(self, own: Any, what: str) -> list[Any]:
        """Everybody's object, in the order of ranks."""
        return [own] if self.ranks is None else self.ranks.objects(own, what)

    def from_first(self, own: Any, what: str) -> Any:
        """The object of rank 0."""
        return own if self.ranks is None else self.ranks.from_first(own, what)

    def wait_for_first(self, what: str) -> None:
        """Return once rank 0 has come here as well, however long it takes while it lives; rank 0 waits for nobody."""
        if self.several:
            processes.wait_for_first(what)

    def lost(self, error: BaseException) -> NoReturn:
        """A collective broke off: find out whose fault it is, say so once in the job, and end."""
        if self._watch is None:
            raise SystemExit(fail(f"{error}"))
        self._watch.lost(error)

    def failed(self, line: str) -> NoReturn:
        """Say why this process, and so the others, cannot go on, once in the job, and end."""
        if self._watch is None:
            raise SystemExit(fail(line))
        self._watch.failed(line)


def facts(options: Any, own: Collection[str]) -> dict[str, Any]:
    """What must be alike in all processes: options, but for those that are each one's `own`, and the code."""
    shared = {name: value for name, value in vars(options).items() if name not in own}
    return {f"--{name.replace('_', '-')}": value for name, value in shared.items()} | {"the code": code()}
