"""Recipes: how a network is trained, as options of their own with a source's values under one name."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from splitnet.errors import UsageError
from splitnet.network.weights import Initial
from splitnet.options import option
from splitnet.training.optimizer import LEARNING_RATES, MOMENTUM, Update
from splitnet.training.schedule import Schedule

_PAPER = {
    "optimizer": "sgd",
    "lr": "0.01",
    "weight_decay": "0.0005",
    "batch_size": "128",
    "init": "paper",
    "dropout_scales": "testing",
    "pixels": "minus-mean",
    "flips": True,
    "color_noise": "0.1",
    "views": "10",
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "textbook": {"optimizer": "adam", "lr": "0.001", "batch_size": "128", "epochs": "5"},
    "2012": _PAPER
    | {
        "bias_lr": "0.02",
        "drops": "25,51,79",
        "bias_drops": "none",
        "conv1_drop": "67",
        "conv1_freeze": "72",
        "noise_until": "67",
        "noise_shrinks": True,
        "init": "2012",
        "shuffle": "once",
        "crops": "chunks",
        "epochs": "91",
    },
    "paper": _PAPER | {"decay_biases": True, "drops": "plateau", "crops": "images", "epochs": "90"},
}
"""What each says, as a command line would.

textbook: github.com/ShusenTang/Dive-into-DL-PyTorch, 5.6. 2012: layers-145.cfg and layer-params-145.cfg of
github.com/computerhistory/AlexNet-Source-Code (2f8b81f) with the changes that its comments note; its crops are shared
by 32 images. Its last file has the biases' first rate, 0.02, so theirs does not drop here; its 2010 sibling's file has
0.002, which is `--bias-drops 23` with that one's other epochs. paper: Krizhevsky, Sutskever and Hinton, NIPS 2012,
4.1 and 5; its "eigenvalues" of colours are taken for standard deviations, as the code has them.
"""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The part of a run's options that a recipe sets; each can be said by itself."""

    recipe: str | None = option(
        None, "options of a source's training, of which others override single ones", tuple(RECIPES)
    )
    optimizer: str = option("adam", "the optimizer", tuple(LEARNING_RATES))
    lr: float | None = option(None, "learning rate before it is divided (Adam 0.001, SGD 0.01)")
    bias_lr: float | None = option(None, "of biases, where it is another")
    momentum: float = option(MOMENTUM, "of SGD")
    weight_decay: float = option(0.0, "pull of weights towards 0, as a share of the rate")
    decay_biases: bool = option(False, "of biases as well")
    drops: str | None = option(None, "epochs after which the rate is divided by 10, joined by commas, plateau, or none")
    bias_drops: str | None = option(None, "of biases, where they are others, or none")
    conv1_drop: int | None = option(None, "epoch after which the first weights' rate is divided once more; 0: never")
    conv1_freeze: int | None = option(None, "epoch after which the first weights stay as they are; 0: never")
    init: str = option("pytorch", "initial weights", get_args(Initial))
    shuffle: str = option(
        "epochs", "the order of images: drawn for each epoch, or once, as in 2012", ("epochs", "once")
    )
    dropout_scales: str = option("training", "when what is dropped is made up for", ("training", "testing"))
    pixels: str = option(
        "0..1", "what images are for the network: 0..1, or 0..255 minus the mean image", ("0..1", "minus-mean")
    )
    crops: str = option(
        "none",
        "of training images: the centre, a place for each image, or one for each 32 images",
        ("none", "images", "chunks"),
    )
    flips: bool = option(False, "mirror half of the training images")
    color_noise: float = option(0.0, "share of noise along the colours' principal components")
    noise_until: int | None = option(None, "epoch after which there is no noise; 0: never")
    noise_shrinks: bool = option(False, "noisy pixels are divided by 1 + color-noise, as in 2012")
    views: int = option(1, "of a test image: its centre, or 10 crops with averaged probabilities")

    def check_recipe(self) -> None:
        """UsageError for a value that no training can have."""
        for name, most in {
            "lr": None,
            "bias_lr": None,
            "momentum": 1.0,
            "weight_decay": 1.0,
            "color_noise": 10.0,
        }.items():
            value, option_ = getattr(self, name), f"--{name.replace('_', '-')}"
            may_be_0 = name not in ("lr", "bias_lr")
            if value is None or ((value > 0 or (may_be_0 and value == 0)) and value < (most or float("inf"))):
                continue
            wanted = "a positive number" if most is None else f"at least 0 and below {most:g}"
            raise UsageError(f"{option_} {value}: {wanted}")
        _ = self.schedule
        if self.views not in (1, 10):
            raise UsageError(f"--views {self.views}: 1 (the centre) or 10 (corners, centre, and all mirrored)")
        if getattr(self, "resume", None) is not None:
            return  # what belongs together is the run's, with which this is merged
        sgd = {"momentum": self.momentum != MOMENTUM, "weight_decay": self.weight_decay > 0}
        for name, told in sgd.items():
            if told and self.optimizer != "sgd":
                raise UsageError(f"--{name.replace('_', '-')}: is SGD's (--optimizer sgd), not {self.optimizer}'s")
        if self.recipe is not None:
            return  # with --color-noise 0, --conv1-freeze 30 and the like, what a recipe says beside it has no effect
        drop, freeze = self.conv1_drop, self.conv1_freeze
        if drop and freeze and drop >= freeze:
            raise UsageError(f"--conv1-drop {drop}: after epoch {freeze} the first weights stay as they are")
        if self.decay_biases and not self.weight_decay:
            raise UsageError("--decay-biases: there is no --weight-decay")
        if self.noise_until and not self.color_noise:
            raise UsageError(f"--noise-until {self.noise_until}: there is no --color-noise")
        if self.noise_shrinks and not self.color_noise:
            raise UsageError("--noise-shrinks: there is no --color-noise")

    @property
    def schedule(self) -> Schedule:
        plateau: Literal["plateau"] = "plateau"
        drops = plateau if self.drops == plateau else _epochs(self.drops, "--drops") or ()
        bias_drops = _epochs(self.bias_drops, "--bias-drops")
        return Schedule(drops, bias_drops, self.conv1_drop or None, self.conv1_freeze or None)

    @property
    def update(self) -> Update:
        return Update(
            self.optimizer,
            self.lr,
            self.bias_lr,
            self.momentum,
            self.weight_decay,
            self.decay_biases,
            self.schedule.by_kind,
        )


LASTING = (
    *("recipe", "momentum", "weight_decay", "decay_biases", "shuffle", "dropout_scales", "pixels", "crops", "flips"),
    *("color_noise", "noise_shrinks"),
)
"""Fields that a run which goes on must have as it began. Rates, and when they change, may be said anew, as in 2012."""

FIELDS = tuple(entry.name for entry in fields(RecipeOptions))
"""Names of all that a recipe may set, and "recipe" itself; epochs and batch_size are a run's own."""


OF_OPTIMIZER = ("lr", "bias_lr", "momentum", "weight_decay", "decay_biases")
"""What holds for a recipe's own optimizer alone."""


def defaults(recipe: str | None, said: Collection[str], optimizer: str | None = None) -> dict[str, Any]:
    """What a recipe says of options that a command line, which named `said`, leaves open.

    `optimizer`: the one that was said, if any: with another than its own a recipe's rates and decay do not hold.
    """
    found = {name: value for name, value in RECIPES.get(recipe or "", {}).items() if name not in said}
    if optimizer not in (None, RECIPES.get(recipe or "", {}).get("optimizer")):
        found = {name: value for name, value in found.items() if name not in OF_OPTIMIZER}
    if "steps" in said:
        found.pop("epochs", None)
    return found


def told(options: RecipeOptions, noisy: bool) -> str:
    """A recipe in a line, as it is after what overrides it. `noisy`: whether the images have colours to change."""
    said = [*_told_of_rates(options), *_told_of_weights(options)]
    if options.dropout_scales == "testing":
        said.append("dropout made up for in tests")
    if options.pixels == "minus-mean":
        said.append("images minus their mean")
    if options.shuffle == "once":
        said.append("in one order")
    if options.crops != "none":
        said.append("crops of each" if options.crops == "images" else "crops of 32 alike")
    said += ["mirrored"] * options.flips
    if options.color_noise:
        until = f" until epoch {options.noise_until}" if options.noise_until else ""
        told_ = f"{options.color_noise:g} of noise of colours{until}"
        said.append(told_ if noisy else "no noise of colours (they are grey)")
    if options.views > 1:
        said.append(f"{options.views} views in a test")
    return f"Recipe {options.recipe}: {', '.join(said)}."


def _told_of_weights(options: RecipeOptions) -> Iterator[str]:
    """A run that goes on says by itself whose it has."""
    given = getattr(options, "weights", None)
    if given is not None:
        yield f"weights from {given}"
    elif getattr(options, "resume", None) is None:
        yield f"initial weights {options.init}"


def _told_of_rates(options: RecipeOptions) -> Iterator[str]:
    update, schedule = options.update, options.schedule
    biases = "" if update.bias_lr is None else f" ({update.bias_lr:g} for biases)"
    yield f"{update.optimizer}, rate {update.rate:g}{biases}"
    if update.weight_decay:
        yield f"decay {update.weight_decay:g}{'' if update.decay_biases else ' (not of biases)'}"
    others = {} if schedule.bias_drops is None else {" for biases": schedule.bias_drops}
    for whose, drops in ({"": schedule.drops} | others).items():
        if drops == "plateau":
            yield "a tenth of it on each plateau"
        elif drops:
            yield f"a tenth of it{whose} after {' and '.join(map(str, drops))} epochs"
    if schedule.first_drop is not None and schedule.first_drop < (schedule.first_freeze or schedule.first_drop + 1):
        again = " once more" * bool(schedule.drops)
        yield f"a tenth of it for the first weights{again} after {schedule.first_drop} epochs"
    if schedule.first_freeze is not None:
        yield f"the first weights frozen after {schedule.first_freeze} epochs"


def _epochs(text: str | None, name: str) -> tuple[int, ...] | None:
    if text in (None, "none"):
        return None if text is None else ()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        others = ", plateau, or none" if name == "--drops" else ", or none"
        raise UsageError(f"{name} {text}: epochs joined by commas, such as 25,51,79{others}")
    found = tuple(map(int, words))
    if list(found) != sorted(set(found)):
        raise UsageError(f"{name} {text}: each epoch later than the one before")
    return found
