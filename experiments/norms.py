"""Claim: response norm lowers the test error.

    python experiments/norms.py [--seeds 4] [--epochs 2] [--full --devices cuda:0,cuda:1]

Source: the paper, section 3.3: it reduces top-1 and top-5 errors by 1.4 % and 1.2 %; nets 145 and 148 of 2012
(layers-148.cfg removes both norms of channels and the spatial one): 1.37 and 1.15 points. Two towers of `alexnet`, as
2012 computes it, and without its norms. At the scale 0..1 a norm changes nothing (k = 2 and alpha = 1e-4), so images
are 0..255 minus the mean image, and the recipe is 2012's: SGD with momentum, decay, its rates of weights and biases
(the first ones alone in the small version, on images as they are). Its initial weights are widened so that each row's
outputs begin as large as in the full network.
Expected: at this size less than a point, and not shown; it is as likely to cost as to help.
"""

from collections.abc import Sequence

from conduct import Experiment, conduct, prepare
from measures import LAST
from setting import Options, Setting, Size, about
from trials import SMALL_2012, Variant, as_large, recipe_2012
from verdicts import Claim

from splitnet.network.presets import preset
from splitnet.options import guarded, parse

SMALL = Size(side=64, epochs=2)
FULL = Size(scale="1", side=None, epochs=91, seeds=5)

WITH, NONE = "norms", "no norms"

CLAIMS = (
    Claim(
        text="norms raise the test accuracy",
        source="paper, 3.3; 2012, nets 145 and 148",
        published="+1.37 points top-1",
        measure=LAST,
        more=WITH,
        less=NONE,
        comparable=f"The direction: the same norms and pixels. {SMALL_2012}",
    ),
)


def variants(setting: Setting, full: bool) -> list[Variant]:
    table, recipe = setting.table("alexnet"), recipe_2012(setting, full)
    gains = as_large(table, preset("alexnet"))
    return [
        Variant(name=name, table=found, recipe=recipe, gains=gains)
        for name, found in {WITH: table, NONE: table.without("norm")}.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/norms.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    found = variants(setting, options.full)
    conduct(Experiment(name="norms", text=__doc__ or "", variants=found, claims=CLAIMS), options, setting)


if __name__ == "__main__":
    guarded(main)
