"""A canvas of pixels, for TensorBoard, which has no SVG."""

import base64
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Pixels to a unit of the layout."""
GROUND, INKS = "#ffffff", {"": "#24292f", "soft": "#57606a"}
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


class Raster:
    """Draws as `learned_pictures.Picture` does, on a light ground. Its font knows Latin letters."""

    def __init__(self, title: str, text: str, width: float, height: float) -> None:
        self._image = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), GROUND)
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(13 * SCALE)

    def rect(self, x: float, y: float, width: float, height: float, colour: str, title: str = "") -> None:
        box = (x, y, x + max(width, 0.5), y + height)
        self._draw.rectangle([round(end * SCALE) for end in box], fill=colour)

    def word(self, x: float, y: float, text: str, anchor: str = "start", look: str = "") -> None:
        self._draw.text((x * SCALE, y * SCALE), text, INKS[look], self._font, ANCHORS[anchor])

    def picture(self, x: float, y: float, width: float, height: float, uri: str, title: str) -> None:
        """A data URI in this box, as large as it fits with its own proportions; nothing if it is no picture."""
        try:
            with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
                drawn = image.convert("RGBA")
        except (OSError, ValueError):
            return
        factor = min(width * SCALE / drawn.width, height * SCALE / drawn.height)
        size = (max(1, round(drawn.width * factor)), max(1, round(drawn.height * factor)))
        corner = round(x * SCALE + (width * SCALE - size[0]) / 2), round(y * SCALE + (height * SCALE - size[1]) / 2)
        drawn = drawn.resize(size)
        self._image.paste(drawn, corner, drawn)

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3)."""
        return np.asarray(self._image)
