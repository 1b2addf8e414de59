"""Ctrl-C and SIGTERM: while a network learns they wait for the end of the step, so that it can be saved."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Self

from splitnet.training.sharing import Interrupted, Stop


class Interrupts:
    """While it is open, SIGINT and SIGTERM raise Interrupted in the main thread.

    Where it is `patient`, the first one only sets `stop.asked`.
    """

    def __init__(self, patient: bool = False) -> None:
        """`patient`: at all times, for a process that others wait for."""
        self.stop = Stop()
        self._always = self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._always:  # torchrun ends the others when the first of a job has ended: each is to end in its own way
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def patient(self) -> AbstractContextManager[Stop]:
        """Inside, the first signal is a wish, which `stop` has."""
        return self._while(True)

    def impatient(self) -> AbstractContextManager[Stop]:
        """Inside, the first signal is obeyed at once, unless others wait for this process."""
        return self._while(self._always)

    @contextmanager
    def _while(self, patient: bool) -> Iterator[Stop]:
        before, self._patient = self._patient, patient
        try:
            yield self.stop
        finally:
            self._patient = before

    def _take(self, number: int, frame: FrameType | None) -> None:
        first, self.stop.asked = not self.stop.asked, self.stop.asked or number
        # torchrun sends SIGTERM again and again; only a person who presses Ctrl-C again means: at once
        if not self._patient or (not first and number == signal.SIGINT):
            raise Interrupted(number)
