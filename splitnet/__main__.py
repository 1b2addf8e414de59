"""The commands: `python -m splitnet` lists them."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

COMMANDS = {
    "run": "train the towers on their devices, test, and measure them beside one device",
    "verify": "prove that the towers equal the whole network on one device",
    "doctor": "test devices and the links between them bit for bit, both ways",
    "report": "make a run's pages again, or compare two runs",
    "predict": "cost on paper: memory, bytes, step time on given GPUs and links",
    "prepare": "mean image and colour components of an image folder",
    "convert": "weights of other programs in, safetensors or ONNX out, verified",
    "view": "open a run's timeline in Perfetto, or the run in TensorBoard",
}


def main() -> int:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("command", no_wrap=True)
    table.add_column("does")
    for name, text in COMMANDS.items():
        table.add_row(f"python -m splitnet.{name}", text)
    console = Console(width=None if sys.stdout.isatty() else 80)
    console.print(table)
    console.print("Each explains its options with --help.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
