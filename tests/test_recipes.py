"""Recipes: what their options come to, and that single ones override."""

import json
from dataclasses import replace

import pytest
import torch
from layouts import small
from safetensors.torch import save_file
from whole_runs import LENET, command, goes_on, losses, made, records, unchanged

from splitnet import job, learning
from splitnet.errors import UsageError
from splitnet.job import RunOptions
from splitnet.network.layers import Block, Moment
from splitnet.network.presets import preset
from splitnet.network.weights import draw
from splitnet.party import Party
from splitnet.pixels import measure
from splitnet.recipes import told
from splitnet.resuming import read_options
from splitnet.training.checkpoint import Checkpoints
from splitnet.training.loop import Test
from splitnet.training.optimizer import Update
from splitnet.training.schedule import Schedule


def options(*words):
    return read_options("", words, Party())[0]


def test_2012_is_what_the_source_trained_with():
    found = options("--recipe", "2012")
    assert found.update == Update("sgd", 0.01, 0.02, 0.9, 0.0005, decay_biases=False, by_kind=True)
    assert found.schedule == Schedule((25, 51, 79), (), 67, 72)
    assert (found.batch_size, found.epochs, found.init, found.dropout_scales) == (128, 91, "2012", "testing")
    assert (found.pixels, found.crops, found.flips, found.views) == ("minus-mean", "chunks", True, 10)
    assert (found.color_noise, found.noise_shrinks, found.noise_until) == (0.1, True, 67)
    assert found.shuffle == "once"


def test_the_paper_prints_one_rate_for_all_and_lowers_it_on_a_plateau():
    found = options("--recipe", "paper")
    assert found.update == Update("sgd", 0.01, None, 0.9, 0.0005, decay_biases=True)
    assert found.schedule == Schedule("plateau")
    assert (found.batch_size, found.epochs, found.init, found.crops) == (128, 90, "paper", "images")
    assert (found.color_noise, found.noise_shrinks, found.noise_until) == (0.1, False, None)


def test_the_textbook_has_pytorchs_weights_and_no_augmentation():
    found = options("--recipe", "textbook")
    assert (found.update, found.schedule) == (Update("adam", 0.001), Schedule())
    assert (found.batch_size, found.epochs, found.init) == (128, 5, "pytorch")
    plain = RunOptions()
    same = ("shuffle", "pixels", "crops", "flips", "color_noise", "views", "dropout_scales")
    assert [getattr(found, name) for name in same] == [getattr(plain, name) for name in same]


def test_single_options_override_a_recipe_in_any_order():
    for words in (["--recipe", "2012", "--lr", "0.5"], ["--lr", "0.5", "--recipe", "2012"]):
        found = options(*words, "--drops", "3,6", "--no-flips", "--batch-size", "64")
        assert found.update == Update("sgd", 0.5, 0.02, 0.9, 0.0005, decay_biases=False, by_kind=True)
        assert found.schedule.drops == (3, 6)
        assert options("--recipe", "2012", "--drops", "none").schedule.drops == ()
    assert (found.flips, found.batch_size, found.epochs) == (False, 64, 91)


def test_what_belongs_to_a_value_that_is_overridden_is_no_mistake():
    assert options("--recipe", "2012", "--color-noise", "0").color_noise == 0
    assert options("--recipe", "paper", "--weight-decay", "0").update.weight_decay == 0


def test_values_that_need_sgd_override_a_recipe_that_has_it():
    found = options("--recipe", "2012", "--momentum", "0.8", "--weight-decay", "0.001")
    assert (found.update.momentum, found.update.weight_decay, found.optimizer) == (0.8, 0.001, "sgd")


def test_every_change_of_a_recipe_can_be_left_out():
    off = ("--drops", "none", "--bias-drops", "none", "--conv1-drop", "0", "--conv1-freeze", "0")
    assert options("--recipe", "2012", *off).schedule == Schedule((), ())
    assert not options("--recipe", "2012", *off, "--noise-until", "0").noise_until


def test_the_first_weights_may_freeze_before_a_recipe_lowers_their_rate():
    schedule = options("--recipe", "2012", "--conv1-freeze", "30").schedule
    update = options("--recipe", "2012").update
    assert [schedule.rates(update, epoch, ())["first weight"] for epoch in (29, 30, 67)] == [0.001, 0.0, 0.0]


def test_another_optimizer_has_rates_of_its_own():
    found = options("--recipe", "2012", "--optimizer", "adam", "--bias-lr", "0.5")
    assert found.update == Update("adam", None, 0.5, by_kind=True)
    assert options("--recipe", "2012", "--optimizer", "sgd").update == options("--recipe", "2012").update


def test_the_line_of_a_recipe_tells_what_was_overridden():
    usual = told(options("--recipe", "2012"), noisy=True)
    for words in (
        *(("--pixels", "0..1"), ("--init", "paper"), ("--dropout-scales", "training"), ("--bias-drops", "25")),
        *(("--conv1-drop", "0"), ("--conv1-freeze", "0"), ("--noise-until", "0"), ("--shuffle", "epochs")),
        *(("--lr", "0.5"), ("--bias-lr", "0.5"), ("--weight-decay", "0"), ("--drops", "3"), ("--no-flips",)),
        *(("--crops", "none"), ("--color-noise", "0.2"), ("--views", "1"), ("--decay-biases",)),
    ):
        assert told(options("--recipe", "2012", *words), noisy=True) != usual, words


def test_the_line_of_a_recipe_leaves_out_a_drop_that_comes_after_the_freeze():
    assert "for the first weights once more after 67 epochs, " in told(options("--recipe", "2012"), noisy=True)
    said = told(options("--recipe", "2012", "--conv1-freeze", "30"), noisy=True)
    assert "frozen after 30" in said
    assert "67" not in said.replace("until epoch 67", "")


def test_the_line_of_a_recipe_is_whole_without_other_drops():
    said = told(options("--recipe", "2012", "--drops", "none"), noisy=True)
    assert (
        "rate 0.01 (0.02 for biases), decay 0.0005 (not of biases), a tenth of it for the first weights after" in said
    )
    assert "once more" not in said


def test_the_line_of_a_recipe_names_the_weights_that_are_given():
    said = told(options("--recipe", "2012", "--weights", "some/w.safetensors"), noisy=True)
    assert ", weights from some/w.safetensors, " in said
    assert "initial weights" not in said


def test_steps_take_the_place_of_a_recipes_epochs():
    found = options("--recipe", "2012", "--steps", "7")
    assert (found.steps, found.epochs) == (7, None)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--recipe 2013", "--recipe: invalid choice: '2013'"),
        ("--lr 0", "--lr 0.0: a positive number"),
        ("--bias-lr -1", "--bias-lr -1.0: a positive number"),
        ("--optimizer sgd --momentum 1", "--momentum 1.0: at least 0 and below 1"),
        ("--optimizer sgd --momentum nan", "--momentum nan: at least 0 and below 1"),
        ("--momentum 0.5", "--momentum: is SGD's (--optimizer sgd), not adam's"),
        ("--weight-decay 0.1", "--weight-decay: is SGD's (--optimizer sgd), not adam's"),
        ("--decay-biases", "--decay-biases: there is no --weight-decay"),
        ("--noise-until 3", "--noise-until 3: there is no --color-noise"),
        ("--noise-shrinks", "--noise-shrinks: there is no --color-noise"),
        ("--drops 3,two", "--drops 3,two: epochs joined by commas, such as 25,51,79, plateau, or none"),
        ("--drops 0", "--drops 0: epochs joined by commas"),
        ("--bias-drops plateau", "--bias-drops plateau: epochs joined by commas, such as 25,51,79, or none"),
        ("--drops 6,3", "--drops 6,3: each epoch later than the one before"),
        ("--conv1-freeze -1", "--conv1-freeze -1: at least 0"),
        ("--out x --resume r", "--out x: --resume r goes on in its own folder"),
        ("--conv1-drop 4 --conv1-freeze 4", "--conv1-drop 4: after epoch 4 the first weights stay as they are"),
        ("--init 2012 --weights w", "--init 2012: --weights w has weights; give one of them"),
        ("--init 2012 --resume r", "--init 2012: --resume r has weights; give one of them"),
        ("--views 5", "--views 5: 1 (the centre) or 10"),
    ],
)
def test_a_wrong_value_is_one_line(words, line):
    with pytest.raises(UsageError) as error:
        options(*words.split())
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


SMALL = ("--data", "synthetic", "--batch-size", "8", "--devices", "cpu", "--preset", "alexnet")


@pytest.mark.slow
def test_weights_that_say_how_their_dropout_scales_are_not_taken_for_others(tmp_path):
    state = draw(small("alexnet", 2).adapted(3, 10), 0)
    path = tmp_path / "w.safetensors"
    save_file(state, path, {"splitnet": json.dumps({"dropout_scales": "testing"})})
    words = (*SMALL, "--steps", "0", "--weights", path, "--no-look", "--no-compare")
    said = command(*words, "--out", tmp_path / "refused")
    assert (said.code, said.line) == (2, f"--weights {path}: were made for --dropout-scales testing; say it")
    assert not (tmp_path / "refused").exists()
    made(tmp_path / "out", *words, "--dropout-scales", "testing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fact", "line"),
    [({"pixels": "minus-mean"}, "--pixels minus-mean"), ({"preset": "alexnet-paper"}, "--preset alexnet-paper")],
)
def test_nor_are_those_of_other_pixels_or_of_another_preset_of_the_same_shapes(tmp_path, fact, line):
    path = tmp_path / "w.safetensors"
    save_file(draw(small("alexnet", 2).adapted(3, 10), 0), path, {"splitnet": json.dumps(fact)})
    said = command(*SMALL, "--steps", "0", "--weights", path, "--out", tmp_path / "refused")
    assert (said.code, said.line) == (2, f"--weights {path}: were made for {line}; say it")
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_whole_numbers_are_no_weights(tmp_path):
    path, state = tmp_path / "w.safetensors", draw(small("alexnet", 2).adapted(3, 10), 0)
    save_file(state | {"fc8.bias": state["fc8.bias"].int()}, path)
    said = command(*SMALL, "--steps", "0", "--weights", path, "--out", tmp_path / "refused")
    assert (said.code, said.line) == (2, f"--weights {path}: fc8.bias is int32, not floating-point numbers")


@pytest.mark.slow
def test_so_do_those_of_a_checkpoint(tmp_path):
    words = (*SMALL, "--steps", "1", "--save-every", "1")
    folder = made(tmp_path / "of 2012", *words, "--dropout-scales", "testing")
    path = folder / "checkpoints" / "step-0000000001" / "weights.safetensors"
    said = command(*words, "--weights", path, "--out", tmp_path / "refused")
    assert (said.code, said.line) == (2, f"--weights {path}: were made for --dropout-scales testing; say it")
    made(tmp_path / "out", *words, "--weights", path, "--dropout-scales", "testing")


RATED = ("--optimizer", "sgd", "--bias-lr", "0.02", "--drops", "1", "--bias-drops", "2", "--conv1-freeze", "2")


@pytest.mark.slow
def test_a_run_records_its_rates_and_says_when_they_change(tmp_path):
    words = (*LENET, *RATED, "--devices", "cpu", "--epochs", "3", "--no-look", "--no-compare", "--no-profile")
    said = command(*words, "--out", tmp_path)
    assert said.code == 0, said.err
    [folder] = tmp_path.iterdir()
    expected = [(0.01, 0.01, 0.02), (0.001, 0.001, 0.02), (0, 0.001, 0.002)]
    kinds = ("first weight", "weights", "biases")
    assert [record["rates"] for record in records(folder, "test")] == [
        pytest.approx(dict(zip(kinds, rates, strict=True))) for rates in expected
    ]
    told = [line for line in said.out.splitlines() if line.startswith("After epoch")]
    assert told == [
        "After epoch 1: learning rate 0.001 of the first weights, 0.001 of other weights, 0.02 of biases.",
        "After epoch 2: learning rate 0 of the first weights, 0.001 of other weights, 0.002 of biases.",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [(7,), (2, 4, 7)], ids=str)
def test_a_plateau_of_the_test_error_lowers_the_rate_of_a_run_resumed_or_not(tmp_path, monkeypatch, parts):
    """Better, better, then three epochs no better: the sixth is the first at a tenth of the rate."""
    shares = {6: 0.1, 12: 0.2, 18: 0.2, 24: 0.1, 30: 0.2, 36: 0.3, 42: 0.3}  # by updates made: three an epoch below

    def told(*args, step, epoch, **_):
        return Test(step, epoch, 1.0, shares[2 * step], 10, 0.1)

    monkeypatch.setattr(learning, "evaluate", told)
    words = (*LENET, "--optimizer", "sgd", "--drops", "plateau", "--devices", "cpu", "--save-every", "9")
    folder = made(tmp_path, *words, "--epochs", str(parts[0]))
    for epochs in parts[1:]:
        goes_on(folder, "--epochs", str(epochs))
    rates = [record["rates"]["weights"] for record in records(folder, "test")]
    assert rates == pytest.approx([0.01] * 5 + [0.001] * 2)


@pytest.mark.slow
def test_another_rate_of_a_run_that_goes_on_is_said_and_recorded(tmp_path):
    words = (*LENET, "--optimizer", "sgd", "--devices", "cpu", "--save-every", "9")
    folder = made(tmp_path, *words, "--epochs", "1")
    assert "After epoch 1: learning rate 0.005." in goes_on(folder, "--epochs", "2", "--lr", "0.005").out
    assert [record["rates"] for record in records(folder, "test")] == [{"weights": 0.01}, {"weights": 0.005}]


@pytest.mark.slow
def test_one_order_of_images_goes_on_as_it_was(tmp_path):
    words = (*LENET, "--shuffle", "once", "--devices", "cpu", "--save-every", "1")
    straight = made(tmp_path / "straight", *words, "--epochs", "2")
    folder = made(tmp_path / "parts", *words, "--steps", "2")
    goes_on(folder, "--epochs", "2")
    assert losses(folder) == losses(straight)
    assert losses(made(tmp_path / "other", *LENET, "--devices", "cpu", "--epochs", "2")) != losses(straight)
    said = command("--resume", folder, "--epochs", "3", "--shuffle", "epochs")
    assert (said.code, said.line) == (2, f"--resume {folder}: it was trained with --shuffle once, not epochs")


@pytest.mark.slow
def test_sgd_without_momentum_goes_on(tmp_path):
    words = (*SMALL, "--optimizer", "sgd", "--momentum", "0", "--save-every", "9")
    folder = made(tmp_path, *words, "--steps", "2")
    goes_on(folder, "--steps", "3")
    assert len(records(folder)) == 3


@pytest.mark.slow
def test_what_a_run_cannot_change_is_refused_before_anything_is_touched(tmp_path):
    folder = made(tmp_path, *SMALL, "--optimizer", "sgd", "--pixels", "minus-mean", "--save-every", "9", "--steps", "2")
    whole = unchanged(folder)
    for words, line in (
        (("--bias-lr", "0.02"), "it was trained with one rate for all weights, not with rates or decay by kind"),
        (("--pixels", "0..1"), "it was trained with --pixels minus-mean, not 0..1"),
        (("--recipe", "paper"), "it was trained without --recipe, not paper"),
        (("--flips",), "it was trained without --flips, not with it"),
    ):
        said = command("--resume", folder, "--steps", "3", *words)
        assert said.code == 2
        assert line in said.line
        assert whole()
    assert Checkpoints(folder).last().settings["mean_image"]


@pytest.mark.slow
def test_a_run_that_is_to_end_before_it_stands_is_refused(tmp_path):
    folder = made(tmp_path, *LENET, "--devices", "cpu", "--save-every", "9", "--epochs", "2")
    whole = unchanged(folder)
    for words, line in (
        (("--epochs", "1"), f"--epochs 1: --resume {folder} has 2 already; say how many in all"),
        (("--steps", "5"), f"--steps 5: --resume {folder} has 6 already; say how many in all"),
    ):
        said = command("--resume", folder, *words)
        assert (said.code, said.line) == (2, line)
        assert whole()
    assert "0 steps" in goes_on(folder).out


@pytest.mark.slow
def test_a_run_says_what_it_does_not_keep_and_of_how_few_images_its_mean_is(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "measure", lambda split: replace(measure(split), images=3))
    words = (*SMALL, "--pixels", "minus-mean", "--steps", "1", "--no-look", "--no-compare", "--no-profile")
    out = command(*words, "--out", tmp_path / "a").out
    assert "Weights are not kept (--save-every N keeps them)." in out
    assert "The mean image, and colours, are of 3 of them." in out
    assert "Weights are not kept" not in command(*words, "--save-every", "1", "--out", tmp_path / "b").out


@pytest.mark.slow
def test_another_mean_image_is_noticed(tmp_path, monkeypatch):
    folder = made(tmp_path, *SMALL, "--pixels", "minus-mean", "--save-every", "9", "--steps", "1")

    def shifted(split):
        found = measure(split)
        found.mean.add_(1)
        return found

    monkeypatch.setattr(job, "measure", shifted)
    said = command("--resume", folder, "--steps", "2")
    assert said.code == 2
    assert "it was trained with a mean image and colours of hash" in said.line


@pytest.mark.parametrize(("init", "wide"), [("2012", 0.03), ("paper", 0.01)])
def test_initial_weights_of_the_sources(init, wide):
    table = preset("alexnet", 2)
    state = draw(table, 0, init)
    for row in table.rows():
        deviation = wide if row.name in ("conv3", "conv4", "conv5") else 0.01
        weight, bias = state[f"{row.name}.weight"], state[f"{row.name}.bias"]
        assert weight.std().item() == pytest.approx(deviation, rel=0.03), row.name
        assert abs(weight.mean().item()) < 5 * deviation / weight.numel() ** 0.5, row.name
        assert weight.abs().max() > 3 * deviation  # a normal's tails, not a uniform's
        one = row.name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert torch.equal(bias, torch.full_like(bias, float(one))), row.name


def test_dropout_of_2012_scales_in_tests_and_not_while_training():
    table = small("alexnet")
    found = {}
    for scales in ("training", "testing"):
        row = next(row for row in table.rows() if row.name == "fc6")
        block = Block(replace(table, dropout_scales=scales), row, [0, 1])
        x = torch.rand(3, row.layer.out)
        kept = block.kept(x, Moment())
        found[scales] = [block.drop(x, Moment()) / x, block.eval().drop(x, Moment()) / x]
        assert 0 < kept.sum() < kept.numel()
        assert torch.equal(found[scales][0] > 0, kept)
    assert found["training"][0].unique().tolist() == [0.0, 2.0]
    assert found["training"][1].unique().tolist() == [1.0]
    assert found["testing"][0].unique().tolist() == [0.0, 1.0]
    assert found["testing"][1].unique().tolist() == [0.5]
