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
        self._late = 0
        """Number of the last signal that had to wait, since patience began."""
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
        """Inside, the first signal is a wish, which `stop` has. Whoever leaves without having met it is interrupted."""
        return self._while(True)

    def impatient(self) -> AbstractContextManager[Stop]:
        """Inside, the first signal is obeyed at once, unless others wait for this process."""
        return self._while(self._always)

    @contextmanager
    def _while(self, patient: bool) -> Iterator[Stop]:
        before = self._patient
        if patient and not before:
            self._late = 0
        self._patient = patient
        try:
            yield self.stop
        finally:
            self._patient = before
        if patient and self._late and not before:
            raise Interrupted(self._late)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self._late = self._late, number
        self.stop.asked = self.stop.asked or number
        # torchrun sends SIGTERM again and again; only a person who presses Ctrl-C again means: at once
        if not self._patient or (again and number == signal.SIGINT):
            raise Interrupted(number)
