"""Claim: the towers' first filters specialise, one tower's in colours, the other's not, because they are apart.

    python experiments/specialisation.py [--seeds 4] [--epochs 2] [--images 40000]
        [--full --data imagefolder --data-dir DIR --devices cuda:0,cuda:1]

Source: the paper, section 6.1 and figure 3: the kernels of one GPU are largely colour-agnostic, those of the other
largely colour-specific, in every run, whichever of the two it is, as a result of the restricted connectivity. The paper
has no measure of it. Ours: colour energy of a tower's filters (the share that is not grey) and their orientation energy
(the share that is stripes of one direction), and how far the two towers are apart in it, as a rank among 1,000 draws of
two random halves of the same filters, and that as a normal score: 0 in the mean where towers are no more than random
halves. Two towers of `alexnet`, all 96 filters in conv1, the recipe of
2012, beside the same with every row crossing, where nothing keeps the towers apart. Also told: how alike what both make
of the same test images is (linear CKA, without bias), and the accuracy when one tower is silenced.
Fashion-MNIST is grey: each image gets one of three colours by chance, and its class is its garment and its colour, so
that there are colours to learn, and shapes that have none. Images with colours of their own are taken as they are.
Expected: apart by more than chance in neither; the colours are simple, and the filters few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist, fmean

import torch
from conduct import Experiment, Outcomes, Table, conduct, prepare
from setting import Options, Setting, Size, about, part
from torch import Tensor
from trials import Variant, as_large, recipe_2012, view_of
from verdicts import Claim, Measure

from splitnet import keyed
from splitnet.looking import first_filters, specialisation
from splitnet.measure.learned import colour_energy, orientation_energy
from splitnet.network.presets import preset
from splitnet.network.weights import State
from splitnet.options import guarded, parse
from splitnet.training.data import Dataset, HeldSplit, Split, load

SMALL = Size(side=64, epochs=2, images=40000)
FULL = Size(scale="1", side=None, epochs=91, seeds=5)

APART, TOGETHER = "2012's crossings", "every crossing"
COLOURS = {"red": (255, 64, 64), "green": (64, 255, 64), "blue": (64, 64, 255)}
IMAGES, DRAWS = 500, 1000
_COLOUR = 0xC010  # what a hash is for

ENERGIES = {"colour": colour_energy, "orientation": orientation_energy}
COMPARABLE = (
    "The direction: the paper has pictures and no measure; by default our colours are three, its images photographs."
)


def coloured(data: Dataset) -> Dataset:
    """Each grey image in one of the colours, and classes of both."""
    classes = tuple(f"{colour} {name}" for name in data.classes for colour in COLOURS)
    splits = (_coloured(split, number) for number, split in enumerate((data.train, data.test)))
    train, test = splits
    return replace(
        data, name=f"{data.name}, coloured", channels=3, classes=classes, train=train, test=test,
        origin=f"{data.origin}; each in one of {len(COLOURS)} colours",
    )  # fmt: skip


def _coloured(split: Split, number: int) -> HeldSplit:
    found = split.read(torch.arange(len(split)))
    places = torch.arange(len(split))
    which = keyed.mix(keyed.mix(places) ^ keyed.key(_COLOUR, number)) * len(COLOURS) // keyed.RANGE
    images = found.images.expand(-1, 3, -1, -1).clone()
    for i, colour in enumerate(COLOURS.values()):
        own = which == i
        for channel, light in enumerate(colour):
            shades = (torch.arange(256) * light // 255).to(torch.uint8)
            images[own, channel] = shades[images[own, channel].int()]
    return HeldSplit(images, found.labels * len(COLOURS) + which)


def apart(filters: Sequence[Tensor], what: str) -> tuple[float, float, float]:
    """How far two towers' filters are apart in an energy; two random halves of them, in the mean; the normal score.

    The score is that of the rank of the first among the draws of the second: from N(0, 1) where towers are no more than
    random halves, whatever the filters are.
    """
    energy = ENERGIES[what]
    one, other = filters
    every, generator = torch.cat([one, other]), torch.Generator().manual_seed(0)
    by_chance = []
    for _ in range(DRAWS):
        halves = every[torch.randperm(len(every), generator=generator)].chunk(2)
        by_chance.append(abs(energy(halves[0]) - energy(halves[1])))
    found = abs(energy(one) - energy(other))
    below, alike = (sum(1.0 for chance in by_chance if chance < found), by_chance.count(found))
    return found, fmean(by_chance), NormalDist().inv_cdf((below + alike / 2 + 0.5) / (DRAWS + 1))


class Looking:
    """What is measured on a trained network."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, variant: Variant, seed: int, state: State) -> Mapping[str, float]:
        table, view = variant.network, view_of(variant.recipe, self.setting)
        test = self.setting.data.test
        seen = part(test, IMAGES)  # of a folder the first are those of one class
        batch = seen.read(torch.arange(len(seen)))
        found = specialisation(table, state, batch.images, batch.labels, lambda x: view.centre(x, table.size))
        told = {"accuracy": found.accuracy}
        told |= {f"without tower {i}": accuracy for i, accuracy in enumerate(found.silenced)}
        told |= {f"similarity after {row}": value for row, value in found.similarity.items()}
        filters = first_filters(table, state)
        for what, energy in ENERGIES.items():
            told |= {f"{what} of tower {i}": energy(own) for i, own in enumerate(filters)}
            names = (f"{what} apart", f"{what} apart by chance", f"{what} apart, normal score")
            told |= zip(names, apart(filters, what), strict=True)
        return told


def looked(name: str, decimals: int = 3) -> Measure:
    return Measure(name, lambda outcome: outcome.found[name], decimals=decimals)


CLAIMS = [
    Claim(
        text=f"the towers are further apart in {what} than random halves of their filters",
        source="paper, 6.1 and figure 3",
        published="in every run" if what == "colour" else "",
        measure=looked(f"{what} apart, normal score", 2),
        more=APART,
        comparable=COMPARABLE,
    )
    for what in ENERGIES
] + [
    Claim(
        text="towers that are kept apart are further apart in colour than towers that are not",
        source="paper, 6.1",
        published="",
        measure=looked("colour apart"),
        more=APART,
        less=TOGETHER,
        comparable=COMPARABLE,
    ),
    Claim(
        text="what towers make of an image is less alike where they are kept apart",
        source="follows from paper, 6.1",
        published="",
        measure=looked("similarity after conv5"),
        more=TOGETHER,
        less=APART,
        comparable=COMPARABLE,
    ),
]


def variants(setting: Setting, full: bool) -> list[Variant]:
    whole = preset("alexnet")
    table = setting.table("alexnet").changed("alexnet", conv1={"out": whole.layers[0].out})
    tables = {APART: table, TOGETHER: table.crossing(layer.name for layer in table.layers[1:])}
    recipe = recipe_2012(setting, full)
    return [
        Variant(name=name, table=found, recipe=recipe, gains=as_large(found, whole)) for name, found in tables.items()
    ]


def figures(outcomes: Outcomes) -> Table:
    """Means over seeds of all that was looked for."""
    found = {name: [o for o in of_seed.values() if o.found] for name, of_seed in outcomes.items()}
    names = dict.fromkeys(key for trials in found.values() for o in trials for key in o.found)
    rows = []
    for name in names:
        values = ([o.found[name] for o in trials if name in o.found] for trials in found.values())
        rows.append((name, *(f"{fmean(v):.4f}" if v else "-" for v in values)))
    return Table("What was looked for: means over seeds", ("", *found), rows)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/specialisation.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    size = options.size(SMALL, FULL)
    data = load(options.data, options.data_dir, size=size.side or 224)
    setting = Setting.of(options, size, coloured(data) if data.channels == 1 else data)
    experiment = Experiment(
        name="specialisation",
        text=__doc__ or "",
        variants=variants(setting, options.full),
        claims=CLAIMS,
        look=Looking(setting),
        more=figures,
        says="The images are grey by nature and were coloured." if data.channels == 1 else "",
    )
    conduct(experiment, options, setting)


if __name__ == "__main__":
    guarded(main)
