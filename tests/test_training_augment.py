"""What images are for the network: every rule of 2012 against numbers worked out by hand, or by a loop in NumPy."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import small
from test_training_sharing import World

from splitnet.errors import UsageError
from splitnet.keyed import key
from splitnet.parallel import fake, placement
from splitnet.parallel.audit import audit
from splitnet.parallel.placement import build, host
from splitnet.training.augment import (
    _COLOUR,
    AT_ONCE,
    CHUNK,
    CUDA_CONVNET2,
    PLAIN,
    Components,
    Noise,
    View,
    _normal,
    average,
    credit,
)
from splitnet.training.data import HeldSplit, batches, load, order, to_network
from splitnet.training.folder import read_side
from splitnet.training.loop import Position, evaluate, network_images, train, training_step
from splitnet.training.optimizer import make_optimizer
from splitnet.training.sharing import shared_batches
from splitnet.training.splits import Batch, Crop, Drawn

SIZE, SIDE = 56, 64
"""A network's, and what is read for it: a margin of 8."""
NOISE = Noise(CUDA_CONVNET2)
PAIR = ["fake:0", "fake:1"]


def pictures(count, channels=3, side=SIDE, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=chance)


def batch_of(images, indices=None, **more):
    indices = torch.arange(len(images)) if indices is None else torch.tensor(indices)
    return Batch(images, indices % 2, indices, **more)


def mean_of(images):
    return images.double().mean(0).float()


def seen(view, batch, seed=0, epoch=0, batch_size=128, size=SIZE, dtype=torch.float32):
    """What a network on the CPU would read in training."""
    drawn = view.draw(batch, size, seed, epoch, batch_size)
    mean = None if (placed := view.at(lambda x: [x], size)).means is None else placed.means[0]
    return view.pixels(batch.images, size, dtype, drawn, mean, None if drawn is None else drawn.shifts)


def each(drawn, count):
    """(top, left, mirrored) of each image."""
    found = [(crop.top, crop.left, crop.mirrored) for crop in drawn.crops for _ in range(crop.count)]
    assert len(found) == count
    assert all(crop.count > 0 for crop in drawn.crops)
    return found


# The numbers


def test_a_crop_minus_the_mean_with_noise_by_hand():
    """Side 8 for a network of 7. Pixel (c, y, x) is 100c + 10y + x; the mean image is 1 everywhere but 2 at (0, 0)."""
    assert read_side(7) == 8
    rows, columns = torch.arange(8)[:, None], torch.arange(8)
    images = torch.stack([100 * c + 10 * rows + columns for c in range(2)] + [0 * rows * columns]).byte()[None]
    mean = torch.ones(3, 8, 8)
    mean[:, 0, 0] = 2
    view = View(mean, crops="images", flips=True, noise=NOISE)
    [placed] = view.at(lambda x: [x], 7).means
    # margin 1, so that the centre begins at 0: a crop from (1, 1) still loses the mean image's own first pixel
    plain, mirrored = (
        view.pixels(images, 7, torch.float32, Drawn((Crop(1, 1, 1, flip),)), placed)[0] for flip in (False, True)
    )
    assert plain[0, 0, 0] == 11 - 2
    assert plain[0, 0, 1] == 12 - 1
    assert plain[1, 6, 6] == 177 - 1
    assert mirrored[0, 0, 0] == 17 - 2
    assert mirrored[0, 0, 6] == 11 - 1
    assert mirrored[1, 6, 0] == 177 - 1
    shifts = torch.tensor([[11.0, -22.0, 3.0]])
    noisy = view.pixels(images, 7, torch.float32, Drawn((Crop(1, 1, 1),), shifts, 1.1), placed, shifts)[0]
    assert noisy[0, 0, 0].item() == pytest.approx((11 - 2 + 11) / 1.1)
    assert noisy[1, 0, 1].item() == pytest.approx((112 - 1 - 22) / 1.1)
    assert noisy[2, 3, 3].item() == pytest.approx((0 - 1 + 3) / 1.1)
    whole = view.pixels(images, 7, torch.float32, Drawn((Crop(1, 1, 1),), shifts), placed, shifts)[0]
    assert whole[0, 0, 0] == 11 - 2 + 11  # the paper divides by nothing


def loop_in_numpy(images, mean, drawn, size):
    """Pixel by pixel, in float64."""
    images, mean = images.numpy().astype(np.float64), None if mean is None else mean.numpy().astype(np.float64)
    count, channels, height, width = images.shape
    shifts = np.zeros((count, channels)) if drawn.shifts is None else drawn.shifts.numpy().astype(np.float64)
    out = np.empty((count, channels, size, size))
    for i, (top, left, mirrored) in enumerate(each(drawn, count)):
        for y in range(size):
            for x in range(size):
                pixel = images[i, :, top + y, left + (size - 1 - x if mirrored else x)]
                less = (
                    pixel / 255 if mean is None else pixel - mean[:, (height - size) // 2 + y, (width - size) // 2 + x]
                )
                out[i, :, y, x] = (less + shifts[i]) / drawn.divisor
    return out


@pytest.mark.parametrize("crops", ["none", "images", "chunks"])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize(
    "noise", [None, NOISE, Noise(CUDA_CONVNET2, 0.3, shrinks=True)], ids=["quiet", "noise", "shrinks"]
)
@pytest.mark.parametrize("subtracts", [False, True], ids=["0..1", "minus-mean"])
def test_pixels_are_those_of_a_loop(crops, flips, noise, subtracts):
    images = pictures(6)
    mean = mean_of(pictures(9, seed=1)) if subtracts else None
    view = View(mean, crops, flips, noise)
    batch = batch_of(images, [5, 3, 70, 1, 2, 8], number=5)
    drawn = view.draw(batch, SIZE, 3, 2, 6)
    if (crops, flips, noise) == ("none", False, None):
        assert drawn is None
        drawn = Drawn((Crop(6, 4, 4),))
    assert drawn.divisor == (1.3 if noise is not None and noise.shrinks else 1)
    expected = loop_in_numpy(images, mean, drawn, SIZE)
    found = seen(view, batch, 3, 2, 6)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < (1e-4 if subtracts else 1e-6)
    assert images.dtype == torch.uint8
    assert torch.equal(images, pictures(6))  # and left as they were


def test_the_mean_images_centre_is_subtracted_whatever_the_offset():
    mean = 200 * torch.rand(3, SIDE, SIDE)
    black = torch.zeros(40, 3, SIDE, SIDE, dtype=torch.uint8)
    view = View(mean, "images", flips=True)
    assert len(set(each(view.draw(batch_of(black), SIZE, 0, 0, 40), 40))) > 20
    assert torch.equal(seen(view, batch_of(black)), (-mean[:, 4:60, 4:60]).expand(40, 3, SIZE, SIZE))


def test_by_itself_a_view_is_what_it_was_to_the_bit():
    for side, size in ((28, 224), (256, 224), (64, 56), (300, 224)):
        images = pictures(3, side=side)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert torch.equal(PLAIN.centre(images, size, dtype), to_network(images, size, dtype))
            assert torch.equal(seen(PLAIN, batch_of(images), size=size, dtype=dtype), to_network(images, size, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_rounded_once_at_the_end(dtype):
    images = pictures(5)
    view = View(mean_of(images), "images", True, replace(NOISE, shrinks=True))
    found = seen(view, batch_of(images), dtype=dtype)
    assert found.dtype == dtype
    if dtype == torch.float64:
        assert torch.allclose(found, seen(view, batch_of(images)).double(), rtol=0, atol=1e-4)
    else:
        assert torch.equal(found, seen(view, batch_of(images)).to(dtype))


# Chance


def test_offsets_are_uniform_from_0_to_32_and_half_are_mirrored():
    images = torch.zeros(1, 1, 256, 256, dtype=torch.uint8).expand(20_000, 1, 256, 256)
    drawn = View(crops="images", flips=True).draw(batch_of(images), 224, 7, 3, 20_000)
    tops, lefts, mirrored = (np.array(column) for column in zip(*each(drawn, 20_000), strict=True))
    expected = 20_000 / 33
    for offsets in (tops, lefts):
        counts = np.bincount(offsets, minlength=33)
        assert len(counts) == 33
        assert ((counts - expected) ** 2 / expected).sum() < 62.5  # chi-square, 32 degrees: 0.999
    assert abs(mirrored.mean() - 0.5) < 3.3 * 0.5 / math.sqrt(20_000)
    for one, other in ((tops, lefts), (tops, mirrored), (lefts, mirrored)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 3.3 / math.sqrt(20_000)


def test_another_epoch_or_seed_is_another_crop_and_the_same_is_the_same():
    images = torch.zeros(200, 3, SIDE, SIDE, dtype=torch.uint8)
    view = View(crops="images", flips=True, noise=NOISE)
    found = [view.draw(batch_of(images), SIZE, *key, 200) for key in ((0, 0), (0, 1), (1, 0), (0, 0))]
    cuts = [each(drawn, 200) for drawn in found]
    assert cuts[0] == cuts[3]
    assert torch.equal(found[0].shifts, found[3].shifts)
    for other in (1, 2):
        assert sum(a == b for a, b in zip(cuts[0], cuts[other], strict=True)) < 12  # 1 of 162 by chance
        assert (found[0].shifts == found[other].shifts).sum() == 0


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.integers(0, 2**62), st.integers(0, 200))
def test_what_is_drawn_for_an_image_does_not_depend_on_the_others(indices, seed, epoch):
    view = View(crops="images", flips=True, noise=NOISE)
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8).expand(len(indices), 3, SIDE, SIDE)
    whole = view.draw(batch_of(images, indices), SIZE, seed, epoch, 128)
    cuts = each(whole, len(indices))
    assert all(0 <= top <= 8 and 0 <= left <= 8 for top, left, _ in cuts)
    for place in {0, len(indices) // 2, len(indices) - 1}:
        alone = view.draw(batch_of(images[:1], [indices[place]]), SIZE, seed, epoch, 128)
        assert each(alone, 1) == [cuts[place]]
        assert torch.equal(alone.shifts[0], whole.shifts[place])


@pytest.mark.parametrize("batch_size", [20, 32, 64, 150])
def test_32_consecutive_images_of_the_order_share_an_offset_and_a_flip(batch_size):
    images = torch.zeros(150, 3, SIDE, SIDE, dtype=torch.uint8)
    view, places = View(crops="chunks", flips=True), order(150, 0, 1)
    split = HeldSplit(images, torch.zeros(150, dtype=torch.int64))
    cuts = []
    for batch in batches(split, batch_size, places):
        drawn = view.draw(batch, SIZE, 5, 1, batch_size)
        cuts += each(drawn, len(batch.images))
        assert len(drawn.crops) <= 2 + len(batch.images) // CHUNK + len(batch.images) // AT_ONCE
    chunks = [cuts[first : first + CHUNK] for first in range(0, 150, CHUNK)]
    assert [len(set(chunk)) for chunk in chunks] == [1] * 5
    assert len(set(cuts)) == 5
    assert cuts == each(view.draw(batch_of(images), SIZE, 5, 1, 150), 150)  # however it is cut into batches


def test_chunks_are_drawn_from_0_to_32_too():
    view = View(crops="chunks", flips=True)
    image = torch.zeros(1, 1, 256, 256, dtype=torch.uint8)
    found = [each(view.draw(batch_of(image, number=n), 224, 0, 0, CHUNK), 1)[0] for n in range(1500)]
    tops, lefts, mirrored = map(set, zip(*found, strict=True))
    assert tops == lefts == set(range(33))
    assert mirrored == {False, True}


@pytest.mark.parametrize("crops", ["images", "chunks"])
@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_draw_what_one_device_draws(crops, replicas):
    view = View(crops=crops, flips=True, noise=NOISE)
    split = HeldSplit(pictures(100), torch.zeros(100, dtype=torch.int64))

    def drawn(batch):
        found = view.draw(batch, SIZE, 0, 4, 47)
        count = len(batch.images)
        cuts, held = each(found, count), count - batch.padding
        assert len(found.shifts) == count
        return cuts[:held], found.shifts[:held]

    def parts(ranks):
        return [drawn(batch) for batch in shared_batches(split, 47, order(100, 0, 4), ranks=ranks)]

    alone = [drawn(batch) for batch in batches(split, 47, order(100, 0, 4))]
    for whole, *shares in zip(alone, *World(replicas, 1).everybody(parts), strict=True):
        assert [cut for cuts, _ in shares for cut in cuts] == whole[0]
        assert torch.equal(torch.cat([shifts for _, shifts in shares]), whole[1])


# Colours


def scalar_mix(x):
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x5BD1E995) & 0xFFFFFFFF
    return x ^ (x >> 16)


def scalar_normal(image, number, seed, epoch):
    """By Box and Muller, of two hashes."""
    one, other = (scalar_mix(scalar_mix(image) ^ key(_COLOUR, number, part, seed, epoch)) for part in range(2))
    return math.sqrt(-2 * math.log((one + 1) / 2**32)) * math.cos(2 * math.pi * other / 2**32)


def test_noise_is_the_sum_of_components_each_by_a_normal_number():
    """Σ aᵢ sᵢ pᵢ of the source, one number after the other; the moments of aᵢ by projecting on the components."""
    noise = Noise(CUDA_CONVNET2, 0.1)
    shifts = noise.shifts(3, 5, torch.arange(4000)).double().numpy()
    vectors, deviations = np.array(CUDA_CONVNET2.vectors), np.array(CUDA_CONVNET2.deviations)
    a = shifts @ vectors.T / (0.1 * deviations)
    for n in range(0, 4000, 500):
        for channel in range(3):
            parts = (scalar_normal(n, i, 3, 5) * deviations[i] * vectors[i][channel] for i in range(3))
            expected = 0.1 * sum(parts)
            assert shifts[n][channel] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for i in range(3):  # each a standard normal number: moments, and a known share beyond 1, 2, 3 deviations
        assert abs(a[:, i].mean()) < 3.3 / math.sqrt(4000)
        assert abs(a[:, i].std() - 1) < 3.3 / math.sqrt(8000)
        for bound in (1, 2, 3):
            share = math.erfc(bound / math.sqrt(2))
            assert abs((np.abs(a[:, i]) > bound).mean() - share) < 3.3 * math.sqrt(share * (1 - share) / 4000)
    assert np.abs(np.corrcoef(a.T) - np.eye(3)).max() < 3.3 / math.sqrt(4000)
    assert abs(np.corrcoef(a[:-1, 0], a[1:, 0])[0, 1]) < 3.3 / math.sqrt(4000)  # nor from image to image


def test_a_normal_number_is_box_and_mullers_of_two_hashes():
    for number in range(3):
        for image in (0, 1, 77, 10**6):
            expected = scalar_normal(image, number, 9, 4)
            assert _normal(torch.tensor([image]), number, 9, 4).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_the_components_that_were_published():
    """Unit vectors at right angles, and standard deviations, not variances: no colour in 0..255 varies by 121.8²."""
    vectors = np.array(CUDA_CONVNET2.vectors)
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 1e-4
    assert CUDA_CONVNET2.deviations == (19.7208, 37.0939, 121.7801)
    assert math.sqrt(sum(s**2 for s in CUDA_CONVNET2.deviations) / 3) < 127.5
    assert len({math.copysign(1, v) for v in CUDA_CONVNET2.vectors[2]}) == 1  # most of it is brightness


def test_noise_moves_all_pixels_of_an_image_alike_and_each_image_otherwise():
    images = pictures(8)
    view = View(mean_of(images), noise=NOISE)
    moved = seen(view, batch_of(images)) - seen(replace(view, noise=None), batch_of(images))
    shifts = NOISE.shifts(0, 0, torch.arange(8))
    assert (moved - shifts[:, :, None, None]).abs().max() < 1e-4
    assert len({tuple(row) for row in shifts.tolist()}) == 8


def test_noise_in_0_to_1_is_as_strong():
    images = pictures(4)
    bytes_, unit = (seen(View(mean, noise=NOISE), batch_of(images)) for mean in (torch.zeros(3, SIDE, SIDE), None))
    assert torch.allclose(bytes_ / 255, unit, atol=1e-6)


@pytest.mark.parametrize(("epoch", "noisy"), [(0, True), (66, True), (67, False), (68, False)])
def test_noise_ends_and_so_does_the_division(epoch, noisy):
    images = pictures(3)
    view = View(mean_of(images), noise=Noise(CUDA_CONVNET2, 0.1, shrinks=True, until=67))
    same = torch.equal(seen(view, batch_of(images), epoch=epoch), view.centre(images, SIZE))
    assert same != noisy


def test_grey_images_have_no_colour_noise():
    with pytest.raises(UsageError, match=r"^--color-noise 0\.1: images of 1 channels have no colours$"):
        View(noise=NOISE).check(1)
    View(noise=NOISE).check(3)
    View(crops="chunks", flips=True, views=10).check(1)


def test_a_mean_image_of_something_else_is_refused():
    with pytest.raises(UsageError, match="the mean image has 3 channels, images 1"):
        View(torch.zeros(3, 8, 8)).check(1)
    with pytest.raises(UsageError, match=r"the mean image is 3×8×8, images are 3×64×64"):
        View(torch.zeros(3, 8, 8)).centre(pictures(1), 8)


def test_only_bytes_are_seen():
    with pytest.raises(TypeError, match="float32"):
        View(crops="images").centre(torch.zeros(1, 1, 8, 8), 8)


# Small images


def bilinear(image, side):
    """Of (H, W) float64, each pixel at its own centre, edges held."""
    height, width = image.shape
    out = np.empty((side, side))
    for y in range(side):
        for x in range(side):
            at = [min(max((p + 0.5) * n / side - 0.5, 0), n - 1) for p, n in ((y, height), (x, width))]
            low = [math.floor(p) for p in at]
            high = [min(p + 1, n - 1) for p, n in zip(low, (height, width), strict=True)]
            down, right = (p - q for p, q in zip(at, low, strict=True))
            upper = image[low[0], low[1]] * (1 - right) + image[low[0], high[1]] * right
            lower = image[high[0], low[1]] * (1 - right) + image[high[0], high[1]] * right
            out[y, x] = upper * (1 - down) + lower * down
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_smaller_images_are_stretched_to_the_side_that_is_read_and_then_cut(channels):
    images = pictures(4, channels, side=28)
    mean = mean_of(images)
    view = View(mean, "images", flips=True)
    drawn = view.draw(batch_of(images), SIZE, 1, 0, 4)
    cuts = each(drawn, 4)
    assert len({top for top, *_ in cuts} | {left for _, left, _ in cuts}) > 2  # there is a margin to move in
    less = np.stack([bilinear(channel, SIDE)[4:60, 4:60] for channel in mean.double().numpy()])
    found = seen(view, batch_of(images), 1).numpy()
    for image, pixels, (top, left, mirrored) in zip(images.double().numpy(), found, cuts, strict=True):
        for channel in range(channels):
            large = bilinear(image[channel], SIDE)[top : top + SIZE, left : left + SIZE]
            expected = (large[:, ::-1] if mirrored else large) - less[channel]
            assert np.abs(pixels[channel] - expected).max() < 1e-3
    centred = view.centre(images, SIZE).numpy()  # and a test sees the centre of the same
    large = bilinear(images[0, 0].double().numpy(), SIDE)[4:60, 4:60]
    assert np.abs(centred[0, 0] - (large - less[0])).max() < 1e-3


def test_smaller_images_that_are_not_cut_are_stretched_to_the_networks_size():
    images = pictures(2, 1, side=28)
    found = View(torch.zeros(1, 28, 28), flips=True).centre(images, SIZE)
    assert torch.allclose(found / 255, to_network(images, SIZE), atol=1e-5)


# Tests


def ten_views(image, size):
    """As (C, H, W) each: the corners and the centre, then the same of the mirrored image."""
    height, width = image.shape[-2:]
    found = []
    for picture in (image, image[:, :, ::-1]):
        for top, left in ((0, 0), (0, width - size), (height - size, 0), (height - size, width - size)):
            found.append(picture[:, top : top + size, left : left + size])
        top, left = (height - size) // 2, (width - size) // 2
        found.append(picture[:, top : top + size, left : left + size])
    return found


def test_ten_views_are_four_corners_the_centre_and_their_mirror_images():
    images = pictures(2)
    mean = mean_of(pictures(5, seed=1))
    view = View(mean, views=10)
    found = [
        view.pixels(images, SIZE, torch.float32, drawn, view.at(lambda x: [x], SIZE).means[0])
        for drawn in view.tests(images, SIZE)
    ]
    assert len(found) == 10
    less = mean.numpy()[:, 4:60, 4:60]
    for place in range(2):
        for ours, theirs in zip(found, _same_order(ten_views(images[place].numpy(), SIZE)), strict=True):
            assert np.array_equal(ours[place].numpy(), theirs.astype(np.float32) - less)


def _same_order(views):
    """The left corner of a mirrored image is the mirrored right corner of the image."""
    plain, mirrored = views[:5], views[5:]
    return plain + [mirrored[place] for place in (1, 0, 3, 2, 4)]


TABLE = small("alexnet")


@pytest.mark.parametrize("devices", [["cpu"], PAIR], ids=["one", "pair"])
def test_a_test_averages_probabilities_over_ten_views(devices):
    side = read_side(TABLE.size)
    images = pictures(7, side=side)
    labels = torch.tensor([0, 3, 9, 1, 1, 7, 5])
    view = View(mean_of(pictures(5, side=side, seed=2)), views=10)
    net = build(TABLE, devices=devices).double()
    found = evaluate(net, HeldSplit(images, labels), batch_size=3, view=view)
    one = build(TABLE, devices=["cpu"]).double().eval()
    less = view.mean.double().numpy()[:, (side - 96) // 2 :, (side - 96) // 2 :][:, :96, :96]
    loss = right = among = 0
    for image, label in zip(images.numpy(), labels.tolist(), strict=True):
        mean = np.zeros(10)
        for part in ten_views(image, 96):
            with torch.no_grad():
                logits = one(torch.from_numpy(part.astype(np.float64) - less)[None])[0].numpy()
            powers = np.exp(logits - logits.max())
            mean += powers / powers.sum() / 10
        loss -= math.log(mean[label]) / 7
        best = np.argsort(-mean)
        right += (best[0] == label) / 7
        among += (label in best[:5]) / 7
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert (found.accuracy, found.top5) == (pytest.approx(right), pytest.approx(among))
    assert (found.images, found.views) == (7, 10)
    centre = evaluate(net, HeldSplit(images, labels), batch_size=3, view=replace(view, views=1))
    assert centre.views == 1
    assert centre.loss != pytest.approx(loss, rel=1e-4)


def test_the_average_is_of_probabilities_not_of_logits():
    views = [torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(9), 0.0]])]
    # (1/4, 3/4) and (9/10, 1/10)
    assert average(views).exp().tolist() == [pytest.approx([0.575, 0.425])]
    assert average(views[:1]) is views[0]
    sure = average([torch.tensor([[0.0, 1000.0]])] * 2)
    assert sure.tolist() == [pytest.approx([-1000, 0])]  # where a probability is too small for a float


@pytest.mark.parametrize(
    ("scores", "label", "most", "expected"),
    [
        ([1, 2, 3, 4], 3, 1, 1),
        ([1, 2, 3, 4], 2, 1, 0),
        ([1, 2, 3, 4], 2, 2, 1),
        ([4, 2, 4, 4], 0, 1, 1 / 3),  # one place, three that are equal
        ([4, 2, 4, 4], 0, 2, 2 / 3),
        ([4, 2, 4, 4], 0, 5, 1),
        ([4, 2, 4, 4], 1, 3, 0),
        ([5, 2, 2, 2], 1, 2, 1 / 3),  # one place is left behind the first
        ([5, 2, 2, 2], 1, 1, 0),
        ([7] * 10, 4, 1, 1 / 10),  # a network that says the same of all classes
        ([7] * 10, 4, 5, 1 / 2),
    ],
)
def test_ties_count_for_their_chance(scores, label, most, expected):
    scores = torch.tensor([scores], dtype=torch.float32)
    assert credit(scores, torch.tensor([label]), most).item() == pytest.approx(expected)
    twice = credit(scores.expand(2, -1), torch.tensor([label, label]), most)
    assert twice.item() == pytest.approx(2 * expected)


def test_a_network_that_says_nothing_is_right_by_chance():
    net = build(small("lenet", 1), devices=["cpu"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    split = load("synthetic", size=28, channels=1, train=4, test=12).test
    found = evaluate(net, split, batch_size=5)
    assert (found.accuracy, found.top5) == (pytest.approx(0.1), pytest.approx(0.5))
    assert found.loss == pytest.approx(math.log(10))


@pytest.mark.parametrize(("classes", "known"), [(2, False), (5, False), (6, True)])
def test_top_5_is_of_six_classes_or_more(classes, known):
    net = build(small("lenet", 1).adapted(classes=classes), devices=["cpu"])
    split = load("synthetic", size=28, channels=1, classes=classes, train=4, test=9).test
    found = evaluate(net, split, batch_size=4)
    assert (found.top5 is not None) == known
    net.eval()
    with torch.no_grad():
        best = net(network_images(net, split.images)).topk(min(5, classes)).indices
    if known:
        assert found.top5 == pytest.approx((best == split.labels[:, None]).any(1).double().mean().item())


# Trainings


def everything(images, crops="images"):
    return View(mean_of(images), crops, True, Noise(CUDA_CONVNET2, 0.1, True, until=1), views=10)


def colours(count=22, side=32):
    return HeldSplit(pictures(count, side=side), torch.arange(count) % 10)


def told(net, split, view, **limits):
    learner = make_optimizer(net.parameters(), "sgd", 1e-4)
    records = train(net, split, learner, **{"batch_size": 8, "seed": 4, "view": view} | limits)
    return [(r.step, r.epoch, r.loss, r.accuracy) for r in records]


@pytest.mark.parametrize("crops", [pytest.param("images", marks=pytest.mark.slow), "chunks"])
def test_all_layouts_see_the_same_pixels(crops):
    split = colours()
    view, found = everything(split.images, crops), []
    for devices in (["cpu", "cpu"], PAIR, ["fake:0", "fake:0"]):
        net = build(TABLE, devices=devices)
        losses = told(net, split, view, epochs=2)
        test = evaluate(net, split, batch_size=8, view=view)
        found.append((losses, test.loss, test.accuracy, test.top5))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 6
    net = build(TABLE, devices=PAIR)
    batch = next(batches(split, 8))
    one, two = network_images(net, batch.images, None, view, view.draw(batch, TABLE.size, 0, 0, 8))
    assert [str(x.device) for x in (one, two)] == PAIR
    assert torch.equal(one.cpu(), two.cpu())
    assert one.abs().max() > 2


def test_a_training_that_goes_on_sees_what_it_would_have_seen():
    split = colours()
    view, net = everything(split.images, "chunks"), build(TABLE, devices=["cpu"])
    learner = make_optimizer(net.parameters(), "sgd", 1e-4)
    limits = {"batch_size": 8, "seed": 4, "view": view}
    whole = [r.loss for r in train(net, split, learner, epochs=2, **limits)]
    net, parts, start = build(TABLE, devices=["cpu"]), [], Position()
    learner = make_optimizer(net.parameters(), "sgd", 1e-4)
    for steps in (2, 3, 5, 6):
        for record in train(net, split, learner, steps=steps, start=start, **limits):
            parts.append(record.loss)
            start = record.after
    assert parts == whole


def test_each_of_it_changes_the_training():
    split = colours()
    plain = View(mean_of(split.images))
    views = [PLAIN, plain, replace(plain, crops="images"), replace(plain, crops="chunks"), replace(plain, flips=True)]
    views += [replace(plain, noise=NOISE), replace(plain, noise=replace(NOISE, shrinks=True))]
    found = [told(build(TABLE, devices=["cpu"]), split, view, steps=2) for view in views]
    assert len({losses[1][2] for losses in found}) == len(views)


def test_the_next_batchs_crops_are_its_own_epochs():
    """It is fetched while the last step of the epoch before it runs."""
    split = colours(16)
    view, net = View(crops="images", flips=True, noise=replace(NOISE, until=1)), build(TABLE, devices=["cpu"])
    records = told(net, split, view, epochs=2)
    other = build(TABLE, devices=["cpu"])
    learner = make_optimizer(other.parameters(), "sgd", 1e-4)
    losses = []
    for epoch in range(2):
        for batch in batches(split, 8, order(16, 4, epoch)):
            other.moment = replace(other.moment, step=len(losses))
            drawn = replace(batch, drawn=view.draw(batch, TABLE.size, 4, epoch, 8))
            losses.append(training_step(other, learner, drawn, None, view)[0].item())
    assert [loss for _, _, loss, _ in records] == losses


def test_what_travels_is_images_labels_a_colour_for_each_image_and_the_mean_image_once():
    split = colours(16)
    where = placement.place(TABLE, PAIR)
    net = host(TABLE, where, seed=0)
    view = everything(split.images)
    net.ledger.clear()
    fake.clear_copies()
    told(net, split, view, steps=3)
    down = {(c.target, c.bytes): n for c, n in fake.copies().items() if c.source == "cpu"}
    pixels, mean = 8 * 3 * 32 * 32, 4 * 3 * TABLE.size**2
    for device in PAIR:
        assert down.pop((device, pixels)) == 3
        assert down.pop((device, mean)) == 1
        assert down.pop((device, 8 * 3 * 4)) == 2  # of the third step's epoch there is no noise
    assert down == {("fake:0", 8 * 8): 3}
    test = evaluate(net, split, batch_size=8, view=view)
    learnt, tested = 24, (test.images + test.padding) * test.views
    assert tested == 160
    audit(TABLE, where, net.ledger.transfers(), forward=learnt + tested, backward=learnt)


def test_towers_on_one_device_share_what_they_read():
    net = build(TABLE, devices=["fake:0", "fake:0"])
    split = colours(4)
    view, batch = everything(split.images), next(batches(split, 4))
    one, two = network_images(net, batch.images, None, view, view.draw(batch, TABLE.size, 0, 0, 4))
    assert one is two


def test_towers_in_two_processes_run_as_many_passes(monkeypatch):
    """A process without tower 0 has no logits, and hands on zeros; a test of ten views is ten passes there too."""
    net, passes = build(TABLE, devices=["cpu"]), []
    monkeypatch.setattr(type(net), "home", False)
    monkeypatch.setattr(type(net), "forward", lambda *_: passes.append(1) or torch.zeros(()))
    found = evaluate(net, colours(6), batch_size=3, view=View(views=10))
    assert len(passes) == 20
    assert (found.loss, found.accuracy, found.top5) == (0, 0, 0)


def test_padding_is_drawn_for_and_counts_for_nothing():
    images = torch.cat([pictures(3), torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)])
    batch = Batch(images, torch.zeros(3, dtype=torch.int64), torch.tensor([4, 5, 6]), padding=2, first=3, total=6)
    for crops in ("images", "chunks"):
        drawn = View(crops=crops, flips=True, noise=NOISE).draw(batch, SIZE, 0, 0, 6)
        assert len(each(drawn, 5)) == len(drawn.shifts) == 5
        assert drawn.shifts.isfinite().all()


@pytest.mark.parametrize("shape", [(70, 64), (64, 90), (64, 64), (30, 90)])
def test_images_that_are_no_squares_are_cut_within_their_edges(shape):
    images = torch.randint(0, 256, (40, 3, *shape), dtype=torch.uint8)
    view = View(crops="images", views=10)
    height, width = shape if min(shape) >= SIDE else (SIDE, SIDE)
    cuts = each(view.draw(batch_of(images), SIZE, 0, 0, 40), 40)
    assert max(top for top, *_ in cuts) <= height - SIZE
    assert max(left for _, left, _ in cuts) <= width - SIZE
    assert seen(view, batch_of(images)).shape == (40, 3, SIZE, SIZE)
    assert [d.crops[0].left for d in view.tests(images, SIZE)][:2] == [0, width - SIZE]
    assert [d.crops[0].top for d in view.tests(images, SIZE)][::2][:2] == [0, height - SIZE]


def test_a_mean_image_is_seen_as_a_test_image_is():
    images = pictures(1, side=40)
    for view in (View(images[0].float()), View(images[0].float(), "chunks"), View(images[0].float(), views=10)):
        assert view.centre(images, SIZE).abs().max() < 1e-4  # the image minus itself


def test_components_may_be_given_by_hand():
    along_each = Components((1.0, 2.0, 3.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    shifts = Noise(along_each, 1.0).shifts(0, 0, torch.arange(3000)).numpy()
    assert np.abs(shifts.std(0) / [1, 2, 3] - 1).max() < 0.05


def test_views_are_pure():
    view = View(crops="images", flips=True, noise=NOISE)
    draw = partial(view.draw, batch_of(pictures(5)), SIZE, 0, 0, 5)
    torch.manual_seed(1)
    one = draw()
    torch.manual_seed(2)
    assert each(one, 5) == each(draw(), 5)
