"""What was learned, in numbers: of filters, and of what towers and the network make of the same images.

Pure functions of tensors, computed in float64; shares and similarities have no unit. Filters are the first row's
weights (F, C, k, k); features are (n, p), one line for each of n images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FEWEST = 4
"""Images that the unbiased estimate of a similarity needs."""


def colour_energy(filters: Tensor) -> float:
    """The share of the energy of filters (F, 3, k, k) that is colour.

    sum (w - m)^2 / sum w^2, where m is the mean of w over red, green and blue: 0 for filters that see no colour, 1 for
    those that see nothing else. Independent weights, as before training, have 2/3. 0 for filters that are 0.
    """
    weights = filters.double()
    colour = weights - weights.mean(dim=1, keepdim=True)
    return _share(colour.square().sum(), weights.square().sum())


def orientation_energy(filters: Tensor) -> float:
    """The share of the filters' energy that is stripes of one direction, each filter by its own.

    With P(u, v), the power spectrum of a filter summed over its channels, and t the angle of the frequency (u, v):
    the sum over filters of |sum P exp(2 i t)| over the frequencies but 0, divided by the sum of all P. It is the mean
    resultant length of doubled angles (Mardia and Jupp, Directional Statistics, 2000), weighted by power: 1 for
    gratings, less where stripes end inside the filter or at its border between two periods, 0 for filters of one value,
    round blobs, and two gratings that cross at a right angle; the same for filters turned by 90 degrees. Independent
    weights, as before training, have about 0.12 at 11 x 11, 0.06 with three channels: so few frequencies do not quite
    balance. 0 for filters that are 0.
    """
    power = torch.fft.fft2(filters.double()).abs().square().sum(dim=1)  # (F, k, k)
    side = power.shape[-1]
    frequencies = torch.fft.fftfreq(side, dtype=torch.float64) * side
    directions = torch.complex(frequencies[None, :].expand(side, -1), frequencies[:, None].expand(-1, side))
    doubled = directions.square() / directions.abs().square().clamp(min=1)  # 0 at frequency 0
    if side % 2 == 0:
        doubled[side // 2, side // 2] = 0  # a checkerboard: both diagonals at once
    return _share((power * doubled).sum(dim=(1, 2)).abs().sum(), power.sum())


def similarity(features: Tensor, others: Tensor) -> float | None:
    """Linear CKA of two sets of features (n, p) and (n, q) of the same images.

    1 if they are alike but for a rotation and a scale, 0 if one tells nothing of the other:
    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X' and L = Y Y' (Kornblith, Norouzi, Lee, Hinton 2019, arXiv
    1905.00414, section 3), by the estimate of HSIC that has no bias (Song et al. 2012, JMLR 13, equation 5; Nguyen,
    Raghu, Kornblith 2021, arXiv 2010.15327): the plain one approaches 1 for any features that are more than the
    images, as a tower's are. So it can be a little below 0. None for fewer than 4 images, and where one set does not
    vary, or not measurably.
    """
    if len(features) < FEWEST:
        return None
    grams = [_gram(x) for x in (features, others)]
    own = [_hsic(gram, gram) for gram in grams]
    if min(own) <= 0:
        return None
    return _hsic(*grams) / (own[0] ** 0.5 * own[1] ** 0.5)


def nearest(queries: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places among features (n, p) of those nearest to each query (Q, p), and their squared L2 distances: (Q, count).

    As findsimilar.py of 2012 compares images. Of equally near ones the first comes first.
    """
    distances = torch.stack([(features.double() - query.double()).square().sum(dim=1) for query in queries])
    found, places = distances.sort(dim=1, stable=True)
    return places[:, :count], found[:, :count]


def predictions(logits: Tensor, labels: Tensor, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """For each line of logits (n, classes): the true class, its probability and rank (1: predicted), and the likeliest.

    Of equally likely ones the first comes first.
    """
    found = []
    for line, label in zip(logits.double().softmax(dim=1), labels.tolist(), strict=True):
        likely = line.argsort(descending=True, stable=True).tolist()
        classed = [{"label": i, "name": classes[i], "probability": float(line[i])} for i in (label, *likely[:top])]
        found.append(classed[0] | {"rank": 1 + likely.index(label), "top": classed[1:]})
    return found


def _gram(features: Tensor) -> Tensor:
    """Inner products (n, n) of centred features; 0 on the diagonal."""
    x = features.double()
    x = x - x.mean(dim=0)
    return (x @ x.T).fill_diagonal_(0)


def _hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741 the source's names
    """Of two Gram matrices without diagonal; unbiased."""
    n = len(k)
    one, other = k.sum(dim=0), l.sum(dim=0)
    sums = (k * l).sum() + one.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ other)
    return float(sums / (n * (n - 3)))


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0
