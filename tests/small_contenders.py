"""`experiments/speed.py`, or one of its contenders by name, on networks an eighth as wide: images of 96 pixels."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "experiments"))  # as for a script there

import contenders
import contest
import speed
from layouts import small

from splitnet.options import guarded


def command(name: str, settings: contenders.Settings) -> list[str]:
    """Words that start a contender."""
    python, _, *words = contenders.command(name, settings)
    return [python, __file__, *words]


if __name__ == "__main__":
    contenders.preset = small
    contest.command = command
    if sys.argv[1] in contenders.CONTENDERS:
        contenders.main()
    else:
        guarded(speed.main)
