"""Claim: with badly chosen initial weights a network with ReLUs still learns, where one with sigmoids does not.

    python experiments/initial_weights.py [--seeds 4] [--epochs 3] [--images 12800] [--full --devices cuda:0,cuda:1]

Source: the textbook, 5.6: ReLU makes a network easier to train from different initial weights; where a sigmoid is close
to 0 or 1 its gradient is almost 0, while a ReLU's is 1 wherever it is positive. No figures are given. Two towers of the
textbook's network with ReLUs and with sigmoids, PyTorch's initial weights as they are, multiplied by 8, and by 1/8
(biases as they are), by the textbook's recipe. Test accuracy after the last epoch; one that diverges counts as a guess.
Expected: ReLU better from each of the three; sigmoids are likely to learn best from the large weights (in a first look
at 120 steps they learnt from no others). Whether bad weights cost ReLU less than 5 points is printed too.
"""

from collections.abc import Sequence
from dataclasses import replace

from conduct import Experiment, conduct, prepare
from measures import LAST as LAST_ACCURACY
from setting import Options, Setting, Size, about
from trials import Variant
from verdicts import Claim

from splitnet.network.architecture import Op
from splitnet.options import guarded, parse

SMALL = Size(epochs=3, images=12800, test_images=5000)
FULL = Size(scale="1", side=None, epochs=5, seeds=5)

LAST = replace(LAST_ACCURACY, diverged=True)
GAINS = {"PyTorch's weights": 1.0, "weights x 8": 8.0, "weights x 1/8": 1 / 8}
OPS: dict[str, Op] = {"ReLU": "relu", "sigmoid": "sigmoid"}
COMPARABLE = "Direction only: the book gives no figure, and does not say which weights are bad."


def variants(setting: Setting) -> list[Variant]:
    table = setting.table("fashion")
    rows = [layer.name for layer in table.layers]
    return [
        Variant(
            name=f"{name}, {how}",
            table=table.replacing("relu", op),
            gains=dict.fromkeys(rows, gain) if gain != 1 else {},
        )
        for how, gain in GAINS.items()
        for name, op in OPS.items()
    ]


CLAIMS = [
    Claim(
        text=f"from {how}, ReLU learns better than sigmoid",
        source="textbook, 5.6",
        published="",
        measure=LAST,
        more=f"ReLU, {how}",
        less=f"sigmoid, {how}",
        comparable=COMPARABLE,
    )
    for how in GAINS
] + [
    Claim(
        text=f"ReLU loses less than 5 points by {how}",
        source="follows from textbook, 5.6",
        published="",
        measure=LAST,
        more=f"ReLU, {how}",
        less="ReLU, PyTorch's weights",
        above=-5.0,
        comparable=COMPARABLE,
    )
    for how in list(GAINS)[1:]
]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/initial_weights.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    experiment = Experiment(name="initial_weights", text=__doc__ or "", variants=variants(setting), claims=CLAIMS)
    conduct(experiment, options, setting)


if __name__ == "__main__":
    guarded(main)
