"""What the ablations share: a variant of a network or of its training, and trials of it, one training from one seed.

All variants of an experiment see the same images, in the same order from the same seed, and drop the same units; where
all their weights have the same shapes they begin alike (one row of another shape changes what is drawn for those behind
it). A trial counts the bytes that its towers exchange in a step, and holds them against what the table derives.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from statistics import fmean
from typing import Any

from setting import Setting, Size

from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution
from splitnet.network.towers import SplitNet
from splitnet.network.weights import State, draw
from splitnet.options import parse
from splitnet.parallel.capabilities import check_execution
from splitnet.parallel.placement import host
from splitnet.recipes import FIELDS, RecipeOptions, defaults
from splitnet.training.augment import Noise, View
from splitnet.training.loop import DivergedError, Step, evaluate, train
from splitnet.training.optimizer import set_rates

BLOCK = 10
"""Steps whose training accuracy is one point of a curve."""


def recipe(name: str | None = None, **changes: Any) -> RecipeOptions:
    """A source's training, with changes."""
    said = {key: value for key, value in defaults(name, set()).items() if key in FIELDS}
    return replace(parse(RecipeOptions, "run", "", [], said), **changes)


TEXTBOOK = recipe("textbook")


SMALL_2012 = (
    "Ten grey classes; the small version is narrow, and has 2012's first rates, decay, momentum, dropout and widened"
    " initial weights, but no drops, crops, mirrored images, views or noise."
)
"""What of the recipe of 2012 the small versions have."""


def recipe_2012(setting: Setting, full: bool) -> RecipeOptions:
    """That of 2012 as a whole, but for the noise of colours where images are grey.

    Where it is not to be the full version, which has 91 epochs, its first rate alone, and images as they are.
    """
    changes: dict[str, Any] = {}
    if setting.data.channels == 1:
        changes |= {"color_noise": 0.0, "noise_until": None, "noise_shrinks": False}
    if not full:
        changes |= dict.fromkeys(("drops", "bias_drops", "conv1_drop", "conv1_freeze"))
        changes |= {
            "shuffle": "epochs",
            "crops": "none",
            "flips": False,
            "views": 1,
            "color_noise": 0.0,
            "noise_until": None,
        }
    return recipe("2012", **changes)


def trained_as(name: str, setting: Setting, full: bool) -> RecipeOptions:
    """How a preset is trained: that of the textbook's network by its recipe, the others by that of 2012."""
    return TEXTBOOK if name == "fashion" else recipe_2012(setting, full)


def view_of(recipe_: RecipeOptions, setting: Setting) -> View:
    """What networks see of the images by a recipe."""
    wanted: Any = recipe_
    mean = setting.pixels.mean if recipe_.pixels == "minus-mean" else None
    noise = None
    if recipe_.color_noise and setting.pixels.components is not None:
        noise = Noise(setting.pixels.components, recipe_.color_noise, recipe_.noise_shrinks, recipe_.noise_until)
    view = View(mean, wanted.crops, recipe_.flips, noise, recipe_.views)
    view.check(setting.data.channels)
    return view


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network and how it is trained."""

    name: str
    table: Architecture
    recipe: RecipeOptions = TEXTBOOK
    execution: Execution = Execution()
    gains: Mapping[str, float] = field(default_factory=dict)
    """What a row's initial weights are multiplied by; its biases are not."""

    @property
    def network(self) -> Architecture:
        """The table, with the dropout of the recipe."""
        scales: Any = self.recipe.dropout_scales
        return replace(self.table, dropout_scales=scales)

    def weights(self, seed: int) -> State:
        init: Any = self.recipe.init
        state = draw(self.table, seed, init)
        return state | {f"{row}.weight": state[f"{row}.weight"] * gain for row, gain in self.gains.items()}

    def described(self, size: Size) -> dict[str, Any]:
        """All that makes it what it is, and the bytes that a step of its training exchanges."""
        crossing = self.table.bytes_exchanged(size.batch_size, itemsize=self.execution.itemsize)
        parts = {"table": self.table, "recipe": self.recipe, "execution": self.execution, "gains": self.gains}
        return {k: told(v) for k, v in parts.items()} | {"parameters": self.table.parameters, "bytes": crossing}


def as_large(table: Architecture, full: Architecture) -> dict[str, float]:
    """Gains that give each row's product the deviation that it has in the full network, for the same inputs.

    2012's initial weights have one deviation whatever a row reads, so that in a narrow network on small images they
    would be too small by the root of what is missing: each row's gain is that root.
    """
    inputs = {row.name: math.prod(row.weight_shape[1:]) for row in full.rows()}
    return {row.name: math.sqrt(inputs[row.name] / math.prod(row.weight_shape[1:])) for row in table.rows()}


def told(value: Any) -> Any:
    """As JSON has it; of a dataclass only what is not as it would be by itself."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((entry, getattr(value, entry.name)) for entry in fields(value))
        return {entry.name: told(found) for entry, found in pairs if found != _default(entry)}
    if isinstance(value, Mapping):
        return {str(key): told(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [told(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _default(entry: Any) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


@dataclass(frozen=True, slots=True)
class Epoch:
    """A pass over the training images, and the tests after it. Losses are means, accuracies shares."""

    loss: float
    accuracy: float
    """While learning: units dropped, images cropped."""
    seen_accuracy: float
    """On training images as in a test."""
    test_loss: float
    test_accuracy: float
    test_top5: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to."""

    epochs: tuple[Epoch, ...]
    curve: tuple[float, ...]
    """Training accuracy of each BLOCK steps."""
    bytes: int
    """That towers exchanged in the first step."""
    seconds: float
    """Of the steps."""
    steps: int
    guess: float = 0.0
    """The accuracy of one that guesses."""
    diverged: str = ""
    """Why it ended early; its last epoch is then that of a network that guesses."""
    found: Mapping[str, float] = field(default_factory=dict)
    """What an experiment looked for in the trained network."""

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def learnt(self) -> bool:
        """Whether it did twice as well as one that guesses, at any time."""
        return max(epoch.test_accuracy for epoch in self.epochs) > 2 * self.guess


Look = Callable[[Variant, int, State], Mapping[str, float]]
"""What is measured on a trained network: of its variant, seed and whole state."""


def trained(variant: Variant, seed: int, setting: Setting, look: Look | None = None) -> Outcome:
    """One trial."""
    table = variant.network
    placement = setting.placed(table)
    check_execution(variant.execution, placement.devices)
    net = host(table, placement, seed, execution=variant.execution)
    net.load_whole_state_dict(variant.weights(seed))
    trial = _Trial(variant, setting, net, seed)
    diverged = trial.run()
    state = net.whole_state_dict() if look else {}
    found = look(variant, seed, state) if look and not diverged else {}
    return Outcome(
        tuple(trial.epochs), trial.curve, trial.bytes, sum(s.seconds for s in trial.steps), len(trial.steps),
        1 / table.classes, diverged, found,
    )  # fmt: skip


class _Trial:
    """A training under way."""

    def __init__(self, variant: Variant, setting: Setting, net: SplitNet, seed: int) -> None:
        self.variant, self.setting, self.net, self.seed = variant, setting, net, seed
        self.optimizer = variant.recipe.update.start(net)
        self.view = view_of(variant.recipe, setting)
        self.steps: list[Step] = []
        self.epochs: list[Epoch] = []
        self.bytes = 0

    def run(self) -> str:
        """Why it diverged; "" if it did not."""
        size = self.setting.size
        self._set_rates(0)
        records = train(
            self.net,
            self.setting.data.train,
            self.optimizer,
            batch_size=size.batch_size,
            seed=self.seed,
            epochs=size.epochs,
            view=self.view,
            reshuffle=self.variant.recipe.shuffle == "epochs",
        )
        begun = 0
        try:
            for record in records:
                self._count(record)
                self.steps.append(record)
                if record.ends_epoch:
                    self.epochs.append(self._epoch(self.steps[begun:]))
                    begun = len(self.steps)
                    self._set_rates(record.epoch + 1)
        except DivergedError as error:
            guess = 1 / self.net.architecture.classes
            self.epochs.append(Epoch(-math.log(guess), guess, guess, -math.log(guess), guess))
            return str(error)
        finally:
            records.close()
        return ""

    def _set_rates(self, epoch: int) -> None:
        recipe_, errors = self.variant.recipe, [1 - e.test_accuracy for e in self.epochs]
        set_rates(self.optimizer, recipe_.schedule.rates(recipe_.update, epoch, errors))

    def _count(self, record: Step) -> None:
        """The first step's bytes, which must be the table's."""
        if record.step:
            return
        self.bytes = self.net.ledger.bytes()
        apart = len(self.setting.placed(self.net.architecture).devices) > 1
        itemsize = self.net.execution.itemsize
        derived = self.net.architecture.bytes_exchanged(record.images, itemsize=itemsize) if apart else 0
        if self.bytes != derived:
            raise AssertionError(f"{self.bytes:,} bytes were exchanged in a step, the table says {derived:,}")

    def _epoch(self, steps: list[Step]) -> Epoch:
        images = sum(s.images for s in steps)
        loss, accuracy = (sum(getattr(s, name) * s.images for s in steps) / images for name in ("loss", "accuracy"))
        splits = (self.setting.seen, self.setting.data.test)
        seen, test = (evaluate(self.net, split, batch_size=250, view=self.view) for split in splits)
        return Epoch(loss, accuracy, seen.accuracy, test.loss, test.accuracy, test.top5)

    @property
    def curve(self) -> tuple[float, ...]:
        shares = [s.accuracy for s in self.steps]
        whole = range(0, len(shares) - BLOCK + 1, BLOCK)
        return tuple(round(fmean(shares[i : i + BLOCK]), 5) for i in whole)
