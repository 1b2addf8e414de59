"""Claim: without dropout the network overfits substantially; with it, it needs about twice the steps to converge.

    python experiments/dropout.py [--seeds 4] [--epochs 50] [--images 2000] [--full --devices cuda:0,cuda:1]

Source: the paper, section 4.2, which has no figures of the first and "roughly" of the second. Two towers of the
textbook's network, with and without dropout after fc6 and fc7, by the textbook's recipe (Adam, 0.001). 2,000 training
images are few enough to be learnt by heart. Overfitting: training minus test accuracy, both without dropped units, and
how far the test loss rises from its least. Converged: 15 % error on training images, as in a test.
Expected: overfitting and more steps shown; that dropout raises the best test accuracy is small here, if it is there.
A first look (one seed, nothing judged): without dropout 98 % of the training images, and 81 % of the test's.
"""

from collections.abc import Sequence

from conduct import Experiment, conduct, prepare
from measures import BEST, GAP, RISE, epochs_to
from setting import Options, Setting, Size, about
from trials import Variant
from verdicts import Claim

from splitnet.options import guarded, parse

SMALL = Size(epochs=50, images=2000, test_images=2000, batch_size=64)
FULL = Size(scale="1", side=None, epochs=60, images=5000, seeds=5)

WITH, NONE = "dropout", "no dropout"
DATA = "The direction: the paper has no figure. Fashion-MNIST's ten classes; the small version's network is narrow."

CLAIMS = (
    Claim(
        text="without dropout there is more overfitting (accuracy)",
        source="paper, 4.2",
        published="substantial",
        measure=GAP,
        more=NONE,
        less=WITH,
        comparable=DATA,
    ),
    Claim(
        text="without dropout there is more overfitting (loss)",
        source="paper, 4.2",
        published="substantial",
        measure=RISE,
        more=NONE,
        less=WITH,
        comparable=DATA,
    ),
    Claim(
        text="with dropout the best test accuracy is higher",
        source="follows from paper, 4.2",
        published="",
        measure=BEST,
        more=WITH,
        less=NONE,
        comparable=DATA,
    ),
    Claim(
        text="dropout needs more steps to converge",
        source="paper, 4.2",
        published="about 2",
        measure=epochs_to(0.85),
        more=WITH,
        less=NONE,
        comparable="The ratio, by our measure of convergence; the paper does not say what it measured.",
    ),
)


def variants(setting: Setting) -> list[Variant]:
    table = setting.table("fashion")
    return [Variant(name=WITH, table=table), Variant(name=NONE, table=table.without("dropout"))]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/dropout.py", about(__doc__, SMALL, FULL), argv)
    prepare(options.threads)
    setting = Setting.of(options, options.size(SMALL, FULL))
    conduct(Experiment(name="dropout", text=__doc__ or "", variants=variants(setting), claims=CLAIMS), options, setting)


if __name__ == "__main__":
    guarded(main)
