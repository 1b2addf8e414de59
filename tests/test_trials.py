"""Trials of variants: the same from the same seed, kept at once, gone on with, and not mixed with other settings'."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))  # as for a script there

import conduct  # noqa: E402
import measures  # noqa: E402
import results_charts  # noqa: E402
import results_file  # noqa: E402
import results_page  # noqa: E402
import summary  # noqa: E402
from conduct import Experiment  # noqa: E402
from measures import LAST  # noqa: E402
from results_file import TUNING, ResultsFile, first_difference, read  # noqa: E402
from setting import Options, Setting, Size, about, part  # noqa: E402
from trials import Epoch, Outcome, Variant, as_large, recipe, recipe_2012, trained  # noqa: E402
from verdicts import Claim  # noqa: E402

from splitnet.errors import UsageError  # noqa: E402
from splitnet.network.execution import Execution  # noqa: E402
from splitnet.network.presets import preset  # noqa: E402
from splitnet.training.data import HeldSplit  # noqa: E402

TINY = Size(scale="1/16", epochs=2, images=140, test_images=100, batch_size=128, seeds=2)


@pytest.fixture(autouse=True)
def left_alone(monkeypatch):
    monkeypatch.setattr("splitnet.allocator.keep_freed_memory", lambda: "the allocator is left as it is")
    monkeypatch.setattr(sys, "argv", ["/elsewhere/experiments/some.py", "--seeds", "2"])


@pytest.fixture(scope="module")
def setting():
    return Setting.of(Options(data="fashion-mnist-small"), TINY)


def outcome(*accuracies, curve=(), guess=0.1, **more):
    epochs = tuple(Epoch(1.0, a, a, 2.0 - a, a) for a in accuracies)
    return Outcome(epochs, tuple(curve), 0, 1.0, 10, guess, **more)


# What trials have alike.


def test_what_is_not_asked_for_is_the_experiments_own():
    small, full = Size(epochs=3, images=500), Size(scale="1", side=None, epochs=90)
    assert Options().size(small, full) == small
    assert Options(epochs=7, images=0).size(small, full) == replace(small, epochs=7, images=0)
    assert Options(full=True, seeds=9).size(small, full) == replace(full, seeds=9)


@pytest.mark.parametrize("words", [{"scale": "wide"}, {"scale": "0"}, {"seeds": 0}, {"epochs": 0}, {"images": -1}])
def test_wrong_sizes_are_refused(words):
    with pytest.raises(UsageError, match=r"^--\w+ "):
        Options(**words)


def test_more_images_than_there_are_are_refused_if_asked_for_and_else_all_are_taken():
    small = Size(images=12_800, test_images=5_000)
    with pytest.raises(UsageError, match=r"^--images 100000: there are 2,000$"):
        Setting.of(Options(data="fashion-mnist-small", images=100_000), replace(small, images=100_000))
    with pytest.raises(UsageError, match=r"^--test-images 501: there are 500$"):
        Setting.of(Options(data="fashion-mnist-small", test_images=501), replace(small, test_images=501))
    found = Setting.of(Options(data="fashion-mnist-small"), small)
    assert (found.size.images, found.size.test_images) == (0, 0)
    assert "all training images" in str(found.size)


def test_help_says_the_experiments_own_sizes():
    text = about("Claim: a.", Size(epochs=50, images=2000), Size(scale="1", side=None, test_images=1000))
    _, own, full = text.splitlines()
    assert own.endswith(
        ": widths x 1/4, 68 pixels, 2,000 training images, 50 epochs, batch 128, all test images, 4 seeds."
    )
    assert full.startswith("With --full: widths x 1, the preset's own images, all training images, 1 epoch,")
    assert "1,000 test images" in full


def test_a_part_of_a_split_is_the_same_each_time_and_from_all_over_it():
    split = HeldSplit(torch.arange(1000, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(1000))
    one, other = part(split, 200), part(split, 200)
    labels = one.read(torch.arange(200)).labels
    assert torch.equal(labels, other.read(torch.arange(200)).labels)
    assert len(set(labels.tolist())) == len(one) == 200
    assert 400 < labels.double().mean() < 600
    batch = one.read(torch.tensor([5, 3]))
    assert batch.indices.tolist() == [5, 3]  # crops and order are keyed by the place in the part
    assert torch.equal(batch.labels, labels[[5, 3]])
    assert part(split, 0) is split
    assert part(split, 1000) is split


def test_a_recipe_is_what_run_makes_of_it():
    found = recipe("2012", crops="none")
    assert (found.optimizer, found.lr, found.bias_lr, found.weight_decay) == ("sgd", 0.01, 0.02, 0.0005)
    assert (found.init, found.pixels, found.crops, found.drops) == ("2012", "minus-mean", "none", "25,51,79")
    assert recipe("textbook").update.rate == 0.001


def test_grey_images_have_no_noise_of_colours_and_a_small_version_no_drops(setting):
    whole, small = (recipe_2012(setting, full) for full in (True, False))
    assert (whole.color_noise, whole.crops, whole.views, whole.drops) == (0.0, "chunks", 10, "25,51,79")
    assert (small.color_noise, small.crops, small.views, small.drops) == (0.0, "none", 1, None)
    assert small.bias_lr == whole.bias_lr == 0.02


def test_gains_make_up_for_inputs_that_are_missing():
    full = preset("alexnet")
    assert set(as_large(full, full).values()) == {1.0}
    gains = as_large(full.scaled(1 / 4, size=64).adapted(1, 10), full)
    assert gains["conv1"] == pytest.approx(math.sqrt(3))
    assert gains["conv2"] == pytest.approx(2.0)
    assert gains["fc6"] == pytest.approx(math.sqrt(4 * 36))  # 6x6 maps of 256 channels, here 1x1 of 64


def test_gains_are_of_weights_alone(setting):
    table = setting.table("fashion")
    plain = Variant(name="", table=table).weights(3)
    wide = Variant(name="", table=table, gains={"fc6": 8.0}).weights(3)
    assert torch.equal(wide["fc6.weight"], 8 * plain["fc6.weight"])
    assert torch.equal(wide["fc6.bias"], plain["fc6.bias"])
    assert torch.equal(wide["fc7.weight"], plain["fc7.weight"])


# A trial.


def test_a_trial_is_the_same_from_the_same_seed_and_counts_the_tables_bytes(setting):
    variant = Variant(name="a", table=setting.table("fashion"))
    one, other = trained(variant, 0, setting), trained(variant, 0, setting)
    assert one.epochs == other.epochs
    assert one.epochs != trained(variant, 1, setting).epochs
    assert one.bytes == variant.table.bytes_exchanged(128) == variant.described(setting.size)["bytes"] > 0
    assert (one.steps, len(one.epochs), one.guess) == (2 * 2, 2, 0.1)
    halved = trained(replace(variant, execution=Execution(wire="float16")), 0, setting)
    assert halved.bytes == one.bytes // 2


def test_a_trial_that_exchanges_other_bytes_than_the_table_derives_is_none(setting, monkeypatch):
    table = setting.table("fashion")
    derived = type(table).bytes_exchanged
    monkeypatch.setattr(type(table), "bytes_exchanged", lambda *words, **more: derived(*words, **more) + 4)
    with pytest.raises(AssertionError, match="bytes were exchanged in a step, the table says"):
        trained(Variant(name="a", table=table), 0, setting)


def test_one_device_for_both_towers_trains_the_same_and_exchanges_nothing(setting):
    variant = Variant(name="a", table=setting.table("fashion"))
    apart, whole = trained(variant, 0, setting), trained(variant, 0, replace(setting, devices=("cpu",)))
    assert whole.bytes == 0
    assert whole.epochs[0].loss == pytest.approx(apart.epochs[0].loss, abs=1e-4)


def test_a_trial_that_diverges_counts_as_a_guess(setting):
    variant = Variant(name="a", table=setting.table("fashion"), recipe=recipe(None, optimizer="sgd", lr=1e30))
    found = trained(variant, 0, setting)
    assert "loss" in found.diverged
    assert found.last.test_accuracy == 0.1
    assert found.last.loss == pytest.approx(math.log(10))
    assert not found.learnt


def test_what_is_looked_for_is_of_the_trained_network(setting):
    variant = Variant(name="a", table=setting.table("fashion"))

    def look(of, seed, state):
        assert (of, seed) == (variant, 5)
        moved = (state["fc8.weight"] - variant.weights(5)["fc8.weight"]).abs().max()
        return {"moved": float(moved)}

    assert trained(variant, 5, setting, look).found["moved"] > 0


def test_the_recipe_of_2012_trains_on_images_minus_their_mean(setting):
    setting = replace(setting, size=replace(TINY, side=64))
    table = setting.table("alexnet")
    variant = Variant(
        name="a", table=table, recipe=recipe_2012(setting, False), gains=as_large(table, preset("alexnet"))
    )
    found = trained(variant, 0, setting)
    assert not found.diverged
    assert found.last.loss < 3


# Measures.


def test_measures_by_hand():
    found = outcome(0.5, 0.7, 0.6, curve=(0.2, 0.7, 0.8, 0.9))
    assert measures.LAST.of(found) == pytest.approx(60.0)
    assert measures.BEST.of(found) == pytest.approx(70.0)
    assert measures.RISE.of(found) == pytest.approx(1.4 - 1.3)
    assert measures.reached(0.75).of(found) == 3 * measures.BLOCK
    assert measures.reached(0.95).of(found) == 4 * measures.BLOCK  # never: all steps
    assert measures.epochs_to(0.65).of(found) == 2
    assert measures.epochs_to(0.95).of(found) == 4
    assert measures.reached(0.75).name == "steps to 25 % training error"
    assert [measures.reached(share).late(found) for share in (0.9, 0.95)] == [False, True]
    assert [measures.epochs_to(share).late(found) for share in (0.7, 0.75)] == [False, True]
    assert not measures.LAST.late(found)


# The results' file.


CLAIM = Claim(
    text="a is better", source="ours", published="+1 points", measure=LAST, more="a", less="b", comparable="All of it."
)


def experiment(setting):
    table = setting.table("fashion")
    variants = [Variant(name="a", table=table), Variant(name="b", table=table.without("dropout"))]
    return Experiment(name="some", text="Claim: a is better.\n\nSource: ours.", variants=variants, claims=[CLAIM])


@pytest.fixture
def told(monkeypatch):
    """Trials that are made up, and which were made."""
    made = []

    def made_up(variant, seed, setting, look=None):
        made.append((variant.name, seed))
        return outcome(0.5 + 0.01 * seed + (0.2 + 0.001 * seed) * (variant.name == "a"), curve=(0.4, 0.5))

    monkeypatch.setattr(conduct, "trained", made_up)
    return made


def test_trials_alternate_and_more_seeds_add_only_these(setting, told, tmp_path, capsys):
    options = Options(out=tmp_path)
    conduct.conduct(experiment(setting), options, setting)
    assert told == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    said = capsys.readouterr().out
    assert "shown: a is better: test accuracy, a - b: +20.05 points (99 %" in said
    assert "n 2); published: +1 points" in said
    more = replace(setting, size=replace(TINY, seeds=3))
    conduct.conduct(experiment(setting), options, more)
    assert told[4:] == [("a", 2), ("b", 2)]
    content = results_file.read(tmp_path / "some.json")
    assert content["claims"][0]["n"] == 3
    assert [session["command"] for session in content["sessions"]] == [
        ["python", "experiments/some.py", "--seeds", "2"]
    ] * 2
    assert [trial["session"] for trial in content["trials"]] == [0, 0, 0, 0, 1, 1]


def test_nothing_to_train_changes_no_byte(setting, told, tmp_path, monkeypatch):
    found = []
    for words in (["--seeds", "2"], ["--threads", "7"]):
        monkeypatch.setattr(sys, "argv", ["/elsewhere/experiments/some.py", *words])
        conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
        found.append([(tmp_path / name).read_bytes() for name in ("some.json", "some.html")])
    assert len(told) == 4
    assert found[0] == found[1]
    assert results_file.read(tmp_path / "some.json")["command"] == "python experiments/some.py --seeds 2"


def test_a_command_that_is_copied_forgets_nothing(setting, told, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/some.py", "--fresh", "--seeds", "2"])
    conduct.conduct(experiment(setting), Options(out=tmp_path, fresh=True), setting)
    content = results_file.read(tmp_path / "some.json")
    assert content["command"] == "python experiments/some.py --seeds 2"
    assert "--fresh" not in content["sessions"][0]["command"]


def test_what_is_said_of_the_files(setting, told, tmp_path, capsys):
    one = replace(setting, size=replace(TINY, seeds=1))
    alone = replace(experiment(setting), variants=experiment(setting).variants[:1], claims=[])
    for _ in range(2):
        conduct.conduct(alone, Options(out=tmp_path / "res"), one)
    said = capsys.readouterr().out
    assert "1 trial is in some.json; what is not there is trained" in said
    assert f"some.json and some.html are in {tmp_path / 'res'}\n" in said


def test_what_cannot_be_written_is_one_line(setting, told, tmp_path):
    (tmp_path / "some.html").mkdir()
    with pytest.raises(UsageError, match=r"some\.html: cannot be written \("):
        conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    (tmp_path / "index.html").mkdir()
    with pytest.raises(UsageError, match=r"index\.html: cannot be written \("):
        summary.main([str(tmp_path), "--index"])


def test_an_experiment_whose_reader_leaves_loses_no_trial(setting, told, tmp_path, monkeypatch):
    def left(text, **_):
        if "seed 1, a" in text:
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", left)
    with pytest.raises(BrokenPipeError):
        conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    assert len(results_file.read(tmp_path / "some.json")["trials"]) == len(told) == 3


def test_an_interrupted_experiment_goes_on_where_it_was(setting, told, tmp_path, monkeypatch, capsys):
    made_up, calls = conduct.trained, []

    def interrupted(*words):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(words)
        return made_up(*words)

    monkeypatch.setattr(conduct, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    assert capsys.readouterr().err == "\nInterrupted: 3 trials are in some.json; the same command goes on.\n"
    assert len(results_file.read(tmp_path / "some.json")["trials"]) == 3
    assert not (tmp_path / "some.html").exists()
    monkeypatch.setattr(conduct, "trained", made_up)
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    assert told == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.mark.slow
def test_a_signal_that_ends_an_experiment_says_what_is_kept(tmp_path):
    words = "--scale 1/16 --epochs 1 --images 256 --test-images 100 --threads 1 --data fashion-mnist-small --seeds 40"
    command = [sys.executable, "experiments/dropout.py", *words.split(), "--out", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        while "seed 0, no dropout" not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()
        _, err = process.communicate(timeout=60)
    kept = len(results_file.read(tmp_path / "dropout.json")["trials"])
    assert (process.returncode, err) == (
        143,
        f"\nInterrupted: {kept} trials are in dropout.json; the same command goes on.\n",
    )


def test_devices_that_are_not_there_are_refused_before_anything_is_told(setting, told, tmp_path, capsys):
    elsewhere = replace(setting, devices=("cuda:98", "cuda:99"))
    with pytest.raises(UsageError, match="cuda:98"):
        conduct.conduct(experiment(setting), Options(out=tmp_path), elsewhere)
    assert (capsys.readouterr().out, told) == ("", [])


@pytest.mark.slow
def test_a_killed_command_loses_the_trial_under_way_alone(tmp_path):
    """A process of its own, killed as soon as its first trials are in the file, and begun again."""
    words = "--scale 1/16 --epochs 1 --images 256 --test-images 100 --threads 1 --data fashion-mnist-small --seeds"
    command = [sys.executable, "experiments/dropout.py", *words.split(), "40", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        while "seed 1, dropout" not in process.stdout.readline():
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    kept = results_file.read(tmp_path / "dropout.json")["trials"]
    assert len(kept) >= 3
    command[command.index("40")] = "2"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "seed 0" not in done.stdout
    now = results_file.read(tmp_path / "dropout.json")["trials"]
    assert now[: len(kept)] == kept
    assert {(t["variant"], t["seed"]) for t in now} >= {(v, s) for v in ("dropout", "no dropout") for s in (0, 1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: replace(s, size=replace(TINY, epochs=3)), "epochs 2, not 3"),
        (lambda s: replace(s, size=replace(TINY, scale="1/8")), "scale 1/16, not 1/8"),
        (lambda s: replace(s, devices=("cpu",)), "devices cpu,cpu, not cpu"),
    ],
)
def test_trials_of_other_settings_are_not_mixed_in(setting, told, tmp_path, change, said):
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    before = (tmp_path / "some.json").read_bytes()
    other = change(setting)
    with pytest.raises(UsageError, match=rf"some.json: holds trials of {said}; --fresh forgets them, --out"):
        conduct.conduct(experiment(other), Options(out=tmp_path), other)
    assert (tmp_path / "some.json").read_bytes() == before
    conduct.conduct(experiment(other), Options(out=tmp_path, fresh=True), other)
    assert len(told) == 8


def test_trials_of_a_variant_that_has_changed_are_not_mixed_in(setting, told, tmp_path):
    options, first = Options(out=tmp_path), experiment(setting)
    conduct.conduct(first, options, setting)
    a, b = first.variants
    wider = replace(first, variants=[a, replace(b, table=b.table.changed("fashion", fc6={"out": 258}))])
    with pytest.raises(UsageError, match=r"holds trials of variant b.*256, not 258"):
        conduct.conduct(replace(wider), options, setting)
    faster = replace(first, variants=[a, replace(b, recipe=recipe("textbook", lr=0.01))])
    with pytest.raises(UsageError, match=r"holds trials of variant b.recipe.lr 0.001, not 0.01"):
        conduct.conduct(faster, options, setting)
    conduct.conduct(
        replace(first, variants=[a, b, replace(a, name="c")]), options, setting
    )  # one more is none of these
    assert told[4:] == [("c", 0), ("c", 1)]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99, "experiment": "some"}', '{"schema": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"some\.json"):
        ResultsFile.open(path, "some")
    with ResultsFile.open(path, "some", fresh=True) as file:
        assert file.trials == []


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        (0, "no trial has ended; the same command goes on."),
        (1, "1 trial is in some.json; the same command without --fresh goes on."),
    ],
)
def test_what_an_interrupt_of_a_fresh_experiment_says(tmp_path, capsys, trials, said):
    def interrupted():
        with ResultsFile.open(tmp_path / "some.json", "some", fresh=True) as file:
            file.begin({}, {"a": {}})
            for seed in range(trials):
                file.add("a", seed, outcome(0.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == f"\nInterrupted: {said}\n"


def test_a_cut_file_says_a_way_out(tmp_path):
    path = tmp_path / "some.json"
    path.write_text('{"schema": 1, "exp')
    with pytest.raises(
        UsageError, match=r"some\.json: no whole JSON; remove it, or begin its experiment anew with --fresh$"
    ):
        read(path)


def test_two_commands_do_not_write_one_file(tmp_path):
    path = tmp_path / "results" / "some.json"
    with ResultsFile.open(path, "some") as file:
        file.begin({}, {"a": {}})
        file.add("a", 0, outcome(0.5))
        with pytest.raises(UsageError, match=r"some\.json: another command adds trials to it"):
            ResultsFile.open(path, "some", fresh=True)
        with ResultsFile.open(tmp_path / "results" / "other.json", "other") as other:
            assert other.trials == []
    with ResultsFile.open(path, "some") as again:
        assert len(again.trials) == 1


def test_the_file_has_a_line_for_each_trial_and_reads_back_what_it_was(tmp_path):
    found = outcome(0.5, 0.6, curve=(0.1, 0.2), found={"colour": 0.5})
    with ResultsFile.open(tmp_path / "some.json", "some") as file:
        file.begin({"epochs": 2}, {"a": {}})
        file.add("a", 0, found)
        file.add("a", TUNING, outcome(0.9))
    text = file.path.read_text()
    assert json.loads(text)["trials"][0]["seed"] == 0
    assert len([line for line in text.splitlines() if '"variant"' in line]) == 2
    again = ResultsFile(file.path, read(file.path))
    assert again.outcomes()["a"][0] == found
    assert set(again.outcomes()["a"]) == {0, TUNING}
    assert set(again.outcomes(judged=True)["a"]) == {0}


def test_the_first_difference_by_hand():
    assert first_difference({"a": 1, "b": [1, {"c": 2}]}, {"a": 1, "b": [1, {"c": 3}]}) == "b[1].c 2, not 3"
    assert first_difference({"a": 1}, {}, "variant ") == "variant a that is not there now"
    assert first_difference({}, {"a": 1}) == "a that was not there"
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == "a [1], not [1, 2]"
    assert first_difference({"a": 1}, {"a": 1}) == ""


# The page, and all of them.


def test_the_page_needs_nothing_else_and_says_every_verdict(setting, told, tmp_path):
    conduct.conduct(replace(experiment(setting), says="One thing: <not> measured."), Options(out=tmp_path), setting)
    text = (tmp_path / "some.html").read_text()
    assert "<strong>Shown</strong>: a is better." in text
    assert "+20.05 points" in text
    assert "&lt;not&gt;" in text
    assert "<script" not in text
    assert "src=" not in text
    assert not re.search(r'href="(?!data:)', text)
    assert "default-src 'none'" in text
    assert text.count("<svg") == 2  # intervals, and accuracy by step; a single epoch has no curve
    assert "viewport" in text
    assert "prefers-color-scheme: dark" in text


def test_a_page_is_made_again_from_its_file(setting, told, tmp_path):
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    made = results_page.page(results_file.read(tmp_path / "some.json"))
    assert made == (tmp_path / "some.html").read_text()


def record(text="a is better", **changes):
    judged = CLAIM.judge({"a": {0: outcome(0.7), 1: outcome(0.8)}, "b": {0: outcome(0.6), 1: outcome(0.6)}}).record()
    return judged | {"claim": text} | changes


def words_of(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>", str(drawing))


def test_charts_are_titled_what_they_are():
    exact = record(low=None, high=None, n=1, values=[0.2], unit="GB", level=True)
    percent = record(unit="%", level=True)
    drawn = results_charts.forests([record(), exact, percent, record(ratio=True, unit=""), record(values=[])])
    assert [drawing.title for drawing in drawn] == [
        "Differences, points, and their 99 % intervals",
        "Values, GB",
        "Values, %, and their 99 % intervals",
        "Ratios, and their 99 % intervals",
    ]
    assert all("claimed: above this line" in words_of(drawing) for drawing in drawn)
    assert ["a seed" in words_of(drawing) for drawing in drawn] == [True, False, True, True]
    assert ["99 % interval" in words_of(drawing) for drawing in drawn] == [True, False, True, True]
    assert results_charts.forests([record(values=[])]) == []


def test_the_bounds_of_a_chart_have_their_numbers():
    drawing = results_charts.forest("some", [record(bound=-1.0), record(bound=0.0)])
    assert [words for words in words_of(drawing) if words in ("-1", "0")] == ["-1", "0"]


def test_a_figure_says_what_it_is_of_and_the_bound_unless_that_is_none():
    judged = {"what": "accuracy, a - b", "figure": "+1.18 points (99 % -0.11 to +2.48, n 4)", "ratio": False}
    cut = {"figure": "at least 4.3 (99 % above 3.1, n 3); not reached by 2 of 6", "ratio": True}
    assert [
        results_page.figured(judged | more) for more in ({"bound": -1.0}, {"bound": 0.0}, cut | {"bound": 1.5})
    ] == [
        "accuracy, a - b: +1.18 points (99 % -0.11 to +2.48, n 4; bound -1)",
        "accuracy, a - b: +1.18 points (99 % -0.11 to +2.48, n 4)",
        "accuracy, a - b: at least 4.3 (99 % above 3.1, n 3; bound 1.5); not reached by 2 of 6",
    ]


def test_a_command_on_the_page_is_as_a_shell_reads_it(setting, told, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/some.py", "--only", "two towers"])
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    words = "python experiments/some.py --only &#x27;two towers&#x27;"
    assert words in (tmp_path / "some.html").read_text()


def test_an_interval_without_an_end_is_drawn_to_the_edge():
    drawing = str(results_charts.forest("some", [record(low=0.5, high=None, ratio=True)]))
    [[x, wide]] = re.findall(r'<rect x="([\d.]+)"[^>]* width="([\d.]+)" height="4"[^>]*><title>', drawing)
    assert float(x) + float(wide) == pytest.approx(results_charts.WIDTH - 20, abs=0.1)


def test_charts_are_of_seeds_that_are_judged_and_of_trainings_that_began():
    def trial(name, seed, *curve):
        return {"variant": name, "seed": seed, "outcome": {"curve": curve, "epochs": [{"test_accuracy": 0.5}]}}

    tuning, none = trial("other", TUNING, 0.1, 0.1), trial("diverged", 0)
    content = {"trials": [trial("a", 0, 0.2, 0.4), trial("a", 1, 0.4, 0.6), trial("a", TUNING, 0.9, 0.9), tuning, none]}
    assert results_charts._by_variant(content, lambda outcome: outcome["curve"]) == {"a": pytest.approx([30, 50])}
    assert "a: 50" in words_of(results_charts.by_step(content))
    assert results_charts.by_step({"trials": [none]}) is None
    assert results_charts.by_epoch({"trials": []}) is None


def test_a_page_is_made_of_trainings_that_diverged_at_once(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(conduct, "trained", lambda *_: replace(outcome(0.1), curve=(), steps=0, diverged="loss is nan"))
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    assert "diverged from 2 of 2 seeds" in (tmp_path / "some.html").read_text()


def test_long_labels_are_wrapped():
    long = "without dropout there is more overfitting, by this measure (accuracy)"
    drawing = results_charts.forest("some", [record(long), record()])
    said = words_of(drawing)
    assert f"{said[1]} {said[2]}" == f"not shown: {long}"
    assert all(len(words) <= results_charts.LETTERS for words in said)


@pytest.mark.parametrize(
    ("least", "most", "first", "last"), [(13, 97, 0, 100), (53, 76, 50, 80), (100, 100, 99.8, 100), (0, 0, 0, 0.2)]
)
def test_an_axis_of_percentages_ends_at_100(least, most, first, last):
    marks = results_charts._marks(least, most)
    assert (marks[0], marks[-1]) == pytest.approx((first, last))


def test_accuracies_that_differ_have_names_that_differ(setting, told, tmp_path):
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    text = (tmp_path / "some.html").read_text()
    assert "training, as in a test" in text
    assert "Training accuracy while learning, %, by step" in text


def test_no_number_of_images_is_said_to_be_all(setting, told, tmp_path):
    everything = replace(setting, size=replace(TINY, images=0, side=None))
    conduct.conduct(experiment(setting), Options(out=tmp_path), everything)
    text = (tmp_path / "some.html").read_text()
    assert "<li>images: all</li>" in text
    assert "<li>side: the preset&#x27;s</li>" in text
    assert "<li>test images: 100</li>" in text


def test_a_link_is_to_the_folder_that_is_given(tmp_path):
    assert summary.shown(ROOT / "experiments" / "results") == "experiments/results"
    assert summary.shown(tmp_path / "my results") == f"{tmp_path}/my%20results"


def test_readme_and_index_are_of_the_results_that_lie_there():
    """After trials of your own: python experiments/summary.py --index, and its table into README."""
    folder = ROOT / "experiments" / "results"
    contents = summary.found(folder)
    table, _, commands = summary.markdown(contents, folder).partition("\n\n")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table in readme
    assert " ".join(commands.split()) in " ".join(readme.split())
    assert (folder / "index.html").read_text(encoding="utf-8") == summary.index(contents)


def test_the_summary_has_a_line_for_each_claim_and_the_commands(setting, told, tmp_path, capsys):
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    conduct.conduct(experiment(setting), Options(out=tmp_path, full=True), setting)
    capsys.readouterr()
    summary.main([str(tmp_path), "--index"])
    said = capsys.readouterr().out.splitlines()
    [line] = [line for line in said if line.startswith(f"| [some]({tmp_path}/some.html)")]
    assert "| a is better | +1 points | test accuracy, a - b: +20.05 points (99 %" in line
    assert "| shown | All of it. |" in line
    assert any(line.startswith("| [some-full](") for line in said)
    assert said[-1].startswith(
        "- `python experiments/some.py --seeds 2`: widths x 1/16, 68 pixels, 140 training images"
    )
    text = (tmp_path / "index.html").read_text()
    assert '<a href="some-full.html">' in text
    assert text.count('<td class="text">a is better</td>') == 2
    assert '<td class="text">test accuracy, a - b: +20.05 points (99 %' in text


def test_the_summary_has_every_command_that_made_trials(setting, told, tmp_path, monkeypatch, capsys):
    for seeds in (2, 2, 3):
        monkeypatch.setattr(sys, "argv", ["some.py", "--seeds", str(seeds)])
        conduct.conduct(experiment(setting), Options(out=tmp_path), replace(setting, size=replace(TINY, seeds=seeds)))
    capsys.readouterr()
    summary.main([str(tmp_path)])
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first == "- `python experiments/some.py --seeds 2`,"
    assert second.startswith("  `python experiments/some.py --seeds 3`: widths x 1/16")


def test_a_summary_says_what_has_not_ended(setting, told, tmp_path, capsys):
    def begun(name, seeds):
        with ResultsFile.open(tmp_path / f"{name}.json", name) as file:
            file.begin({}, {"a": {}})
            for seed in range(seeds):
                file.add("a", seed, outcome(0.5))

    begun("dropout", 3)
    line = r"no results of an experiment that has ended: dropout: 3 trials, not finished$"
    with pytest.raises(UsageError, match=line):
        summary.main([str(tmp_path)])
    begun("other", 1)
    conduct.conduct(experiment(setting), Options(out=tmp_path), setting)
    capsys.readouterr()
    summary.main([str(tmp_path)])
    said = capsys.readouterr()
    assert said.err == "dropout: 3 trials, not finished\nother: 1 trial, not finished\n"
    assert "not finished" not in said.out


def test_a_summary_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no results"):
        summary.main([str(tmp_path)])
