"""Images small enough to stand inside a JSON file or a page: as data URIs, PNG or JPEG, whichever is shorter."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from splitnet.measure import scalars

WIDEST, MOST = 800, 8
"""Pixels that a picture of filters is enlarged to, or a little less, and how many times at most."""


def thumbnail(image: Tensor, side: int) -> str:
    """uint8 (C, H, W) in at most `side` pixels each way; a smaller one is enlarged by a whole factor.

    Grey where there are neither three channels nor one: the first.
    """
    pixels = image.numpy()
    drawn = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    longest = max(drawn.size)
    if longest > side:
        drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
    else:
        drawn = _enlarged(drawn, side // longest)
    return _uri(drawn, "PNG", "JPEG")


def filters(weights: Sequence[Tensor]) -> list[dict[str, Any]]:
    """A picture for each tower's filters (F, C, k, k), all to one scale, 16 a row; gaps let the ground through.

    "image", and its "width" and "height" in pixels.
    """
    found = []
    pictures = scalars.pictures({f"tower {tower}": weight for tower, weight in enumerate(weights)})
    for weight, picture in zip(weights, pictures.values(), strict=True):
        count, side = len(weight), weight.shape[-1] + 1
        colours = (picture.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        y, x = np.indices(colours.shape[:2])
        place = (y // side) * min(count, scalars.A_ROW) + x // side
        inside = (y % side > 0) & (x % side > 0) & (place < count)
        drawn = Image.fromarray(np.dstack([colours, np.where(inside, 255, 0).astype(np.uint8)]))
        drawn = _enlarged(drawn, max(1, min(MOST, WIDEST // drawn.width)))
        found.append({"image": _uri(drawn, "PNG"), "width": drawn.width, "height": drawn.height})
    return found


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _uri(image: Image.Image, *kinds: str) -> str:
    files = []
    for kind in kinds:
        file = BytesIO()
        image.save(file, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
        files.append((len(file.getvalue()), kind, file.getvalue()))
    _, kind, content = min(files)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
