"""Claim: pooling windows that overlap lower the test error, and the network overfits slightly less.

    python experiments/pooling.py [--seeds 4] [--epochs 2] [--images 30000] [--full --devices cuda:0,cuda:1]

Source: the paper, section 3.4: windows of 3 at a stride of 2 instead of 2 and 2 reduce top-1 and top-5 errors by 0.4 %
and 0.3 %; nets 145 and 147 of 2012 (whose conv2 and conv5 have other paddings, to bring maps back to their sizes):
0.39 and 0.30 points. Two towers of `alexnet` and of `alexnet-plain-pool`, the recipe of 2012 (in the small version its
first rates, and images as they are), images 0..255 minus the mean image, initial weights widened so that each row's
outputs begin as large as in the full network.
Expected: not shown; four tenths of a point are less than what seeds differ by at this size. The sides of maps, which
are printed, differ by what the windows leave over; 96 pixels are the fewest by which both end in maps of one size, and
pool more than one pixel at each pool.
"""

from collections.abc import Sequence

from conduct import Experiment, conduct, prepare
from measures import GAP, LAST
from setting import Options, Setting, Size, about
from trials import SMALL_2012, Variant, as_large, recipe_2012
from verdicts import Claim

from splitnet.network.presets import preset
from splitnet.options import guarded, parse

SMALL = Size(side=96, epochs=2, images=30000)
FULL = Size(scale="1", side=None, epochs=91, seeds=5)

OVERLAPPING, PLAIN = "overlapping", "plain"
NAMES = {OVERLAPPING: "alexnet", PLAIN: "alexnet-plain-pool"}
COMPARABLE = f"The direction: the same windows; on small maps. {SMALL_2012}"

CLAIMS = (
    Claim(
        text="overlapping windows raise the test accuracy",
        source="paper, 3.4; 2012, nets 145 and 147",
        published="+0.39 points top-1",
        measure=LAST,
        more=OVERLAPPING,
        less=PLAIN,
        comparable=COMPARABLE,
    ),
    Claim(
        text="plain windows overfit more",
        source="paper, 3.4",
        published="slightly",
        measure=GAP,
        more=PLAIN,
        less=OVERLAPPING,
        comparable=COMPARABLE,
    ),
)


def variants(setting: Setting, full: bool) -> list[Variant]:
    recipe = recipe_2012(setting, full)
    tables = {name: setting.table(table) for name, table in NAMES.items()}
    return [
        Variant(name=name, table=table, recipe=recipe, gains=as_large(table, preset(NAMES[name])))
        for name, table in tables.items()
    ]


def sides(found: Sequence[Variant]) -> str:
    """Of each convolution's map, and of what it hands on."""
    told = []
    for variant in found:
        rows = (row.outputs for row in variant.table.rows() if row.layer.kernel)
        ends = ((made[0][1], made[-1][1]) for made in rows)
        told.append(f"{variant.name} {', '.join(f'{a} to {b}' if a != b else f'{a}' for a, b in ends)}")
    return f"Sides of the convolutions' maps, and of what is left of them: {'; '.join(told)}."


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/pooling.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    found = variants(setting, options.full)
    experiment = Experiment(name="pooling", text=__doc__ or "", variants=found, claims=CLAIMS, says=sides(found))
    conduct(experiment, options, setting)


if __name__ == "__main__":
    guarded(main)
