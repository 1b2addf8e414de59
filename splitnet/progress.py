"""A training on a terminal while it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from splitnet.training.loop import Step


@contextmanager
def progress_bar(console: Console, total: int, done: int = 0) -> Iterator[Any]:
    """Yields what shows one step's record; `done` were made before."""
    text = "loss {task.fields[loss]} · accuracy {task.fields[accuracy]} · {task.fields[speed]} images/s"
    columns: list[ProgressColumn] = [TextColumn("step"), MofNCompleteColumn(), TextColumn(text)]
    if console.width >= 80:  # a line that is drawn again must fit the terminal, or each drawing stays
        columns[2:2] = [BarColumn(20)]
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=done, loss="-", accuracy="-", speed="-")

        def show(step: Step) -> None:
            speed = step.images / step.seconds
            progress.update(
                task, advance=1, loss=f"{step.loss:.4f}", accuracy=f"{step.accuracy:.3f}", speed=f"{speed:.1f}"
            )

        yield show
