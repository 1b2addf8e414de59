"""Claim: two towers learn better than the network that one of their devices could hold: half as many kernels.

    python experiments/half.py [--seeds 4] [--epochs 2] [--full --devices cuda:0,cuda:1]

Source: the paper, section 3.2: top-1 and top-5 errors are lower by 1.7 % and 1.2 % than those of a net with half as
many kernels in each convolution but the last, trained on one GPU (footnote 2; nets 145-2010 and 145-half: 1.70 and
1.23 points, in ImageNet 2010's test set). Two towers of `alexnet`, and one of `alexnet-half`, whose conv5 and fully
connected rows are as wide as both towers' together; the recipe of 2012 (in the small version its first rates, and
images as they are), images 0..255 minus the mean image, initial weights widened so that each row's outputs begin as
large as in the full network.
Expected: two towers better, by less than the paper's figure. That they also take slightly less time is measured on
paper (`experiments/paper_times.py`) and, where there are two GPUs, in the trials' seconds.
"""

from collections.abc import Sequence

from conduct import Experiment, conduct, prepare
from measures import LAST, SECONDS
from setting import Options, Setting, Size, about
from trials import SMALL_2012, Variant, as_large, recipe_2012
from verdicts import Claim

from splitnet.network.presets import preset
from splitnet.options import guarded, parse

SMALL = Size(side=64, epochs=2)
FULL = Size(scale="1", side=None, epochs=91, seeds=5)

TWO, HALF = "two towers", "half network"

BETTER = Claim(
    text="two towers are better than the half network",
    source="paper, 3.2; 2012, nets 145-2010 and 145-half",
    published="+1.70 points top-1",
    measure=LAST,
    more=TWO,
    less=HALF,
    comparable=f"The direction: the same pair of tables. {SMALL_2012}",
)
FASTER = Claim(
    text="the half network takes more time",
    source="paper, 3.2",
    published="slightly",
    measure=SECONDS,
    more=HALF,
    less=TWO,
    comparable="The claim itself, on other GPUs.",
)


def variants(setting: Setting, full: bool) -> list[Variant]:
    tables = {TWO: setting.table("alexnet"), HALF: setting.table("alexnet-half", towers=1)}
    presets = {TWO: preset("alexnet"), HALF: preset("alexnet-half", 1)}
    recipe = recipe_2012(setting, full)
    return [
        Variant(name=name, table=table, recipe=recipe, gains=as_large(table, presets[name]))
        for name, table in tables.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/half.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    apart = len(set(setting.devices)) > 1 and all(device.startswith("cuda") for device in setting.devices)
    experiment = Experiment(
        name="half",
        text=__doc__ or "",
        variants=variants(setting, options.full),
        claims=(BETTER, FASTER) if apart else (BETTER,),
        says="" if apart else "Which takes less time is not measured: the towers have no GPU each.",
    )
    conduct(experiment, options, setting)


if __name__ == "__main__":
    guarded(main)
