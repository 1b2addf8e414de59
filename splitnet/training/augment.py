"""What images are for the network, as in 2012: crops, flips, colour noise, minus the mean image, ten views of a test.

Chance is a hash of (seed, epoch, image), so it is the same on every device, in every layout, and in a training that
goes on. What it says of a batch is small and made on the CPU; pixels are worked on where the images are.

Source: convdata_jpeg.py of github.com/computerhistory/AlexNet-Source-Code (2f8b81f), and sections 4 and 5 of
Krizhevsky, Sutskever and Hinton, NIPS 2012. Shapes: images are uint8 (B, C, H, W); pixels are in 0..255 where nothing
else is said.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import log, pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from splitnet import keyed
from splitnet.errors import UsageError
from splitnet.training.data import to_network
from splitnet.training.folder import read_side
from splitnet.training.splits import Batch, Crop, Drawn

Crops = Literal["none", "images", "chunks"]
"""none: the centre. images: each image at a place of its own. chunks: one place for CHUNK images."""

CHUNK = 32
"""Images that follow each other in an epoch's order and share a place and a flip (convdata_jpeg.py:77, 238)."""

AT_ONCE = 8
"""Images that are cut together: 5 MB of 224×224 in float32, which a CPU's cache holds."""

_TOP, _LEFT, _MIRRORED, _COLOUR = range(0xA106, 0xA10A)  # what a hash is for


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of colours in 0..255: standard deviations along unit vectors, each of R, G, B."""

    deviations: tuple[float, ...]
    vectors: tuple[tuple[float, ...], ...]


CUDA_CONVNET2 = Components(
    (19.7208, 37.0939, 121.7801),
    ((0.41796, -0.81698, 0.39731), (-0.71258, -0.02354, 0.70120), (-0.56351, -0.57618, -0.59200)),
)
"""Of ImageNet, as make-data/input_meta of github.com/akrizhevsky/cuda-convnet2 (3238bf0) has them; those of 2012 were
not published."""


@dataclass(frozen=True, slots=True)
class Noise:
    """One colour for all pixels of an image, new in each epoch: the sum of components, each by a normal number."""

    components: Components
    share: float = 0.1
    """Of a component's standard deviation. (The paper says "eigenvalue"; the code of 2012 has its square root.)"""
    shrinks: bool = False
    """Pixels are divided by 1 + share after it, as in the code of 2012; the paper does not say so."""
    until: int | None = None
    """So many epochs have it, and pixels of later ones are not divided either; None: all."""

    def shifts(self, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """By what the colours of these images move, float32 (B, 3): share · Σ aᵢ sᵢ pᵢ, each a from N(0, 1)."""
        shifts = torch.zeros(len(indices), 3, dtype=torch.float64)
        for number, (deviation, vector) in enumerate(
            zip(self.components.deviations, self.components.vectors, strict=True)
        ):
            along = torch.tensor(vector, dtype=torch.float64) * (self.share * deviation)
            shifts += _normal(indices, number, seed, epoch)[:, None] * along
        return shifts.float()


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """What a network sees of images: by itself the centre, in 0..1, as `to_network` gives it."""

    mean: Tensor | None = None
    """The mean image, float32 (C, H, W) of the images' own size. Its centre is subtracted from the pixels, in 0..255,
    whatever their offset; None: pixels are in 0..1."""
    crops: Crops = "none"
    """Of training images."""
    flips: bool = False
    """Half of the training images are mirrored."""
    noise: Noise | None = None
    """Of training images."""
    views: int = 1
    """Of a test image: the centre, or 10: four corners and the centre, then these mirrored, with averaged
    probabilities."""
    means: Sequence[Tensor] | None = None
    """The mean image's centre on the device of each tower, where it was copied ahead."""
    measured: int = 0
    """Images that mean and components are of."""

    def check(self, channels: int) -> None:
        """UsageError if images of so many channels cannot be seen so."""
        if self.noise is not None and channels != 3:
            raise UsageError(f"--color-noise {self.noise.share:g}: images of {channels} channels have no colours")
        if self.mean is not None and len(self.mean) != channels:
            raise UsageError(f"--pixels minus-mean: the mean image has {len(self.mean)} channels, images {channels}")

    @property
    def digest(self) -> str:
        """Of the mean image and the colours' components, which files bring; "" without either."""
        if self.mean is None and self.noise is None:
            return ""
        mean = b"" if self.mean is None else self.mean.contiguous().numpy().tobytes()
        components = "" if self.noise is None else str(self.noise.components)
        return hashlib.sha256(mean + components.encode()).hexdigest()[:12]

    def at(self, replicate: Callable[[Tensor], Sequence[Tensor]], size: int) -> "View":
        """The same, with the mean image's centre copied to each tower's device by `replicate`."""
        mean = None if self.means is not None else self._mean(size)
        return self if mean is None else replace(self, means=replicate(mean))

    def draw(self, batch: Batch, size: int, seed: int, epoch: int, batch_size: int) -> Drawn | None:
        """What a training on (size, size) makes of a batch; None if that is the same for all images: the centre.

        `batch_size` is of the global batch: a chunk is counted along the epoch's order, wherever a batch ends.
        """
        noise = None if self.noise is None or _over(self.noise, epoch) else self.noise
        if self.crops == "none" and not self.flips and noise is None:
            return None
        indices = F.pad(batch.indices, (0, batch.padding))  # padding counts for nothing: any crop will do
        places = indices
        if self.crops == "chunks":
            first = batch.number * batch_size + batch.first
            places = torch.arange(first, first + len(indices)) // CHUNK
        below, right = self._margins(batch.images, size)
        key, cropped = (seed, epoch), self.crops != "none"
        tops = _up_to(below, places, _TOP, *key) if cropped else torch.full_like(places, below // 2)
        lefts = _up_to(right, places, _LEFT, *key) if cropped else torch.full_like(places, right // 2)
        mirrored = _up_to(int(self.flips), places, _MIRRORED, *key)
        crops = _runs([*zip(tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True)])
        if noise is None:
            return Drawn(crops)
        shifts = noise.shifts(seed, epoch, indices) / (255 if self.mean is None else 1)
        return Drawn(crops, shifts, 1 + noise.share if noise.shrinks else 1.0)

    def tests(self, images: Tensor, size: int) -> tuple[Drawn | None, ...]:
        """What a test sees of images, view by view; None: what `draw` means by it."""
        if self.views == 1:
            return (None,)
        below, right = self._margins(images, size)
        corners = [(0, 0), (0, right), (below, 0), (below, right), (below // 2, right // 2)]
        return tuple(Drawn((Crop(len(images), *at, mirrored),)) for mirrored in (False, True) for at in corners)

    def centre(self, images: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The one view of a test, (B, C, size, size), on the device of the images."""
        mean = self._mean(size)
        return self.pixels(images, size, dtype, mean=None if mean is None else mean.to(images.device))

    def pixels(
        self,
        images: Tensor,
        size: int,
        dtype: torch.dtype,
        drawn: Drawn | None = None,
        mean: Tensor | None = None,
        shifts: Tensor | None = None,
    ) -> Tensor:
        """What the network reads, (B, C, size, size), of uint8 images on their device.

        `mean` and `shifts`: this view's, where the images are. Images smaller than `read_side` are stretched to it
        first, or to `size` itself if there is nothing to cut.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"a view is of uint8 images, not {images.dtype}")
        if drawn is None and self.mean is None and not self._cuts:
            return to_network(images, size, dtype)
        if self.mean is not None and images.shape[1:] != self.mean.shape:
            shapes = ["×".join(map(str, shape)) for shape in (self.mean.shape, images.shape[1:])]
            raise UsageError(f"--pixels minus-mean: the mean image is {shapes[0]}, images are {shapes[1]}")
        exact = torch.promote_types(dtype, torch.float32)  # half precision is rounded to once, at the end
        drawn = drawn or self._centre(images, size)
        whole = images.new_empty((*images.shape[:2], size, size), dtype=exact)
        none: list[Tensor | None] = [None] * len(drawn.crops)
        moved = none if shifts is None else shifts[:, :, None, None].split(_counts(drawn))
        for cut, shift in zip(self._cut(images, whole, drawn), moved, strict=True):
            if mean is None:
                cut.div_(255)
            else:
                cut.sub_(mean)
            if shift is not None:
                cut.add_(shift)
            if drawn.divisor != 1:
                cut.div_(drawn.divisor)
        return whole.to(dtype)

    @property
    def _cuts(self) -> bool:
        """Whether images are read with a margin to cut from."""
        return self.crops != "none" or self.views > 1

    def _side(self, images: Tensor, size: int) -> int | None:
        """What images are stretched to; None: they are large enough."""
        side = read_side(size) if self._cuts else size
        return None if min(images.shape[-2:]) >= side else side

    def _margins(self, images: Tensor, size: int) -> tuple[int, int]:
        """How far a crop can move, down and to the right."""
        side = self._side(images, size)
        height, width = images.shape[-2:] if side is None else (side, side)
        return height - size, width - size

    def _centre(self, images: Tensor, size: int) -> Drawn:
        below, right = self._margins(images, size)
        return Drawn((Crop(len(images), below // 2, right // 2),))

    def _cut(self, images: Tensor, whole: Tensor, drawn: Drawn) -> Iterator[Tensor]:
        """Each crop once it is in its place in `whole`, (B, C, size, size): to be worked on while a cache has it."""
        size, counts = whole.shape[-1], _counts(drawn)
        side = self._side(images, size)
        if side is not None:
            images = F.interpolate(images.to(whole.dtype), (side, side), mode="bilinear", align_corners=False)
        for crop, part, cut in zip(drawn.crops, images.split(counts), whole.split(counts), strict=True):
            part = part.narrow(2, crop.top, size).narrow(3, crop.left, size)
            yield cut.copy_(part.flip(-1) if crop.mirrored else part)

    def _mean(self, size: int) -> Tensor | None:
        """What is subtracted: of the mean image, what a test sees of an image. (C, size, size)."""
        if self.mean is None:
            return None
        mean = self.mean[None]
        [cut] = self._cut(mean, mean.new_empty(1, len(self.mean), size, size), self._centre(mean, size))
        return cut[0]


PLAIN = View()


def average(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of probabilities, (B, classes), from each view's logits; one view's are left alone."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - log(len(logits))


def credit(scores: Tensor, labels: Tensor, most: int) -> Tensor:
    """How many of B images have their class among the `most` greatest scores, (B, classes): a number, ().

    Where the last of them is one of several equal scores, an image counts for the chance that it is among them, as in
    layer_kernels.cu:96-119 of 2012: a network that says the same of all classes is not right.
    """
    own = scores.gather(1, labels[:, None])
    greater, equal = (scores > own).sum(1), (scores == own).sum(1)
    return ((most - greater) / equal).clamp(0, 1).sum()


def _over(noise: Noise, epoch: int) -> bool:
    return noise.until is not None and epoch >= noise.until


def _runs(cuts: Sequence[tuple[int, int, int]]) -> tuple[Crop, ...]:
    """(top, left, mirrored) of each image, taken together where neighbours have the same, but AT_ONCE at most."""
    crops = list[Crop]()
    for (top, left, mirrored), run in groupby(cuts):
        whole, rest = divmod(len(list(run)), AT_ONCE)
        crops += [Crop(count, top, left, bool(mirrored)) for count in [AT_ONCE] * whole + [rest] * (rest > 0)]
    return tuple(crops)


def _counts(drawn: Drawn) -> list[int]:
    return [crop.count for crop in drawn.crops]


def _hashes(places: Tensor, *key: int) -> Tensor:
    return keyed.mix(keyed.mix(places) ^ keyed.key(*key))


def _up_to(most: int, places: Tensor, *key: int) -> Tensor:
    """Integers from 0 to `most`, inclusive, int64 (B,), all equally likely."""
    return _hashes(places, *key) * (most + 1) // keyed.RANGE


def _normal(places: Tensor, number: int, seed: int, epoch: int) -> Tensor:
    """From N(0, 1), float64 (B,), by Box and Muller: the radius and the angle of a point."""
    near, around = (_hashes(places, _COLOUR, number, part, seed, epoch).double() / keyed.RANGE for part in range(2))
    radius = (-2 * (near + 1 / keyed.RANGE).log()).sqrt()  # of (0, 1], so that there is a logarithm
    return radius * (2 * pi * around).cos()
