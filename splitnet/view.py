"""Open a run's timeline in Perfetto, or with --tensorboard in TensorBoard. Needs no internet; on 127.0.0.1 alone."""

import gzip
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from splitnet.errors import UsageError
from splitnet.measure import plugin_copy, timeline
from splitnet.measure.perfetto import Perfetto
from splitnet.options import check_bounds, guarded, option, parse, positional, refuse

TRACE = "trace.json.gz"
BOARD = "tensorboard"
ENDING = ".pt.trace.json.gz"
"""What TensorBoard's plugin knows a trace by."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The command line."""

    run: Path = positional("the run's folder")
    tensorboard: bool = option(False, "TensorBoard with the profiler's plugin, instead of Perfetto")
    split: bool = option(False, "with --tensorboard: one trace for each device, for the Distributed view")
    port: int = option(6006, "the port, or the next one that is free; 0 takes any")
    browser: bool = option(True, "open the page where there is a display")

    def __post_init__(self) -> None:
        check_bounds(self, {"port": (0, 65535)})
        if self.split and not self.tensorboard:
            raise UsageError("--split: only with --tensorboard")
        if not self.run.is_dir():
            raise UsageError(f"{self.run}: {'not a folder' if self.run.exists() else 'no such folder'}")


@contextmanager
def served(options: ViewOptions) -> Iterator[str]:
    """Yields the address of the page while it is served. The run's folder is only read."""
    path = options.run / TRACE
    with ExitStack() as stack:
        if not options.tensorboard:
            yield _perfetto(stack, path, timeline.read(path), options.port).url
            return
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="splitnet-view-", ignore_cleanup_errors=True))
        )
        logs(options.run, home / "logs", options.split)
        traced = path.exists()  # a run without one has scalars, filters and text
        perfetto = _perfetto(stack, path, timeline.read(path), 0).url if traced else ""
        yield _board(stack, home, options.port, perfetto) + ("#pytorch_profiler" if traced else "")


def _perfetto(stack: ExitStack, path: Path, trace: dict[str, object], port: int) -> Perfetto:
    server = Perfetto(path, trace, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server


def _board(stack: ExitStack, home: Path, port: int, perfetto: str) -> str:
    try:
        from splitnet.measure.board import Board
    except ModuleNotFoundError as error:
        raise UsageError(f"--tensorboard: {error.name} is not installed: pip install torch-tb-profiler") from error
    cache = home / "cache"
    cache.mkdir()
    board = Board(home / "logs", cache, port, perfetto)
    stack.callback(board.close)
    return board.url


def logs(run: Path, target: Path, split: bool) -> None:
    """A copy of the run's logs under the run's name; split: with a trace for each device of each process."""
    source = run / BOARD
    found = sorted(source.glob(f"*{ENDING}"))
    if not found and (split or (run / TRACE).exists() or not any(source.glob("*tfevents*"))):
        raise UsageError(f"{source}: no *{ENDING} in it")
    traces = {path.name.removesuffix(ENDING): timeline.read(path) for path in found}
    folder = target / run.resolve().name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(f"*{ENDING}") if split else None)
    if not split:
        return
    for process, trace in traces.items():
        parts = plugin_copy.split(trace) or {process: trace}  # nothing to split where no device has a lane
        for device, part in parts.items():
            name = device if len(traces) == 1 else process if len(parts) == 1 else f"{process}_{device}"
            with gzip.open(folder / f"{name}{ENDING}", "wt", encoding="utf-8") as file:
                json.dump(part, file)


def show(options: ViewOptions, url: str) -> None:
    """Say where it is, and open it where a person can see it."""
    taken = url.partition("//127.0.0.1:")[2].partition("/")[0]
    if options.port and taken != str(options.port):
        print(f"Port {options.port} is in use; this is {taken}.")
    print(url)
    print("Ctrl-C ends it.", flush=True)
    if options.browser and (sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
        webbrowser.open(url)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM. Exit status: 0, 2 for bad usage."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        options = parse(ViewOptions, "view", __doc__ or "", argv)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with served(options) as url:
            show(options, url)
            threading.Event().wait()
    except UsageError as error:
        return refuse(error)
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            print("Closed.", flush=True)
    except BrokenPipeError:  # nobody reads the address
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    guarded(main)
