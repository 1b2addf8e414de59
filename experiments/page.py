"""Claim: the page of a run with 20 profiled steps can be used within 2 s.

    python experiments/page.py RUN [--times 5]

Opens report.html in headless Chromium, without network, a fresh browser each time, and prints the time from asking for
it until every chart is drawn and the timeline answers keys. RUN is any run's folder with the page in it; a page shows
one step, so the number of profiled steps changes nothing but the trace that it is made from. Needs Chromium.
"""

import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median

from splitnet.errors import UsageError
from splitnet.options import check_bounds, guarded, option, parse, positional

ROOT = Path(__file__).parents[1]
READY = "document.documentElement.dataset.ready !== undefined"


@dataclass(frozen=True, kw_only=True)
class Options:
    run: Path = positional("a run's folder")
    times: int = option(5, "fresh browsers")

    def __post_init__(self) -> None:
        check_bounds(self, {"times": (1, 1000)})


def main() -> None:
    options = parse(Options, "experiments/page.py", __doc__ or "")
    page = options.run / "report.html"
    if not page.is_file():
        raise UsageError(f"{page}: no such file; python -m splitnet.report {options.run} makes it")
    sys.path.insert(0, str(ROOT / "tests"))
    browser_type = import_module("browser").Browser  # the tests' own
    seconds = []
    for _ in range(options.times):
        with browser_type() as browser:
            opened = browser.open("about:blank")
            start = time.perf_counter()
            opened.go(page.resolve().as_uri())
            opened.wait(READY, 60)
            seconds.append(time.perf_counter() - start)
    print(f"{page.stat().st_size / 1e6:.2f} MB; usable after {median(seconds):.2f} s", end=" ")
    print(f"({min(seconds):.2f}-{max(seconds):.2f}, n={len(seconds)})")


if __name__ == "__main__":
    guarded(main)
