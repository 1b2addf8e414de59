"""A training on a terminal while it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from splitnet.training.loop import Step

ROOM = {"loss": 13, "speed": 19, "remaining": 8, "accuracy": 17}
"""Characters that a part takes, with what parts it from the one before; the first are needed most."""


@contextmanager
def progress_bar(console: Console, total: int, done: int = 0, compiles: bool = False) -> Iterator[Any]:
    """Yields what shows one step's record; `done` were made before. `compiles`: the first step does, and takes long."""
    columns = _columns(console.width, total)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        # in the room of figures that are not there yet
        doing = " compiling" if compiles and console.width >= 60 else ""
        task = progress.add_task("", total=total, completed=done, doing=doing, loss="-", accuracy="-", speed="-")

        def show(step: Step) -> None:
            speed = step.images / step.seconds
            progress.update(
                task,
                advance=1,
                doing="",
                loss=f"{step.loss:.4f}",
                accuracy=f"{step.accuracy:.3f}",
                speed=f"{speed:.1f}",
            )

        yield show


def _columns(width: int, total: int) -> list[ProgressColumn]:
    """The count, and what else there is room for: a line that is drawn again must fit, or each drawing stays."""
    digits = len(str(total))
    room = width - len("step /") - 2 * digits
    kept = []
    for part, taken in ROOM.items():
        if room < taken:
            break
        kept.append(part)
        room -= taken
    told = {
        "loss": "loss {task.fields[loss]}",
        "accuracy": "accuracy {task.fields[accuracy]}",
        "speed": "{task.fields[speed]} images/s",
    }
    columns: list[ProgressColumn] = [
        TextColumn(f"step {{task.completed:>{digits}}}/{{task.total}}{{task.fields[doing]}}")
    ]
    if len(kept) == len(ROOM) and room > 5:
        columns.append(BarColumn(min(20, room - 1)))
    if kept:
        columns.append(TextColumn(" · ".join(text for part, text in told.items() if part in kept)))
    if "remaining" in kept:
        columns.append(TimeRemainingColumn(table_column=Column(no_wrap=True)))
    return columns
