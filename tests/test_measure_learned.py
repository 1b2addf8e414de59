"""What was learned, in numbers: filters made by hand, and similarity beside another formula for it."""

from math import pi

import numpy as np
import pytest
import torch

from splitnet.measure.learned import colour_energy, nearest, orientation_energy, predictions, similarity


def places(side=11):
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    return torch.meshgrid(axis, axis, indexing="ij")


def grating(u, v, phase=0.3, side=11):
    """One filter (1, 1, side, side) of u periods down and v across."""
    y, x = places(side)
    return torch.cos(2 * pi * (u * y + v * x) / side + phase)[None, None]


def blob(width=2.0):
    y, x = places()
    return torch.exp(-(x**2 + y**2) / (2 * width**2))[None, None]


# Colour


def test_grey_filters_have_no_colour():
    assert colour_energy(torch.randn(5, 1, 11, 11).expand(-1, 3, -1, -1)) == pytest.approx(0, abs=1e-12)


def test_filters_that_cancel_over_the_channels_have_nothing_else():
    weights = torch.randn(5, 3, 11, 11, dtype=torch.float64)
    assert colour_energy(weights - weights.mean(1, keepdim=True)) == pytest.approx(1)


def test_a_red_filter_has_two_thirds():
    """(1, 0, 0) is a grey of a third each, and what is left: 4/9 + 1/9 + 1/9."""
    weights = torch.zeros(1, 3, 2, 2)
    weights[:, 0] = 1
    assert colour_energy(weights) == pytest.approx(2 / 3)


def test_colour_is_weighted_by_energy():
    grey, red = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert colour_energy(torch.cat([2 * grey, red])) == pytest.approx((4 * 2 / 3) / (4 * 12 + 4))


def test_independent_weights_have_two_thirds_of_colour():
    assert colour_energy(torch.randn(96, 3, 11, 11)) == pytest.approx(2 / 3, abs=0.02)


# Orientation


@pytest.mark.parametrize(("u", "v"), [(0, 1), (3, 0), (2, 2), (2, -2), (1, 3), (-3, 2)])
@pytest.mark.parametrize("side", [11, 8])
def test_a_grating_is_all_orientation(u, v, side):
    assert orientation_energy(grating(u, v, side=side)) == pytest.approx(1)


def test_every_filter_may_point_its_own_way():
    assert orientation_energy(torch.cat([grating(0, 2), 5 * grating(2, 0)])) == pytest.approx(1)


@pytest.mark.parametrize(("one", "other"), [((0, 2), (2, 0)), ((2, 2), (2, -2)), ((1, 3), (3, -1))])
def test_gratings_that_cross_at_a_right_angle_cancel(one, other):
    assert orientation_energy(grating(*one) + grating(*other)) == pytest.approx(0, abs=1e-9)


def test_gratings_that_cross_at_half_of_it_do_not():
    """The mean of two unit vectors at a right angle, once doubled."""
    assert orientation_energy(grating(0, 2) + grating(2, 2)) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    "filters",
    [torch.ones(1, 1, 11, 11), blob(), blob(1.2), torch.zeros(2, 3, 11, 11), torch.eye(1)[None, None]],
    ids=["constant", "blob", "smaller blob", "nothing", "one pixel"],
)
def test_what_has_no_direction_has_none(filters):
    assert orientation_energy(filters) == pytest.approx(0, abs=1e-9)


def test_a_checkerboard_has_no_direction():
    """At an even side: the highest frequency both ways is both diagonals."""
    y, x = places(8)
    assert orientation_energy(((-1.0) ** (x + y))[None, None]) == pytest.approx(0, abs=1e-9)


def test_a_constant_beside_stripes_counts():
    """Energy of a cosine is half of its square."""
    assert orientation_energy(grating(0, 2) + 1) == pytest.approx(0.5 / 1.5)


def test_turned_filters_have_the_same():
    weights = torch.randn(8, 3, 11, 11)
    assert orientation_energy(weights.rot90(1, (2, 3))) == pytest.approx(orientation_energy(weights))
    assert orientation_energy(weights.transpose(2, 3)) == pytest.approx(orientation_energy(weights))


@pytest.mark.parametrize("angle", [0.0, 0.4, pi / 4, 1.3, 2.5])
def test_gabor_filters_have_much_of_it_and_noise_little(angle):
    y, x = places()
    along = torch.cos(2 * pi * 0.2 * (x * np.cos(angle) + y * np.sin(angle)))
    assert orientation_energy(along * blob(2.5)) > 0.8
    assert orientation_energy(torch.randn(96, 3, 11, 11)) < 0.1


def test_colours_of_one_grating_add_up():
    weights = torch.cat([grating(1, 2, phase) for phase in (0.0, 1.0, 2.0)], dim=1)
    assert orientation_energy(weights) == pytest.approx(1)


# Similarity


def centred(x):
    """A Gram matrix whose means are taken off so that the sum of products has no bias, entry by entry.

    Székely and Rizzo 2014, Annals of Statistics 42, equation 3.1: another way to the estimate of Song et al.
    """
    gram, n = x @ x.T, len(x)
    np.fill_diagonal(gram, 0)
    lines, total = gram.sum(1), gram.sum()
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                found[i, j] = gram[i, j] - (lines[i] + lines[j]) / (n - 2) + total / ((n - 1) * (n - 2))
    return found


def by_hand(x, y):
    one, other = centred(x), centred(y)
    return (one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum())


def related(n, p, q, shared, seed=1):
    """Features of n images that have `shared` causes in common, and as much noise."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(n, shared))
    return tuple(causes @ rng.normal(size=(shared, width)) + rng.normal(size=(n, width)) for width in (p, q))


@pytest.mark.parametrize("shape", [(5, 3, 2, 1), (30, 4, 9, 2), (24, 200, 150, 3)])
def test_similarity_is_that_of_another_formula(shape):
    x, y = related(*shape)
    assert similarity(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(by_hand(x, y), rel=1e-9)


def test_features_are_similar_to_themselves_turned_moved_and_scaled():
    x = torch.randn(40, 12, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    assert similarity(x, x) == pytest.approx(1)
    assert similarity(x, 1e-3 * x @ turn + 7) == pytest.approx(1)


def test_similarity_has_no_side():
    x, y = map(torch.from_numpy, related(20, 6, 4, 2))
    assert similarity(x, y) == pytest.approx(similarity(y, x))


def test_unrelated_features_are_not_similar_however_many_there_are():
    """The plain estimate is near 1 here."""
    x, y = torch.randn(64, 4096, dtype=torch.float64), torch.randn(64, 4096, dtype=torch.float64)
    grams = [(z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y)]
    plain = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    assert plain > 0.9
    assert abs(similarity(x, y)) < 0.05


def test_similarity_needs_images_that_differ():
    x = torch.randn(8, 3)
    assert similarity(x, torch.ones(8, 3)) is None
    assert similarity(torch.zeros(8, 3), x) is None
    assert similarity(x[:3], x[:3]) is None


def test_tiny_and_huge_features_are_compared():
    x, y = map(torch.from_numpy, related(20, 6, 4, 2))
    for one, other in ((1e-37, 1e-37), (1e37, 1e37), (1e-37, 1e37)):
        assert similarity((one * x).float(), (other * y).float()) == pytest.approx(similarity(x, y), rel=1e-5)


# Nearest and likeliest


def test_nearest_are_those_of_squared_distance():
    rng = np.random.default_rng(3)
    features, queries = rng.normal(size=(50, 7)).astype(np.float32), rng.normal(size=(4, 7)).astype(np.float32)
    found, distances = nearest(torch.from_numpy(queries), torch.from_numpy(features), 6)
    for query, line, apart in zip(queries, found.numpy(), distances.numpy(), strict=True):
        squares = np.array([sum((float(a) - float(b)) ** 2 for a, b in zip(f, query, strict=True)) for f in features])
        assert line.tolist() == np.argsort(squares)[:6].tolist()
        assert apart == pytest.approx(np.sort(squares)[:6])


def test_an_image_is_its_own_nearest_and_the_first_of_equals_comes_first():
    features = torch.tensor([[1.0, 0], [3, 0], [1, 0], [0, 0]])
    found, distances = nearest(features[2:3], features, 3)
    assert found.tolist() == [[0, 2, 3]]
    assert distances.tolist() == [[0, 0, 1]]


def test_predictions_are_the_likeliest_classes_in_order():
    logits = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    first, second = predictions(logits, torch.tensor([2, 1]), ("cat", "dog", "eel"), top=2)
    chances = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    assert (first["label"], first["name"], first["rank"]) == (2, "eel", 2)
    assert first["probability"] == pytest.approx(chances[2])
    assert [(guess["label"], guess["name"]) for guess in first["top"]] == [(1, "dog"), (2, "eel")]
    assert [guess["probability"] for guess in first["top"]] == pytest.approx(chances[[1, 2]])
    assert second["rank"] == 2
    assert [guess["label"] for guess in second["top"]] == [0, 1]
