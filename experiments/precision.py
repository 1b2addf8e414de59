"""Claim: bf16, and casts for the crossing, cost no accuracy that shows: less than a point.

    python experiments/precision.py [--seeds 4] [--epochs 3] [--preset fashion] [--full --devices cuda:0,cuda:1]

Source: nets 170 and 170-quant of 2012, the second with float16 for all that is communicated: top-1 errors of 0.40528
and 0.40524 in ImageNet's validation set, ten views. Two towers are trained on Fashion-MNIST by the textbook's recipe,
from the same weights in the same order, dropped units alike: in float32, in bf16, and in float32 with what crosses cast
to float16 and to bf16. Printed with the bytes that a step exchanges.
The small version trains for three epochs: after a single one, seeds differ by more than the point that is asked for.
`--preset alexnet` is trained by the recipe of 2012 (`--epochs 91` in its full version).
Expected: differences whose 99 % interval lies above a point's loss; otherwise it is not shown, and more seeds are
needed. CPUs without bf16 instructions compute it slowly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from conduct import Experiment, conduct, prepare
from measures import LAST
from setting import Options as CommonOptions
from setting import Setting, Size, about
from trials import Variant, as_large, trained_as
from verdicts import Claim

from splitnet.errors import UsageError
from splitnet.network.execution import Execution
from splitnet.network.presets import preset
from splitnet.options import guarded, option, parse

SMALL = Size(epochs=3)
FULL = Size(scale="1", side=None, epochs=5, seeds=5)

USUAL = "float32"
WAYS = {
    USUAL: Execution(),
    "bf16": Execution("bf16"),
    "float16 on the wire": Execution(wire="float16"),
    "bf16 on the wire": Execution(wire="bf16"),
}
POINTS = 1.0


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    preset: str = option("fashion", "the network", ("fashion", "alexnet", "alexnet-paper"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if "," not in self.devices:
            raise UsageError(f"--devices {self.devices}: nothing crosses on one device; name two, such as cpu,cpu")


CLAIMS = [
    Claim(
        text=f"{way} costs less than a point",
        source="2012, nets 170 and 170-quant" if "float16" in way else "our question",
        published="+0.004 points top-1" if "float16" in way else "",
        measure=LAST,
        more=way,
        less=USUAL,
        above=-POINTS,
        comparable="The direction: the same cast at the same crossings. Ten grey classes; narrow in the small version.",
    )
    for way in WAYS
    if way != USUAL
]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/precision.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    name = options.preset
    table, recipe = setting.table(name), trained_as(name, setting, options.full)
    gains = as_large(table, preset(name)) if name != "fashion" else {}
    variants = [
        Variant(name=way, table=table, recipe=recipe, execution=execution, gains=gains)
        for way, execution in WAYS.items()
    ]
    conduct(Experiment(name="precision", text=__doc__ or "", variants=variants, claims=CLAIMS), options, setting)


if __name__ == "__main__":
    guarded(main)
