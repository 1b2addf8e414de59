"""Every ablation: what its variants are; its command trains, prints a verdict of each claim, and leaves a page."""

import gc
import json
import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import NormalDist, fmean, stdev

import pytest
import torch
import torch.nn.functional as F
from quick import quick

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))  # as for a script there

import activations  # noqa: E402
import crops_and_flips  # noqa: E402
import crossings  # noqa: E402
import fully_connected  # noqa: E402
import half  # noqa: E402
import initial_weights  # noqa: E402
import norms  # noqa: E402
import pooling  # noqa: E402
import specialisation  # noqa: E402
import textbook  # noqa: E402
from results_file import TUNING, ResultsFile  # noqa: E402
from setting import Options, Setting, Size  # noqa: E402
from trials import Epoch, Outcome, Variant, view_of  # noqa: E402
from verdicts import Claim  # noqa: E402

from splitnet.errors import UsageError  # noqa: E402
from splitnet.looking import Specialisation  # noqa: E402
from splitnet.network.presets import preset  # noqa: E402
from splitnet.testing import fake_devices  # noqa: E402, F401
from splitnet.training.data import load  # noqa: E402
from splitnet.training.splits import Crop, Drawn  # noqa: E402

NAMES = (
    *("activations", "crops_and_flips", "crossings", "dropout", "half", "initial_weights", "norms", "pooling"),
    *("precision", "specialisation"),
)
OF_2012 = ("half", "norms", "pooling", "specialisation")
"""Those whose small versions, too, are of 2012's network, by its recipe."""
VERDICTS = ("shown: ", "not shown: ", "the opposite: ")
TINY = "--scale 1/16 --epochs 1 --images 160 --test-images 60 --seeds 2 --batch-size 40 --data fashion-mnist-small"


@pytest.fixture(autouse=True)
def left_alone(monkeypatch):
    monkeypatch.setattr("splitnet.allocator.keep_freed_memory", lambda: "the allocator is left as it is")
    monkeypatch.setattr(sys, "argv", ["experiments/some.py"])


@pytest.fixture(scope="module")
def setting():
    return Setting.of(Options(data="fashion-mnist-small"), Size(side=68))


# Each command.


@pytest.mark.parametrize("name", quick(NAMES, "dropout"))
def test_an_experiment_says_what_it_found(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(specialisation, "DRAWS", 20)
    module = import_module(name)
    module.main([*TINY.split(), "--out", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    content = json.loads((tmp_path / f"{name}.json").read_text())
    verdicts = [line for line in said if line.startswith(VERDICTS)]
    assert len(verdicts) == len(content["claims"]) > 0
    assert all(" n 2)" in line or "not reached by" in line for line in verdicts)
    prepared = {"specialisation": ", coloured", "crops_and_flips": ", of 78 pixels a side"}.get(name, "")
    assert content["settings"]["data"] == f"160 training and 60 test images of fashion-mnist-small{prepared}"
    judged = {claim["verdict"] for claim in content["claims"]}
    assert judged <= {"shown", "not shown", "the opposite"}
    drawn = any(claim["values"] for claim in content["claims"])  # none where no network got to what is measured
    assert drawn == ("<svg" in (tmp_path / f"{name}.html").read_text())
    assert f"python experiments/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_an_experiments_own_sizes_fit_its_networks(name):
    """Its small version and its full one, of widths that its towers divide; and its docstring's command says them."""
    module = import_module(name)
    for size in (module.SMALL, module.FULL):
        found = Setting.of(Options(data="fashion-mnist-small"), size)
        tables = {"alexnet", "alexnet-half", "alexnet-plain-pool"} if name in OF_2012 else {"fashion"}
        for table in tables:
            found.table(table, 1 if table == "alexnet-half" else 2)
    assert f"[--seeds {module.SMALL.seeds}]" in module.__doc__
    assert f"[--epochs {module.SMALL.epochs}]" in module.__doc__
    assert not module.SMALL.images or f"[--images {module.SMALL.images}]" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_claims_are_of_variants_that_there_are_and_say_their_source(name, setting):
    claims = every_claim(name, setting)
    names = {variant.name for variant in every_variant(name, setting)}
    for claim in claims:
        assert claim.source
        assert claim.comparable
        assert claim.more in names
        assert claim.less in names | {""}


DIRECTIONS = """
ReLU reaches 25 % training error sooner than tanh
    steps to 25 % training error: tanh, rate 0.0003 > relu, rate 0.0003 by 1
ReLU reaches 15 % training error sooner than tanh
    steps to 15 % training error: tanh, rate 0.0003 > relu, rate 0.0003 by 1
ReLU reaches 25 % training error sooner than sigmoid
    steps to 25 % training error: sigmoid, rate 0.0003 > relu, rate 0.0003 by 1
ReLU reaches 15 % training error sooner than sigmoid
    steps to 15 % training error: sigmoid, rate 0.0003 > relu, rate 0.0003 by 1
without crops and flips there is more overfitting (accuracy)
    training minus test accuracy: centres > crops and flips by 0
without crops and flips there is more overfitting (loss)
    test loss, last minus least: centres > crops and flips by 0
with crops and flips the best test accuracy is higher
    best test accuracy: crops and flips > centres by 0
crossings help at equal parameters
    test accuracy: 2012's crossings > no crossing, wider by 0
crossings help
    test accuracy: 2012's crossings > no crossing by 0
crossings in every row help more
    test accuracy: every crossing > 2012's crossings by 0
conv3's crossing helps
    test accuracy: 2012's crossings > without conv3's by 0
fc6's crossing helps
    test accuracy: 2012's crossings > without fc6's by 0
fc7's crossing helps
    test accuracy: 2012's crossings > without fc7's by 0
without dropout there is more overfitting (accuracy)
    training minus test accuracy: no dropout > dropout by 0
without dropout there is more overfitting (loss)
    test loss, last minus least: no dropout > dropout by 0
with dropout the best test accuracy is higher
    best test accuracy: dropout > no dropout by 0
dropout needs more steps to converge
    epochs to 15 % error on training images: dropout > no dropout by 1
two towers are better than the half network
    test accuracy: two towers > half network by 0
the half network takes more time
    seconds a step: half network > two towers by 1
from PyTorch's weights, ReLU learns better than sigmoid
    test accuracy: ReLU, PyTorch's weights > sigmoid, PyTorch's weights by 0
from weights x 8, ReLU learns better than sigmoid
    test accuracy: ReLU, weights x 8 > sigmoid, weights x 8 by 0
from weights x 1/8, ReLU learns better than sigmoid
    test accuracy: ReLU, weights x 1/8 > sigmoid, weights x 1/8 by 0
ReLU loses less than 5 points by weights x 8
    test accuracy: ReLU, weights x 8 > ReLU, PyTorch's weights by -5
ReLU loses less than 5 points by weights x 1/8
    test accuracy: ReLU, weights x 1/8 > ReLU, PyTorch's weights by -5
norms raise the test accuracy
    test accuracy: norms > no norms by 0
overlapping windows raise the test accuracy
    test accuracy: overlapping > plain by 0
plain windows overfit more
    training minus test accuracy: plain > overlapping by 0
bf16 costs less than a point
    test accuracy: bf16 > float32 by -1
float16 on the wire costs less than a point
    test accuracy: float16 on the wire > float32 by -1
bf16 on the wire costs less than a point
    test accuracy: bf16 on the wire > float32 by -1
the towers are further apart in colour than random halves of their filters
    colour apart, normal score: 2012's crossings > - by 0
the towers are further apart in orientation than random halves of their filters
    orientation apart, normal score: 2012's crossings > - by 0
towers that are kept apart are further apart in colour than towers that are not
    colour apart: 2012's crossings > every crossing by 0
what towers make of an image is less alike where they are kept apart
    similarity after conv5: every crossing > 2012's crossings by 0
"""
"""What each claim says, and which of its two variants must then lie above the other: read it when it changes."""


def test_claims_say_which_of_two_lies_above_the_other(setting):
    claims = [claim for name in NAMES for claim in every_claim(name, setting)]
    told = [f"{c.text}\n    {c.measure.name}: {c.more} > {c.less or '-'} by {c.bound:g}" for c in claims]
    assert "\n".join(told) == DIRECTIONS.strip()


def every_claim(name, setting):
    module = import_module(name)
    if name == "activations":
        first = {v.name.partition(",")[0]: v for v in reversed(module.variants(setting))}
        return module.claims({(op, error): v for op, v in first.items() for error in module.ERRORS})
    return module.__dict__.get("CLAIMS") or [module.BETTER, module.FASTER]


def every_variant(name, setting):
    module = import_module(name)
    if name == "crossings":
        return module.variants(setting)
    if name == "precision":
        return [Variant(name=way, table=setting.table("fashion")) for way in module.WAYS]
    return module.variants(setting, False) if name in OF_2012 else module.variants(setting)


def test_precision_needs_a_crossing(capsys):
    with pytest.raises(UsageError, match="--devices cpu: nothing crosses"):
        import_module("precision").main(["--devices", "cpu"])


# What variants are.


def test_isolated_towers_have_as_many_parameters():
    """As net 150 beside net 145: of `alexnet` it is the preset of that name."""
    made = crossings.isolated(preset("alexnet"))
    assert made.parameters == preset("alexnet-isolated").parameters == 60_714_408
    assert made.bytes_exchanged(1, "forward") == preset("alexnet-isolated").bytes_exchanged(1, "forward")
    fashion = preset("fashion")
    assert crossings.isolated(fashion).parameters == pytest.approx(fashion.parameters, rel=0.01)


def test_crossings_differ_in_one_row(setting):
    found = {v.name: {r.layer.name for r in v.table.rows() if r.crosses} for v in crossings.variants(setting)}
    usual = {"conv3", "fc6", "fc7", "fc8"}
    assert found[crossings.USUAL] == usual
    assert found[crossings.NONE] == found[crossings.ISOLATED] == {"fc8"}
    assert len(found[crossings.ALL]) == 7
    assert all(found[crossings.without(row)] == usual - {row} for row in crossings.OF_2012)


def test_ablations_of_2012_are_the_presets(setting):
    with_norms, without = norms.variants(setting, False)
    assert {"norm", "cnorm"} <= {op for layer in with_norms.table.layers for op in layer.after}
    assert not {"norm", "cnorm"} & {op for layer in without.table.layers for op in layer.after}
    assert with_norms.recipe.pixels == without.recipe.pixels == "minus-mean"  # at 0..1 a norm is invisible
    overlapping, plain = pooling.variants(setting, False)
    assert (overlapping.table.pool.kernel, plain.table.pool.kernel, plain.table.pool.stride) == (3, 2, 2)
    two, one = half.variants(setting, False)
    assert (two.table.towers, one.table.towers) == (2, 1)
    outs = [[layer.out for layer in v.table.layers if layer.kernel] for v in (two, one)]
    assert outs == [[24, 64, 96, 96, 64], [12, 32, 48, 48, 64]]
    assert two.table.layers[-2].out == one.table.layers[-2].out == 1024


def test_presets_of_2012_are_trained_by_its_recipe(setting):
    for variant in crossings.variants(setting, "alexnet"):
        assert (variant.recipe.optimizer, variant.recipe.pixels, variant.recipe.init) == ("sgd", "minus-mean", "2012")
        assert variant.gains["conv2"] == pytest.approx(2)  # a quarter of the inputs
    assert all(variant.recipe.optimizer == "adam" and not variant.gains for variant in crossings.variants(setting))


def test_centres_and_crops_are_cut_from_the_same(setting):
    data = crops_and_flips.with_margin(setting.data, 78)
    places = torch.arange(20)
    images = data.train.read(places).images
    assert images.shape == (20, 1, 78, 78)
    crops, centres = (view_of(v.recipe, setting) for v in crops_and_flips.variants(setting))
    assert torch.equal(crops.centre(images, 68), centres.centre(images, 68))
    cut = images[:, :, 3:71, 8:76].float() / 255
    drawn = Drawn((Crop(20, 3, 8),))
    assert torch.allclose(crops.pixels(images, 68, torch.float32, drawn), cut)
    small = setting.data.train.read(places).images.float()
    assert torch.equal(images, F.interpolate(small, (78, 78), mode="bilinear").round().to(torch.uint8))
    assert crops_and_flips.with_margin(data, 78).train is data.train  # large enough


def test_which_takes_less_time_is_measured_on_gpus_alone(tmp_path, capsys, fake_devices):  # noqa: F811
    half.main([*TINY.split(), "--devices", "fake:0,fake:1", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "is not measured: the towers have no GPU each" in said
    assert half.FASTER.text not in said


RESULTS = sorted((ROOT / "experiments" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_the_experiments_own_command(path):
    content, name = json.loads(path.read_text()), path.stem.removesuffix("-full")
    for session in content["sessions"]:
        assert session["command"][:2] == ["python", f"experiments/{name}.py"]
    assert (ROOT / "experiments" / f"{name}.py").exists()
    assert {trial["session"] for trial in content.get("trials", [])} <= set(range(len(content["sessions"])))


def test_bad_initial_weights_are_the_good_ones_times_a_number(setting):
    found = {variant.name: variant for variant in initial_weights.variants(setting)}
    usual, large = found["ReLU, PyTorch's weights"].weights(0), found["ReLU, weights x 8"].weights(0)
    assert torch.equal(large["conv2.weight"], 8 * usual["conv2.weight"])
    ops = {op for layer in found["sigmoid, weights x 8"].table.layers for op in layer.after}
    assert ops == {"sigmoid", "pool", "dropout"}


def test_with_bad_initial_weights_a_training_that_diverged_counts_as_a_guess():
    found = {
        claim.more: {seed: replace(outcome(2.3), diverged="loss is nan") for seed in range(2)}
        | {seed: outcome(0.4) for seed in range(2, 4)}
        for claim in initial_weights.CLAIMS
    }
    found |= {claim.less: {seed: outcome(0.4) for seed in range(4)} for claim in initial_weights.CLAIMS}
    for claim in initial_weights.CLAIMS:
        judged = claim.judge(found)
        assert (len(judged.values), judged.missing) == (4, "")


def outcome(loss, *curve):
    return Outcome((Epoch(loss, 0.5, 0.5, 1.0, 0.5),), curve, 0, 1.0, 10, 0.1)


def test_the_rate_is_chosen_by_a_seed_that_is_not_judged(setting, tmp_path):
    every = activations.variants(setting)
    file = ResultsFile(tmp_path / "activations.json")
    file.begin({}, {variant.name: {} for variant in every})
    curves = {
        "rate 0.0003": (0.5, 0.8, 0.8),  # soonest at 25 %, never at 15
        "rate 0.001": (0.5, 0.7, 0.95),
        "rate 0.003": (0.5, 0.5, 0.95),  # as soon, with a smaller loss
        "rate 0.01": (0.1, 0.1, 0.1),
    }
    for variant in every:
        for rate, curve in curves.items():
            if variant.name.endswith(rate):
                file.add(variant.name, TUNING, outcome(0.3 if rate == "rate 0.003" else 0.4, *curve))
    best = activations.chosen(every, file)
    assert {(op, error): variant.name for (op, error), variant in best.items()} == {
        (op, error): f"{op}, rate {rate}"
        for op in ("relu", "tanh", "sigmoid")
        for error, rate in ((0.25, "0.0003"), (0.15, "0.003"))
    }
    assert activations.at_an_edge(best).count("rate 0.0003 (to 25 %)") == 3
    assert "0.003 (to" not in activations.at_an_edge(best)
    found = activations.claims(best)
    assert [claim.published for claim in found] == ["6", "", "", ""]
    assert all(claim.judge(file.outcomes(judged=True)) is None for claim in found)


def test_a_training_that_diverged_is_no_choice():
    """It had the fewest steps; and one that was late is worse than one that arrived."""
    arrived, late = outcome(0.4, 0.5, 0.95), outcome(0.2, *[0.5] * 9)
    ended = replace(outcome(9.0, 0.5), diverged="loss is nan")
    assert sorted([ended, late, arrived], key=lambda found: activations.worth(found, 0.1)) == [arrived, late, ended]


# Specialisation.


def test_colours_are_a_third_each_and_part_of_the_class():
    data = load("fashion-mnist-small")
    found = specialisation.coloured(data)
    places = torch.arange(len(data.train))
    grey, colour = data.train.read(places), found.train.read(places)
    which = colour.labels % 3
    assert (found.channels, len(found.classes)) == (3, 30)
    assert torch.equal(colour.labels // 3, grey.labels)
    assert all(0.28 < (which == i).double().mean() < 0.39 for i in range(3))
    own = colour.images[torch.arange(len(which)), which]
    assert torch.equal(own, grey.images[:, 0])  # the colour's own channel is the grey image
    other = colour.images[torch.arange(len(which)), (which + 1) % 3].int()
    assert torch.equal(other, grey.images[:, 0].int() * 64 // 255)
    assert found.classes[4] == f"green {data.classes[1]}"
    assert not torch.equal(which[:500], found.test.read(torch.arange(500)).labels % 3)


def test_towers_that_specialise_are_further_apart_than_chance():
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn(12, 1, 11, 11, generator=generator).expand(-1, 3, -1, -1)
    colour = torch.randn(12, 3, 11, 11, generator=generator)
    colour = colour - colour.mean(1, keepdim=True)
    value, chance, score = specialisation.apart((grey, colour), "colour")
    assert value == pytest.approx(1.0, abs=1e-6)
    assert chance < 0.3
    assert score == pytest.approx(NormalDist().inv_cdf(1000.5 / 1001))
    mixed = torch.cat([grey[:6], colour[:6]]), torch.cat([grey[6:], colour[6:]])
    value, chance, score = specialisation.apart(mixed, "colour")
    assert value < 1.5 * chance
    assert score < 2
    alike = grey, grey.clone()  # no colour in either, nor in any halves
    assert specialisation.apart(alike, "colour") == (0, 0, pytest.approx(0, abs=1e-9))


@pytest.mark.slow
def test_towers_that_are_random_halves_have_a_score_from_the_normal_distribution(monkeypatch):
    """So what it is judged by, Student's interval of a few of them, is "shown" as seldom as it says."""
    monkeypatch.setattr(specialisation, "DRAWS", 200)
    scores = []
    for seed in range(100):
        filters = torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        scores.append(specialisation.apart(filters.chunk(2), "colour")[2])
    assert abs(fmean(scores)) < 2.7 / math.sqrt(len(scores))
    assert stdev(scores) == pytest.approx(1, abs=2.7 / math.sqrt(2 * len(scores)))
    assert sum(score > 1 for score in scores) == pytest.approx(16, abs=10)


def test_what_is_looked_for_is_of_the_network_that_was_trained(setting, monkeypatch):
    """With 2012's dropout, whose units are halved in a test."""
    seen = []

    def look(table, *_):
        seen.append(table)
        return Specialisation(images=1, accuracy=0.5, silenced=(), orientation=(), colour=None, similarity={})

    monkeypatch.setattr(specialisation, "DRAWS", 5)
    monkeypatch.setattr(specialisation, "specialisation", look)
    two = specialisation.variants(replace(setting, size=Size(side=64)), False)[0]
    specialisation.Looking(setting)(two, 0, two.weights(0))
    [table] = seen
    assert table == replace(two.table, dropout_scales="testing")
    assert two.table.dropout_scales == "training"


# The fully connected layers.


def test_bytes_of_fully_connected_rows_are_the_tables(fake_devices):  # noqa: F811
    table = preset("fashion", 2).scaled(1 / 16)
    found = list(fully_connected.measured("two", table, "adam"))
    rows = [row for row in table.rows() if not row.layer.kernel]
    for tower, held in enumerate(found):
        numbers = sum(row.parameters_on(tower) for row in rows)
        tensors = 2 * sum(row.parameters_on(tower) > 0 for row in rows)
        assert (held.parameters, held.gradients) == (4 * numbers, 4 * numbers)
        assert held.state == 8 * numbers + 4 * tensors  # two moments, and a step count for each tensor
    [plain] = fully_connected.measured("one", preset("fashion", 1).scaled(1 / 16), "sgd")
    assert plain.state == plain.parameters


@pytest.mark.parametrize(
    ("name", "towers", "parameters", "all_four"), [("fashion", 1, 0.172, 0.689), ("alexnet", 1, 0.235, 0.938)]
)
def test_what_is_expected_of_the_full_networks_is_the_tables(name, towers, parameters, all_four):
    numbers = sum(row.parameters for row in preset(name, towers).rows() if not row.layer.kernel)
    assert 4 * numbers / 1e9 == pytest.approx(parameters, abs=0.0006)
    assert 16 * numbers / 1e9 == pytest.approx(all_four, abs=0.0006)


def test_results_of_other_widths_are_kept(tmp_path, fake_devices):  # noqa: F811
    fully_connected.main(["--scale", "1/16", "--out", str(tmp_path)])
    kept = (tmp_path / "fully_connected.json").read_bytes()
    with pytest.raises(UsageError, match="is of --scale 1/16, not 1/32; --out keeps both"):
        fully_connected.main(["--scale", "1/32", "--out", str(tmp_path)])
    assert (tmp_path / "fully_connected.json").read_bytes() == kept


@pytest.mark.slow
def test_the_fully_connected_experiment_judges_the_textbooks_sentence(tmp_path, capsys, fake_devices):  # noqa: F811
    fully_connected.main(["--scale", "1/16", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "the opposite: parameters of the textbook's fully connected layers are nearly 1 GB" in said
    content = json.loads((tmp_path / "fully_connected.json").read_text())
    assert [claim["n"] for claim in content["claims"]] == [1] * 4
    assert content["sessions"][0]["machine"]
    assert content["sessions"][0]["started"] in (tmp_path / "fully_connected.html").read_text()
    before = (tmp_path / "fully_connected.json").read_bytes()
    fully_connected.main(["--scale", "1/16", "--out", str(tmp_path)])
    assert (tmp_path / "fully_connected.json").read_bytes() == before


def test_a_network_that_goes_while_another_is_measured_does_not_count(monkeypatch, fake_devices):  # noqa: F811
    left = [torch.zeros(1000, device="fake:0")]
    left.append(left)
    del left
    built = fully_connected.host

    def collected(*args, **options):
        gc.collect()
        return built(*args, **options)

    monkeypatch.setattr(fully_connected, "host", collected)
    [held] = fully_connected.measured("small", preset("fashion", 1).scaled(1 / 32), "sgd")
    assert held.parameters == held.gradients == held.state > 0


def test_nearly_1_gb():
    held = fully_connected.Held("one", "adam", "fake:0", 234_500_000, 234_500_000, 469_000_000)
    assert held.sums == pytest.approx([0.2345, 0.469, 0.938])
    assert [fully_connected.judged(held, i, "")["verdict"] for i in range(3)] == [
        "the opposite",
        "the opposite",
        "shown",
    ]


# The textbook.


def test_printed_losses_are_sums_over_images_and_the_others_their_means():
    for book, batch in ((textbook.ALEXNET, 128), (textbook.LENET, 256)):
        steps = -(-60_000 // batch)
        for printed, mean, *_ in book:
            assert abs(printed * 60_000 / steps - mean) < 0.001 * (1 + mean)


def records(tests=((4, 0.8), (8, 0.7))):
    steps = [
        {
            "kind": "step",
            "step": i,
            "loss": float(i),
            "accuracy": 0.5,
            "images": 100 if i % 4 < 3 else 20,
            "seconds": 2.0,
        }
        | {"ends_epoch": i % 4 == 3, "epoch": i // 4}
        for i in range(8)
    ]
    tests = [{"kind": "test", "step": step, "loss": 1.0, "accuracy": accuracy} for step, accuracy in tests]
    return [*steps[:4], tests[0], *steps[4:], tests[1]]


def write_run(folder, status="finished"):
    folder.mkdir(parents=True)
    options = {"towers": 1}
    about = {"schema": 1, "status": status, "options": options, "devices": [{"device": "cpu"}]}
    (folder / "run.json").write_text(json.dumps(about))
    lines = [json.dumps({"schema": 1} | record) for record in records()]
    (folder / "steps.jsonl").write_text("\n".join(lines) + "\n")


def test_a_runs_records_by_hand(tmp_path):
    write_run(tmp_path / "run")
    found = textbook.outcome(tmp_path / "run")
    means = [(0 + 100 + 200 + 3 * 20) / 320, (400 + 500 + 600 + 7 * 20) / 320]  # of unequal batches
    assert [epoch.loss for epoch in found.epochs] == pytest.approx(means)
    assert [epoch.test_accuracy for epoch in found.epochs] == [0.8, 0.7]
    assert (found.seconds, found.steps) == (16.0, 8)


def test_a_finished_run_is_read_and_one_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    options, network = textbook.Options(runs=tmp_path, devices="cpu,cpu"), textbook.NETWORKS["two towers"]
    asked = []

    def called(words, **_):
        asked.append([str(word) for word in words[3:]])
        folder = Path(words[words.index("--resume") + 1]) if "--resume" in words else tmp_path / parent / "20260102-run"
        if not folder.exists():
            write_run(folder)
        about = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(about | {"status": "finished"}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", called)
    parent = "two-towers-fashion-mnist-5-seed3"
    write_run(tmp_path / parent / "20260101-run", "interrupted")
    (tmp_path / parent / "20260101-run" / "checkpoints" / "step-00000004").mkdir(parents=True)
    textbook.run(network, 3, options)
    assert asked == [["--resume", str(tmp_path / parent / "20260101-run"), "--devices", "cpu,cpu"]]
    textbook.run(network, 3, options)
    assert len(asked) == 1
    textbook.run(network, 3, replace(options, fresh=True))
    assert asked[1][:8] == ["--recipe", "textbook", "--preset", "fashion", "--towers", "2", "--batch-size", "128"]
    dense = textbook.beginning(textbook.NETWORKS["LeNet"], 0, options, tmp_path)
    assert dense[2:8] == ["--preset", "lenet", "--towers", "1", "--batch-size", "256"]


@pytest.mark.parametrize(("code", "error"), [(130, KeyboardInterrupt), (1, SystemExit)])
def test_a_run_that_ends_badly_ends_the_experiment(tmp_path, monkeypatch, capsys, code, error):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: type("Done", (), {"returncode": code}))
    with pytest.raises(error):
        textbook.run(textbook.NETWORKS["LeNet"], 0, textbook.Options(runs=tmp_path))


def test_the_books_figures_stand_beside_the_means():
    found = {seed: outcome_of(loss) for seed, loss in enumerate((1.8, 1.9, 1.85))}
    table = textbook.table_of(textbook.NETWORKS["LeNet"], found)
    assert table.rows[0] == ("epoch 1", "0.0072", "1.838", "1.8500", "0.322", "0.3000", "0.584", "0.6000")
    [line] = textbook.bands({"LeNet": found})
    half = 9.925 * 0.05 * math.sqrt(1 + 1 / 3)  # Student's for 2 degrees of freedom; the deviation is 0.05
    assert textbook.one_more([1.8, 1.9, 1.85]) == pytest.approx((1.85 - half, 1.85 + half), rel=1e-4)
    assert line.startswith("LeNet, loss of epoch 1: the book's 1.838 is inside of 1.277 to 2.423, where one more")
    close = {seed: outcome_of(loss) for seed, loss in enumerate((1.8249, 1.8250, 1.8251))}
    assert "inside" in textbook.bands({"LeNet": close})[0]  # 0.0072 may have been 1.825
    assert "outside" in textbook.bands({"LeNet": {s: outcome_of(o.last.loss - 0.01) for s, o in close.items()}})[0]
    assert textbook.bands({"LeNet": {0: found[0]}}) == []


def outcome_of(loss):
    return Outcome((Epoch(loss, 0.3, 0.3, 1.0, 0.6),), (), 0, 1.0, 10, 0.1)


def test_the_textbooks_claims_are_of_its_networks():
    assert all(isinstance(claim, Claim) for claim in textbook.CLAIMS)
    found = {(claim.measure.name, claim.more, claim.less, claim.bound) for claim in textbook.CLAIMS}
    best, last = "best test accuracy", "test accuracy"
    assert found == {
        *((best, name, "", 90.0) for name in ("dense", "two towers")),
        *((last, name, "", 89.0) for name in ("dense", "two towers")),
        (last, "two towers", "dense", -1.0),
        (last, "LeNet", "", 74.0),
    }
    with pytest.raises(UsageError, match="--only dens"):
        textbook.Options(only="dens")


@pytest.mark.slow
def test_lenet_is_trained_as_a_run_and_its_verdict_printed(tmp_path, capsys):
    words = ["--only", "LeNet", "--data", "fashion-mnist-small", "--epochs", "1", "--threads", "1"]
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    textbook.main([*words, *folders])
    said = capsys.readouterr().out
    assert "not shown: LeNet's last test accuracy is above 74 %: " in said
    content = json.loads((tmp_path / "textbook.json").read_text())
    assert content["trials"][0]["outcome"]["steps"] == 8
    assert (tmp_path / "textbook.html").exists()
