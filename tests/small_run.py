"""`splitnet.run` on networks an eighth as wide, on images of 96 pixels: for tests of whole runs.

SLOW=8 in the environment: what the first process measures alone takes so many seconds longer to begin;
SLOW_PAGES=40: so do pages.
"""

import os
import sys
import time

from layouts import small

from splitnet import comparison, job, reporting, run
from splitnet.options import guarded


def scaled(name, towers=1, crosses=None):
    return small(name, towers, crosses)


def slowly(warm_up):
    def slow(self):
        if type(self) is comparison.Contender and self.name == "whole":
            time.sleep(float(os.environ["SLOW"]))
        warm_up(self)

    return slow


def late(write_pages):
    def slow(folder):
        time.sleep(float(os.environ["SLOW_PAGES"]))
        return write_pages(folder)

    return slow


if __name__ == "__main__":
    job.preset = scaled
    if "SLOW" in os.environ:
        comparison.Contender._warm_up = slowly(comparison.Contender._warm_up)
    if "SLOW_PAGES" in os.environ:
        reporting.pages.write_pages = late(reporting.pages.write_pages)
    guarded(lambda: run.main(sys.argv[1:]))
