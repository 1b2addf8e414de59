"""Looking at what a network has learned: filters, predictions, nearest images, and how far its towers specialise.

The last is followed over training, the others are looked at when it ends. All of it is computed from a whole
state on the plain CPU, in float32, by a network of its own: no device of the run, no ledger and no process-wide setting
is touched. Which images are looked at depends on nothing but how many there are.

Shapes: B images, C channels, S the side that the network reads, n units or features.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.measure import learned, thumbnails
from splitnet.measure.records import RunFolder, read_learned
from splitnet.network.activations import handed_over, passes, whole
from splitnet.network.architecture import Architecture
from splitnet.network.towers import Tower
from splitnet.training.data import Batch, Dataset, Split, batches, order, to_network

Pixels = Callable[[Tensor], Tensor]
"""uint8 images (B, C, H, W) to what the network reads, (B, C, S, S)."""
State = Mapping[str, Tensor]
Found = dict[str, Any]

TESTED = 256
"""Test images that towers are compared on."""
TRAINING = 1000
"""Training images among which the nearest are looked for."""
BATCH = 32
PREDICTIONS, TOP = 8, 5
"""Test images whose predictions are shown, as by shownet.py of 2012, and the classes told of each."""
QUERIES, NEAREST = 5, 6
"""Test images shown beside the nearest training images, and how many of these: as in the paper's figure 4."""
SIDE, SMALL_SIDE = 96, 64
"""Pixels of an image's picture, alone and beside others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Specialisation:
    """How far towers have become different: a figure for each tower in order, and what they have in common."""

    images: int
    accuracy: float
    """Of the whole network, on these images."""
    silenced: tuple[float, ...]
    """And without tower 0, 1, …: all that it makes is 0. Empty for one tower."""
    orientation: tuple[float, ...]
    """Orientation energy of each tower's filters in the first row."""
    colour: tuple[float, ...] | None
    """Their colour energy; None where the images have no colour."""
    similarity: dict[str, float]
    """Row in front of a crossing -> linear CKA of two towers' features of these images, a map's flattened; the mean
    over pairs of more than two towers. Without rows where a tower's features do not vary. Empty for one tower."""


def specialisation(
    architecture: Architecture, state: State, images: Tensor, labels: Tensor, pixels: Pixels
) -> Specialisation:
    """Of a whole state on the CPU, on uint8 images (B, C, H, W) and labels (B,)."""
    net, towers = whole(architecture, state), architecture.towers
    features: dict[str, list[Tensor]] = {name: [] for name in handed_over(architecture)}
    right = torch.zeros(1 + towers if towers > 1 else 1, dtype=torch.int64)
    for part, named in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        for row, x in passes(architecture, net, pixels(part), silence=towers > 1):
            if row.name in features:
                features[row.name].append(x[0].flatten(1))
        right += (x.argmax(2) == named).sum(1)
    accuracy, *silenced = (right.double() / len(labels)).tolist()
    found = {name: _similarity(torch.cat(parts), towers) for name, parts in features.items()}
    filters = first_filters(architecture, state)
    coloured = images.shape[1] == 3 and not torch.equal(images, images[:, :1].expand_as(images))
    return Specialisation(
        images=len(labels),
        accuracy=accuracy,
        silenced=tuple(silenced),
        orientation=tuple(map(learned.orientation_energy, filters)),
        colour=tuple(map(learned.colour_energy, filters)) if coloured else None,
        similarity={name: value for name, value in found.items() if value is not None and isfinite(value)},
    )


def _similarity(features: Tensor, towers: int) -> float | None:
    """Of (B, n), tower 0's part first: the mean over pairs of towers."""
    pairs = [learned.similarity(one, other) for one, other in combinations(features.chunk(towers, dim=1), 2)]
    known = [value for value in pairs if value is not None]
    return sum(known) / len(known) if len(known) == len(pairs) else None


def first_filters(architecture: Architecture, state: State) -> tuple[Tensor, ...]:
    """The first row's weights, tower by tower."""
    return state[f"{architecture.layers[0].name}.weight"].chunk(architecture.towers)


def not_shown(found: Specialisation, architecture: Architecture) -> dict[str, str]:
    """What the data or the network cannot show -> why."""
    missing = {}
    if found.colour is None:
        grey = architecture.channels in (1, 3)
        missing["colour energy"] = "grey images" if grey else f"images of {architecture.channels} channels"
    if architecture.towers == 1:
        missing["similarity of towers, accuracy without one"] = "one tower, so there is nothing to compare"
    return missing


def seen(architecture: Architecture, net: Tower, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The last hidden row (B, n), all towers', and logits (B, classes)."""
    (_, hidden), (_, logits) = deque(passes(architecture, net, pixels), maxlen=2)
    return hidden[0].flatten(1), logits[0]


class Look:
    """What was learned in a run, in `learned.json` of its folder. Without a folder nothing is looked at."""

    def __init__(
        self,
        architecture: Architecture,
        dataset: Dataset,
        folder: RunFolder | None,
        pixels: Pixels | None = None,
        *,
        tested: int = TESTED,
        training: int = TRAINING,
    ) -> None:
        """`pixels`: what the network reads in a test; None: `to_network`. A run that goes on keeps its records."""
        self.architecture, self.dataset, self.folder = architecture, dataset, folder
        self.tested, self.training = tested, training
        self.pixels = pixels or partial(to_network, size=architecture.size)
        self.content: Found = {"records": []}
        if folder is not None:
            with suppress(UsageError):
                self.content = read_learned(folder.path)
        row = architecture.layers[0].name
        self.content |= {"towers": architecture.towers, "row": row, "classes": architecture.classes}

    def follow(self, state: State, step: int, epoch: int) -> None:
        """Record how far the towers specialise after `step` updates; what is there of later ones goes.

        `state` is the whole network's, on the CPU; an empty one, where it was not received, does nothing. If the disk
        is full, the record is written with the next.
        """
        if self.folder is None or not state:
            return
        self.content["records"] = [record for record in self.content["records"] if record["step"] < step]
        if (end := self.content.get("end")) and end["step"] > step:
            del self.content["end"]
        tested = _joined(self._read(self.dataset.test, self.tested))
        if tested is None:
            return
        found = specialisation(self.architecture, state, tested.images, tested.labels, self.pixels)
        self.content["records"].append({"step": step, "epoch": epoch} | asdict(found))
        self.content["not_shown"] = not_shown(found, self.architecture)
        with suppress(OSError):
            self.folder.write("learned", self.content)

    def finish(self, state: State, step: int, epoch: int) -> None:
        """Add filters, predictions and nearest images after `step` updates. OSError if there is no room for them."""
        if self.folder is None or not state:
            return
        net = whole(self.architecture, state)
        end: Found = {"step": step, "epoch": epoch}
        end["filters"] = thumbnails.filters(first_filters(self.architecture, state))
        tested = _joined(self._read(self.dataset.test, PREDICTIONS))
        if tested is not None:
            hidden, logits = seen(self.architecture, net, self.pixels(tested.images))
            found = learned.predictions(logits, tested.labels, self.dataset.classes, TOP)
            drawn = self._drawn(tested, SIDE)
            end["predictions"] = [image | told for image, told in zip(drawn, found, strict=True)]
            end["nearest"] = self._nearest(net, hidden[:QUERIES], self._drawn(tested, SMALL_SIDE)[:QUERIES])
        self.content["end"] = end
        self.folder.write("learned", self.content)

    def _nearest(self, net: Tower, queries: Tensor, drawn: Sequence[Found]) -> Found:
        """The training images nearest to each query (Q, n), by the last hidden row. `drawn`: the queries' pictures."""
        features, places = [torch.empty(0, queries.shape[1])], [torch.empty(0, dtype=torch.int64)]
        for batch in self._read(self.dataset.train, self.training):
            features.append(seen(self.architecture, net, self.pixels(batch.images))[0])
            places.append(batch.indices)
        among = torch.cat(places)
        near, distances = learned.nearest(queries, torch.cat(features), NEAREST)
        pictures = {one["place"]: one for one in self._drawn(self.dataset.train.read(among[near].unique()), SMALL_SIDE)}
        found = []
        for query, line, apart in zip(drawn, among[near].tolist(), distances.tolist(), strict=True):
            beside = zip(line, apart, strict=True)
            images = [pictures[place] | {"distance": far} for place, far in beside if place in pictures]
            found.append(query | {"images": images})
        return {"row": self.architecture.layers[-2].name, "among": len(among), "queries": found}

    def _read(self, split: Split, count: int) -> Iterator[Batch]:
        """So many images, the same each time, from all over the split; those that cannot be read are left out."""
        return batches(split, min(BATCH, count), order(len(split), seed=0, epoch=0)[:count])

    def _drawn(self, batch: Batch, side: int) -> list[Found]:
        """Place, class and picture of each image."""
        classes = self.dataset.classes
        each = zip(batch.indices.tolist(), batch.labels.tolist(), batch.images, strict=True)
        return [
            {"place": place, "label": label, "name": classes[label], "image": thumbnails.thumbnail(image, side)}
            for place, label, image in each
        ]


def _joined(read: Iterator[Batch]) -> Batch | None:
    """All in one; None if there is none."""
    found = list(read)
    images, labels, indices = ([getattr(batch, part) for batch in found] for part in ("images", "labels", "indices"))
    return Batch(torch.cat(images), torch.cat(labels), torch.cat(indices)) if found else None
