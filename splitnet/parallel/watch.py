"""The watch over ranks: one that dies, hangs or is cut off is named in one line, and every process of the job ends.

Each rank beats into the job's store and reads the others' beats; a guardian, its child, kills it should it be stopped.
All limits are fractions of one `timeout`, within which the job is over:

    1/30   (at most 1 s) between two beats
    1/3    without a beat: the rank is lost; without an answer: the store is lost
    2/5    without a beat of its parent: a guardian kills it
    3/5    collectives wait (COLLECTIVE: for the caller to give to its groups); ranks may take to start
    1/20   to hear, after a collective timed out, who else waits
    1/10   for all to hear the verdict

A rank that computes for long is no fault while it beats: how long others wait for it is the collectives' to say.
"""

import os
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from torch._C._distributed_c10d import Store  # torch.distributed's stubs hide them
from torch.distributed import DistError

from splitnet.parallel.beats import Beat, Process, State, Verdict, blame, blame_who_hangs, end_sibling
from splitnet.parallel.collective import LostRankError

BEAT, SILENCE, GUARDIAN, COLLECTIVE, START, OTHERS, VERDICT = 1 / 30, 1 / 3, 2 / 5, 3 / 5, 3 / 5, 1 / 20, 1 / 10
"""Fractions of the timeout; see above."""
FRESH = 0.1
"""Seconds after which a place is told, beat or not: the line is to name the step, not one long before."""


class Watch:
    """Beats for this rank and listens to the others'. Enter it before process groups exist, leave it after the work.

    connect: gives a new connection to the job's store; one thread alone uses it.
    timeout: seconds from a fault until the whole job is over.

    Once a fault is known this process ends by os._exit, whatever it is doing. An exception that leaves the `with` does
    not propagate: it is this rank's failure or, if a collective raised it, the trace of another's.
    """

    def __init__(self, connect: Callable[[], Store], rank: int, world: int, timeout: float) -> None:
        self.where = "start-up"
        self._connect, self._rank, self._timeout = connect, rank, timeout
        self._every, self._silent = min(1.0, timeout * BEAT), timeout * SILENCE
        self._this, self._agent = Process.this(), os.getppid()
        self._places = self._number = 0
        self._beats: dict[int, Beat] = {}  # the newest of every rank that was heard of, this one's too
        self._silence = {other: 0.0 for other in range(world) if other != rank}  # seconds
        self._unanswered = 0.0  # seconds since the store last spoke
        self._done = False
        self._error: tuple[BaseException, float] | None = None  # a collective's, and when
        self._failure: Verdict | None = None
        self._verdict: Verdict | None = None
        self._wake, self._left, self._mouth = threading.Event(), threading.Event(), threading.Lock()

    def at(self, where: str) -> None:
        """Say where the work is: "step 7, exchange conv3". Who was at the fewest places is furthest behind."""
        self.where = where
        self._places += 1
        self._wake.set()

    def lost(self, error: BaseException) -> NoReturn:
        """A collective failed: find out who is to blame, say it once in the job, end this process."""
        self._error = (error, time.monotonic())
        self._wait_for_the_end()

    def failed(self, line: str, status: int = 1) -> NoReturn:
        """The rank cannot go on: all others end with it and with `status`; the line is said once in the job."""
        self._failure = Verdict(line, status=status)
        self._wait_for_the_end()

    def __enter__(self) -> Self:
        store = self._connect()
        store.set_timeout(timedelta(seconds=self._silent))
        script = Path(__file__).with_name("guardian.py")
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # who reads this process's output must not wait for its guardian
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # torchrun ends whole process groups
        )
        assert self._guardian.stdin is not None
        self._pipe = self._guardian.stdin.fileno()
        os.set_blocking(self._pipe, False)
        os.write(self._pipe, struct.pack("qd", os.getpid(), self._timeout * GUARDIAN))
        self._listener = threading.Thread(target=self._listen, args=(store,), daemon=True)
        self._pulse = threading.Thread(target=self._beat_on, daemon=True)
        self._listener.start()
        self._pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._broken(error)
        self._done = True
        self._wake.set()
        self._listener.join(self._silent)
        self._left.set()
        self._pulse.join()
        self._guardian.kill()
        self._guardian.communicate()

    def _broken(self, error: BaseException) -> NoReturn:
        if isinstance(error, LostRankError | DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            self.lost(error)
        self.failed(self._own_failure(error))

    def _own_failure(self, error: BaseException) -> str:
        """The line. An exception that nobody expected also shows where it came from."""
        if isinstance(error, SystemExit):
            what = f"ended with exit status {error.code or 0}"
        elif isinstance(error, KeyboardInterrupt):
            what = "was interrupted"
        else:
            traceback.print_exception(error)
            what = f"failed with {type(error).__name__}: {_first_line(error)}"
        return f"rank {self._rank} {self._this} {what}, in {self.where}"

    def _wait_for_the_end(self) -> NoReturn:
        with suppress(OSError, ValueError):  # os._exit writes nothing out
            sys.stdout.flush()
        self._wake.set()
        while True:
            with suppress(BaseException):  # whatever a signal's handler raises
                time.sleep(self._timeout)

    # The pulse: a thread that waits for nobody.

    def _beat_on(self) -> None:
        before = time.monotonic()
        while not self._left.wait(self._every):
            with suppress(OSError):
                os.write(self._pipe, b".")
            self._unanswered += self._since(before)
            before = time.monotonic()
            if self._unanswered > self._silent:
                self._end_without_store()

    def _since(self, before: float) -> float:
        """Seconds, but few after a pause: a process that was itself stopped cannot say that others were silent."""
        return min(time.monotonic() - before, 3 * self._every)

    # The listener: the thread that reads, writes and judges. It may have to wait for the store.

    def _listen(self, store: Store) -> None:
        before = time.monotonic()
        try:
            while True:
                # Before their beats are read: who leaves properly says so first, and then ends.
                ended = [r for r in self._silence if self._near(r) and not self._beats[r].process.state]
                done = self._done  # before the beat that says so
                self._say_beat(store)
                if done and (self._rank > 0 or self._is_last()):  # the store may be in rank 0's process
                    return
                self._hear(store, self._since(before))
                before = time.monotonic()
                if self._done:
                    time.sleep(self._every / 4)
                    continue
                if store.check(["verdict"]):
                    self._end(store, Verdict.read(store.get("verdict")))
                if verdict := self._judge(ended):
                    self._end(store, Verdict.read(store.compare_set("verdict", "", verdict.write())))
                if self._wake.wait(self._every):
                    time.sleep(min(FRESH, self._every / 2))
                    self._wake.clear()
        except RuntimeError:  # the store's, which is gone for good: a link that fails for a while only delays it
            time.sleep(self._every)  # a dying agent's connections close before its children are orphans
            self._end_without_store()

    def _is_last(self) -> bool:
        return all(rank in self._beats and self._beats[rank].state == "done" for rank in self._silence)

    def _near(self, rank: int) -> bool:
        return rank in self._beats and self._beats[rank].process.machine == self._this.machine

    def _say_beat(self, store: Store) -> None:
        state: State = "in"
        if self._verdict:
            state = "ending"
        elif self._done:
            state = "done"
        elif self._error:
            state = "lost"
        self._number += 1
        self._beats[self._rank] = beat = Beat(self._number, self._places, self.where, state, self._this)
        store.set(f"beat/{self._rank}", beat.write())

    def _hear(self, store: Store, seconds: float) -> None:
        there = [r for r in self._silence if r in self._beats or store.check([f"beat/{r}"])]
        texts = store.multi_get([f"beat/{r}" for r in there]) if there else []
        self._silence = {r: silence + seconds for r, silence in self._silence.items()}
        for r, text in zip(there, texts, strict=True):
            beat = Beat.read(text)
            if beat.state == "done" or beat != self._beats.get(r):
                self._silence[r] = 0.0
            self._beats[r] = beat
        self._unanswered = 0.0

    # What is wrong, as far as this rank can tell.

    def _judge(self, ended: list[int]) -> Verdict | None:
        """Of several who were lost, the first was silent longest."""
        if self._failure:
            return self._failure
        if killed := [r for r in ended if self._beats[r].state in ("in", "lost")]:
            return self._blame(max(killed, key=self._silence.__getitem__), "was killed, last seen in")
        limits = {r: self._silent if r in self._beats else self._timeout * START for r in self._silence}
        if silent := [r for r, silence in self._silence.items() if silence > limits[r]]:
            return self._blame_silent(max(silent, key=self._silence.__getitem__))
        if self._orphaned():
            return Verdict(self._agent_gone())
        return self._judge_error(*self._error) if self._error else None

    def _blame(self, rank: int, what: str) -> Verdict:
        return blame(rank, self._beats[rank], what)

    def _blame_silent(self, rank: int) -> Verdict:
        if rank not in self._beats:
            return Verdict(
                f"rank {rank} has not started: nothing was heard of it for {self._silence[rank]:.0f} s", rank
            )
        what = "was killed, stopped or cut off"
        if self._near(rank):
            what = "was stopped" if self._beats[rank].process.stopped else "does not respond"
        return self._blame(rank, f"{what}, silent for {self._silence[rank]:.0f} s, last seen in")

    def _judge_error(self, error: BaseException, when: float) -> Verdict | None:
        """A collective failed, though every process beats."""
        since = time.monotonic() - when
        if "timed out" not in str(error).lower() and "timeout" not in str(error).lower():
            # Who broke the connection will be missed, or is about to say why.
            if left := [r for r, beat in self._beats.items() if beat.state == "done"]:
                return self._blame(left[0], f"has left, but rank {self._rank} waits for it in {self.where}; it was in")
            return None if since < self._silent + 2 * self._every else Verdict(self._own_failure(error))
        if since < self._timeout * OTHERS:
            return None
        if absent := [r for r in self._silence if r not in self._beats]:
            return self._blame_silent(absent[0])
        return blame_who_hangs(self._beats)

    def _agent_gone(self) -> str:
        return f"torchrun (pid {self._agent} on {self._this.host}) was killed: its ranks end with it"

    # The end.

    def _end(self, store: Store, verdict: Verdict) -> NoReturn:
        """Leave once the line is said and all who live have heard: the store may end with the first that leaves."""
        self._verdict = verdict
        began = time.monotonic()
        while True:
            self._say_beat(store)
            self._hear(store, 0.0)
            waited = (time.monotonic() - began) / (self._timeout * VERDICT)
            if not store.check(["said"]) and (self._is_lowest() or waited > 0.5) and store.add("said", 1) == 1:
                self._say(verdict.line)
            heard = all(self._beats[r].state == "ending" for r in self._living())
            if (heard and store.check(["said"])) or waited > 1:
                if verdict.blamed in self._silence and verdict.blamed not in self._beats:  # it has no guardian yet
                    end_sibling(verdict.blamed)
                os._exit(verdict.status)
            time.sleep(self._every / 4)

    def _living(self) -> list[int]:
        """Others who can hear of a verdict."""
        there = [r for r in self._silence if r in self._beats and self._beats[r].state != "done"]
        loud = [r for r in there if self._silence[r] < self._silent]
        return [r for r in loud if not self._near(r) or self._beats[r].process.awake]

    def _is_lowest(self) -> bool:
        """The lowest living rank speaks; whom the line blames only if nobody else does."""
        blamed = self._verdict.blamed if self._verdict else None
        return self._rank != blamed and all(self._rank < r for r in self._living() if r != blamed)

    def _end_without_store(self) -> None:
        """The store is lost, and with it all agreement: the lowest living rank on this machine speaks for it."""
        if self._done:
            return
        near = [r for r in self._silence if self._near(r)]
        lower = [r for r in near if r < self._rank and self._beats[r].process.awake]
        if self._verdict is None and (self._failure or not lower):
            self._say(self._failure.line if self._failure else self._store_lost())
            until = time.monotonic() + self._timeout * VERDICT
            # The others on this machine are silent because this rank lives; let them see that it does.
            while time.monotonic() < until and any(self._beats[r].process.awake for r in near):
                time.sleep(self._every / 4)
        elif self._verdict and self._is_lowest():
            self._say(self._verdict.line)
        os._exit(1)

    def _store_lost(self) -> str:
        if self._orphaned():
            return self._agent_gone()
        if killed := [r for r in self._silence if self._near(r) and not self._beats[r].process.state]:
            return self._blame(killed[0], "was killed, last seen in").line
        if self._rank == 0 or self._near(0):
            return f"torchrun (pid {self._agent} on {self._this.host}) does not answer"
        first = f" ({self._beats[0].process.host})" if 0 in self._beats else ""
        lost = f"rank {self._rank} {self._this} has lost the host of rank 0{first}"
        return f"{lost}: it is down, or the network is cut; in {self.where}"

    def _orphaned(self) -> bool:
        """Whether torchrun's agent has ended; what else starts ranks may end before them."""
        return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self._agent

    def _say(self, line: str) -> None:
        if self._mouth.acquire(blocking=False):  # once
            with suppress(OSError):
                os.write(2, f"splitnet: error: {line}\n".encode())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
