"""A child that kills its parent when the parent's beats cease: a stopped process cannot end itself.

Run by its path and without site packages, so that it is there in milliseconds and holds next to no memory. Its standard
input is the pipe that the parent beats into; the first 16 bytes are the parent's process id, since the parent may have
ended by the time it could ask, and the limit in seconds, as a C long long and a double.
"""

import os
import select
import signal
import struct

SLICES = 10
"""Of the limit. After each it looks for its parent; a guardian that was itself stopped has missed one, not all."""


def guard(parent: int, limit: float) -> None:
    """Return when the parent has ended; kill it when nothing came from it for `limit` seconds."""
    missed = 0
    while missed < SLICES:
        ready, _, _ = select.select([0], [], [], limit / SLICES)
        if os.getppid() != parent:  # it ended, and a child of its own still holds the pipe
            return
        if ready and not os.read(0, 4096):
            return
        missed = 0 if ready else missed + 1
    os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # torchrun's and the terminal's: not meant for it
        signal.signal(ignored, signal.SIG_IGN)
    if first := os.read(0, 16):
        guard(*struct.unpack("qd", first))
