"""What trials say of a claim: intervals and verdicts by hand, and no verdict of what was not learnt or not measured."""

import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "experiments"))  # as for a script there

from verdicts import Claim, Interval, Measure

POINTS = Measure("accuracy", lambda outcome: outcome.value, "points")
STEPS = Measure("steps", lambda outcome: outcome.value, ratio=True)


@dataclass(frozen=True)
class Found:
    value: float
    learnt: bool = True
    diverged: str = ""


def claim(measure=POINTS, less="b", **more):
    return Claim(
        text="a is better", source="ours", published="+1", measure=measure, more="a", less=less, comparable="", **more
    )


def trials(a, b):
    return {name: {seed: Found(value) for seed, value in enumerate(line)} for name, line in (("a", a), ("b", b))}


def test_an_interval_by_hand():
    found = Interval.of([1.0, 2.0, 3.0])
    half = 9.925 * 1.0 / math.sqrt(3)  # Student's for 2 degrees of freedom; the deviation is 1
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


def test_many_values_are_given_the_wider_interval_of_31():
    values = [0.0, 1.0] * 50
    deviation = math.sqrt(100 * 0.25 / 99)
    assert Interval.of(values).high == pytest.approx(0.5 + 2.750 * deviation / 10)


def test_one_value_has_no_interval_and_shows_nothing():
    assert Interval.of([5.0]) == Interval(5.0, None, None, 1)
    assert Interval.of([5.0]).judged(0.0) == "not shown"


@pytest.mark.parametrize(
    ("values", "bound", "verdict"),
    [
        ((2.0, 2.1, 1.9), 0.0, "shown"),
        ((-2.0, -2.1, -1.9), 0.0, "the opposite"),
        ((2.0, 2.1, 1.9), 2.0, "not shown"),
        ((2.0, 2.1, 1.9), 3.0, "the opposite"),
        ((-0.1, 0.0, 0.1), -1.0, "shown"),
        ((1.0, -1.0, 0.5), 0.0, "not shown"),
        ((0.0, 0.0, 0.0), 0.0, "not shown"),
        ((3.0, 3.0, 3.0), 0.0, "not shown"),
        ((-3.0, -3.0), 0.0, "not shown"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(values, bound, verdict):
    assert Interval.of(values).judged(bound) == verdict


def test_differences_are_of_the_same_seed():
    """Seeds differ by tens, the pairs by one: unpaired, nothing would be shown."""
    judged = claim().judge(trials([11.0, 32.1, 50.9], [10.0, 31.0, 50.0]))
    assert judged.values == pytest.approx((1.0, 1.1, 0.9))
    assert judged.verdict == "shown"
    assert judged.figure == "+1.00 points (99 % +0.43 to +1.57, n 3)"
    assert judged.line == (
        "shown: a is better: accuracy, a - b: +1.00 points (99 % +0.43 to +1.57, n 3); published: +1"
    )


def test_a_ratio_is_a_geometric_mean_and_turned_round_the_inverse():
    one = claim(STEPS).judge(trials([20.0, 80.0], [10.0, 10.0]))
    other = claim(STEPS).judge(trials([10.0, 10.0], [20.0, 80.0]))
    assert one.interval.mean == pytest.approx(4.0)
    assert one.values == pytest.approx((2.0, 8.0))
    assert other.interval.low == pytest.approx(1 / one.interval.high)
    assert one.what == "steps, a / b"
    assert claim(STEPS).bound == 1.0


def test_seeds_that_one_variant_lacks_are_left_out():
    found = trials([1.0, 2.0, 3.0], [0.0, 0.0])
    assert claim().judge(found).values == (1.0, 2.0)
    assert claim().judge({"a": found["a"]}) is None


def test_without_another_variant_the_figure_itself_is_judged():
    level = Measure("accuracy", lambda outcome: outcome.value, "points", level="%")
    judged = claim(level, less="", above=74.0).judge(trials([75.0, 75.1, 74.9], []))
    assert judged.verdict == "shown"
    assert judged.figure.startswith("75.00 % (99 % 74.43 to 75.57")
    assert (judged.record()["unit"], judged.record()["level"]) == ("%", True)
    assert claim(level).unit == "points"
    assert ", above 74.00 wanted" in judged.line


def test_nothing_is_shown_of_networks_that_guess():
    """That one costs nothing, say: both are at chance, and no difference is within a point."""
    found = trials([10.0, 10.01, 10.0], [10.0, 10.0, 10.0])
    assert claim(above=-1.0).judge(found).verdict == "shown"
    guessing = {name: {seed: Found(f.value, learnt=False) for seed, f in line.items()} for name, line in found.items()}
    judged = claim(above=-1.0).judge(guessing)
    assert judged.verdict == "not shown"
    assert "the networks only guess" in judged.line
    guessing["a"][0] = Found(10.0)
    assert claim(above=-1.0).judge(guessing).verdict == "shown"  # one of the two learnt


def test_a_claim_of_trainings_that_diverged_is_told_and_not_shown():
    """What the others say would be shown."""

    def looked(outcome):
        return {1.0: 1.0, 1.1: 1.1, 0.9: 0.9}[outcome.value]

    measure = Measure("looked", looked)
    found = trials([1.0, 1.1, 1.1, 7.0], [0.9, 1.0, 1.0, 1.0])
    assert claim(measure, above=-1.0).judge(trials([1.0, 1.1, 1.1], [0.9, 1.0, 0.9])).verdict == "shown"
    unsought = claim(measure, above=-1.0).judge(found)
    assert (unsought.verdict, unsought.missing) == ("not shown", "not looked for in those of 1 of 4 seeds")
    found["a"][3] = Found(7.0, diverged="loss is nan")
    judged = claim(measure, above=-1.0).judge(found)
    assert len(judged.values) == 3
    assert judged.verdict == "not shown"
    assert judged.figure.endswith("n 3); diverged from 1 of 4 seeds")
    both = {"a": dict.fromkeys(range(2), found["a"][3]), "b": {seed: Found(1.0) for seed in range(2)}}
    nothing = claim(measure).judge(both)
    assert (nothing.verdict, nothing.figure, nothing.values) == ("not shown", "diverged from 2 of 2 seeds", ())


def test_what_a_training_that_diverged_came_to_is_no_figure_unless_the_measure_says_so():
    found = trials([1.0, 1.1, 0.9, 50.0], [0.0, 0.0, 0.0, 0.0])
    found["a"][3] = Found(50.0, diverged="loss is nan")
    judged = claim().judge(found)
    assert judged.values == pytest.approx((1.0, 1.1, 0.9))
    assert (judged.verdict, judged.missing) == ("not shown", "diverged from 1 of 4 seeds")
    guessed = claim(replace(POINTS, diverged=True)).judge(found)
    assert guessed.values[-1] == 50.0
    assert not guessed.missing


def test_a_figure_without_a_step_is_none():
    assert not Measure("s", lambda outcome: 1 / outcome.value, diverged=True).has(Found(0.0, diverged="at once"))


def steps_below(most, **more):
    """Steps, which are not reached where there are as many as that."""
    return Measure("steps", lambda o: o.value, ratio=True, arrives=lambda outcome: outcome.value < most, **more)


def test_equal_counts_are_too_coarse_to_show_anything():
    judged = claim(steps_below(4)).judge(trials([3.0, 3.0], [1.0, 1.0]))
    assert (judged.verdict, judged.figure) == ("not shown", "3 (99 % 3 to 3, n 2)")


def test_nothing_is_shown_where_one_never_got_there():
    judged = claim(steps_below(3)).judge(trials([3.0, 3.0, 2.0], [3.0, 1.0, 1.0]))
    assert (judged.verdict, judged.figure, judged.interval) == ("not shown", "not reached by 3 of 6", None)
    assert judged.line == "not shown: a is better: steps, a / b: not reached by 3 of 6; published: +1"
    record = judged.record()
    assert (record["mean"], record["low"], record["high"], record["n"], record["values"]) == (None, None, None, 0, [])


def test_a_ratio_to_one_that_got_there_is_at_least_that():
    measure = steps_below(9, at_least=True)
    judged = claim(measure).judge(trials([9.0, 9.0, 8.0], [2.0, 2.1, 1.9]))
    assert judged.verdict == "shown"
    assert re.fullmatch(r"at least 4\.3\d* \(99 % above 3\.\d+, n 3\); not reached by 2 of 6", judged.figure)
    record = judged.record()
    assert record["low"] < record["mean"]
    assert record["high"] is None  # it would be of the steps that there were
    assert claim(measure, above=9.0).judge(trials([9.0, 9.0, 9.0], [2.0, 2.1, 1.9])).verdict == "not shown"
    assert claim(measure).judge(trials([9.0, 9.0], [2.0, 9.0])).figure == "not reached by 3 of 4"


def test_a_record_has_what_the_page_and_the_summary_say():
    record = claim().judge(trials([1.0, 2.0], [0.0, 0.5])).record()
    assert record["verdict"] == "not shown"
    assert (record["n"], record["values"], record["bound"], record["published"]) == (2, [1.0, 1.5], 0.0, "+1")
