"""A run for TensorBoard: losses and speed as scalars, conv1 of every tower as pictures, the report as text.

Also what was learned: how far the towers specialise as scalars, predictions and nearest images as pictures.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from splitnet.measure import learned_pictures
from splitnet.measure.learned_text import Learned, end, groups
from splitnet.measure.raster import Raster

A_ROW = 16
"""Filters side by side, as in the paper's figure 3."""


def write(
    folder: Path,
    records: Iterable[Mapping[str, Any]],
    filters: Mapping[str, Tensor] | None = None,
    texts: Mapping[str, str] | None = None,
    learned: Learned | None = None,
) -> None:
    """Event files in `folder`.

    `records` are those of steps.jsonl; `filters` are weights (F, C, k, k) by name, all drawn to one scale; `texts`
    are Markdown by name; `learned` is what `read_learned` returns.
    """
    from torch.utils.tensorboard import SummaryWriter  # half a second to import, for the end of a run

    step = 0
    with SummaryWriter(str(folder)) as writer:
        for record in records:
            step = max(step, record["step"] + (record["kind"] == "step"))  # updates made until then
            part = "train" if record["kind"] == "step" else "test"
            for kind in ("loss", "accuracy", *["top5"] * (record.get("top5") is not None)):
                writer.add_scalar(f"{part}/{kind}", record[kind], record["step"])
            for kind, rate in (record.get("rates") or {}).items():
                writer.add_scalar(f"learning rate/{kind}", rate, record["step"])
            if record["seconds"] > 0:
                writer.add_scalar(f"{part}/images per second", record["images"] / record["seconds"], record["step"])
        for name, picture in pictures(filters or {}).items():
            writer.add_image(name, picture, step)
        for group in groups(learned):
            for name, points in group.lines.items():
                for at, value in points:
                    writer.add_scalar(f"learned: {group.title.lower()}/{name}", value, at)
        for draw in (learned_pictures.predictions, learned_pictures.nearest):
            canvas = None if learned is None else draw(learned, Raster)
            if isinstance(canvas, Raster):
                writer.add_image(f"learned/{draw.__name__}", canvas.pixels(), end(learned)["step"], dataformats="HWC")
        for name, text in (texts or {}).items():
            writer.add_text(name, text, step)


def pictures(filters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each weight's filters as one picture (3, H, W) in 0..1, the same grey being the same weight in all of them.

    Filters of one or three channels are drawn as they are, others by their first channel.
    """
    if not filters:
        return {}
    from torchvision.utils import make_grid  # two seconds

    low, high = min(float(w.min()) for w in filters.values()), max(float(w.max()) for w in filters.values())
    found = {}
    for name, weight in filters.items():
        drawn = weight.detach().float().cpu()
        drawn = drawn if drawn.shape[1] in (1, 3) else drawn[:, :1]
        scaled = (drawn - low) / max(high - low, 1e-12)
        found[name] = make_grid(scaled, nrow=A_ROW, padding=1, pad_value=1.0)
    return found
