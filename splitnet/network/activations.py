"""What every row makes of images, and what becomes of it without one tower: for looking at a network.

Shapes: B images, V variants of the network, G towers, C channels over all of them.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from splitnet.network.architecture import Architecture, Row
from splitnet.network.layers import Moment
from splitnet.network.towers import Tower
from splitnet.network.weights import chunk


def whole(architecture: Architecture, state: Mapping[str, Tensor]) -> Tower:
    """All towers in one piece on the CPU, as in a test. It may share the memory of the state.

    UsageError if the state is another network's.
    """
    with torch.device("meta"):  # no memory, and no random weights
        tower = Tower(architecture, range(architecture.towers))
    tower.load_state_dict(chunk(architecture, state, tower.indices), assign=True)
    tower.eval().requires_grad_(False)
    return tower.to(memory_format=torch.channels_last)  # the format that convolutions are fast in


def handed_over(architecture: Architecture) -> tuple[str, ...]:
    """The rows whose channels every tower reads next: those in front of a crossing."""
    return tuple(row.name for row, after in pairwise(architecture.rows()) if after.crosses)


@torch.no_grad()
def passes(
    architecture: Architecture, tower: Tower, images: Tensor, silence: bool = False
) -> Iterator[tuple[Row, Tensor]]:
    """Each row, and what it makes of pixels (B, C, S, S): (V, B, …).

    V is 1; with `silence`, 1 + G from the first crossing on: the network as it is, then without tower 0, 1, …. All that
    a silenced tower makes counts as 0, as if its weights and biases were; the home row stays. (Norms that run across
    towers still see it.)
    """
    x, variants, moment = images, 1, Moment()
    for row in architecture.rows():
        if silence and row.crosses and variants == 1:
            variants = 1 + architecture.towers
            x = _silenced(torch.cat([x] * variants), architecture.towers)
        x = tower[row.name](x, moment)
        if variants > 1 and not row.layer.home:
            x = _silenced(x, architecture.towers)
        yield row, x.unflatten(0, (variants, -1))


def _silenced(x: Tensor, towers: int) -> Tensor:
    """(V*B, C, …), in which tower i has 0 for its channels in variant i + 1; in place."""
    parts = x.unflatten(0, (1 + towers, -1)).unflatten(2, (towers, -1))
    for tower in range(towers):
        parts[1 + tower, :, tower] = 0
    return x
