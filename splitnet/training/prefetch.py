"""What is got ready while a step runs: images decoded by other threads, and the next batch on its devices."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Self

import torch
from torch.profiler import record_function

from splitnet import spans
from splitnet.network.towers import SplitNet
from splitnet.training.splits import Batch, Reader

Job = Callable[[], None]
Jobs = SimpleQueue[tuple["Future[None]", Job] | None]


PATIENCE = 5.0
"""Seconds that the end of a reading waits for each thread: one whose disk does not answer is left behind."""


class Pool:
    """Threads that work in turn on what they are given, from the first job in a context to the end of the last one.

    They are daemons, which ThreadPoolExecutor's are not: a disk that does not answer does not hold the interpreter.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._users = 0
        self._jobs: Jobs = SimpleQueue()
        self._threads: list[Thread] = []
        self._lock = Lock()

    def __enter__(self) -> Self:
        with self._lock:
            self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            threads, self._threads = self._threads, []
            for _thread in threads:
                self._jobs.put(None)
            self._jobs = SimpleQueue()
        for thread in threads:
            thread.join(PATIENCE)

    def submit(self, job: Job) -> "Future[None]":
        """Done when the job is; what that raises is its exception."""
        future: Future[None] = Future()
        with self._lock:
            if not self._users:
                raise RuntimeError("a pool has threads only in its context")
            if not self._threads:
                names = (f"splitnet-reader-{number}" for number in range(self.workers))
                self._threads = [Thread(target=_work, args=[self._jobs], name=name, daemon=True) for name in names]
                for thread in self._threads:
                    thread.start()
            self._jobs.put((future, job))
        return future


def _work(jobs: Jobs) -> None:
    while (given := jobs.get()) is not None:
        future, job = given
        try:
            job()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        del given, future, job  # whoever waits for more holds no batch


class Ahead:
    """Batches in turn, of which the next is fetched, and copied to the network's devices, while the last is used.

    None among the batches is the end of an epoch. What fetching raises comes in its own turn, unless `together`: where
    several processes fetch alike, one that failed may not go on as if nothing were wrong.
    """

    def __init__(self, net: SplitNet, batches: Iterator[Batch | None], reader: Reader, together: bool) -> None:
        """`reader`: what `batches` are read with."""
        self.net, self.reader, self.together = net, reader, together
        self._batches = batches
        self._fetched = self._over = False
        self._batch: Batch | None = None
        self._error: Exception | None = None
        """In the place of a batch."""
        devices = {parameter.device for parameter in net.parameters() if parameter.device.type != "cpu"}
        self._streams = {device: _stream(device) for device in devices}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch | None:
        self._fetch()
        if self._over:
            raise StopIteration
        batch, error = self._batch, self._error
        self._batch, self._error, self._fetched = None, None, False
        try:
            if error is not None:
                raise error
        finally:
            del error  # whoever keeps an error keeps this, and the network, by its traceback: here that were a cycle
        if batch is not None and batch.copies is not None:
            self._await_copies(batch)
        return batch

    @property
    def ends(self) -> bool:
        """Whether no other batch of the epoch follows; waits until that is known."""
        self._fetch()
        return self._batch is None and self._error is None

    def fetch(self) -> None:
        """Have the next batch, whatever it waits for.

        Where several processes fetch alike, which they agree on among themselves, each is to do so before they agree on
        anything else: one of them may have been ready before, and another not.
        """
        self._fetch()

    def get_ready(self) -> None:
        """Fetch and copy the next batch, if that costs no waiting: while devices are busy with what they were given."""
        if self.reader.ready:
            self._fetch(copy=True)

    def _fetch(self, copy: bool = False) -> None:
        if self._fetched:
            return
        with record_function(spans.DATA):
            try:
                self._batch = next(self._batches)
            except StopIteration:
                self._over = True
            except Exception as error:
                if self.together:
                    raise
                self._error = error
            self._fetched = True
            if copy and self._batch is not None and self._streams:
                self._batch = self._copied(self._batch)

    def _copied(self, batch: Batch) -> Batch:
        """In streams of their own, so that devices compute meanwhile; where there are no streams, in order."""
        with ExitStack() as streams:
            for device, stream in self._streams.items():
                if stream is not None:
                    streams.enter_context(torch.get_device_module(device).stream(stream))
            return replace(batch, copies=self.net.exchange.replicate(batch.images))

    def _await_copies(self, batch: Batch) -> None:
        """Let each device's current stream wait for what the other one brings, and keep its memory while it uses it."""
        for device, stream in self._streams.items():
            if stream is None:
                continue
            current = torch.get_device_module(device).current_stream(device)
            current.wait_stream(stream)
            for copy in batch.copies or ():
                if copy.device == device:
                    copy.record_stream(current)


def _stream(device: torch.device) -> Any:
    """A stream beside the main one; None where a device has but one."""
    module = torch.get_device_module(device)
    return module.Stream(device) if hasattr(module, "stream") else None
