"""`splitnet.run` on networks an eighth as wide, on images of 96 pixels: for tests of whole runs."""

import sys

from layouts import small

from splitnet import job, run
from splitnet.options import guarded


def scaled(name, towers=1, crosses=None):
    return small(name, towers, crosses)


if __name__ == "__main__":
    job.preset = scaled
    guarded(lambda: run.main(sys.argv[1:]))
