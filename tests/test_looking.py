"""Looking at a network: what is recorded over training and at its end, and that nothing else is touched."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from layouts import small
from PIL import Image

from splitnet import fake
from splitnet.looking import PREDICTIONS, Look, not_shown, specialisation
from splitnet.measure import learned
from splitnet.measure.records import RunFolder, read_learned
from splitnet.network.activations import passes, whole
from splitnet.network.execution import Execution
from splitnet.network.weights import draw
from splitnet.parallel.capabilities import use_precision
from splitnet.parallel.placement import build
from splitnet.training.data import load, to_network
from splitnet.training.loop import evaluate
from splitnet.training.splits import Dataset, HeldSplit


def made(name="fashion", towers=2, crosses=None, channels=1):
    """An architecture, a data set of its channels, and a state."""
    dataset = load("synthetic", size=32, train=48, test=24, channels=channels)
    architecture = small(name, towers, crosses).adapted(channels)
    return architecture, dataset, draw(architecture, 1)


def measured(architecture, dataset, state, pixels=None):
    batch = dataset.test.read(torch.arange(len(dataset.test)))
    size = architecture.size
    return specialisation(architecture, state, batch.images, batch.labels, pixels or (lambda x: to_network(x, size)))


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def content(folder):
    return read_learned(folder.path)


# How far the towers specialise


def test_accuracy_is_that_of_a_test():
    architecture, dataset, state = made()
    net = build(architecture, devices=["cpu"])
    net.load_whole_state_dict(state)
    found = measured(architecture, dataset, state)
    assert found.images == 24
    assert found.accuracy == evaluate(net, dataset.test, batch_size=24).accuracy
    for tower, accuracy in enumerate(found.silenced):
        silent = {name: tensor.clone() for name, tensor in state.items()}
        for name in silent:
            if not name.startswith("fc8"):
                silent[name].chunk(2)[tower].zero_()
        net.load_whole_state_dict(silent)
        assert accuracy == evaluate(net, dataset.test, batch_size=24).accuracy


def test_similarity_is_of_what_two_networks_on_two_devices_hand_over(monkeypatch):
    architecture, dataset, state = made()
    net = build(architecture, devices=["cpu", "cpu"])
    net.load_whole_state_dict(state)
    sent = {}
    for name in ("all_gather", "gather"):
        real = getattr(net.exchange, name)
        monkeypatch.setattr(
            net.exchange,
            name,
            lambda xs, row, real=real: (sent.update({row: [x.detach() for x in xs]}), real(xs, row))[1],
        )
    images = to_network(dataset.test.read(torch.arange(24)).images, architecture.size)
    with torch.no_grad():
        net.eval()(images)
    found = measured(architecture, dataset, state).similarity
    readers = {"conv3": "conv2", "fc6": "conv5", "fc7": "fc6", "fc8": "fc7"}
    assert set(sent) == set(readers)
    assert list(found) == list(readers.values())
    for reader, row in readers.items():
        one, other = (x.flatten(1) for x in sent[reader])
        assert found[row] == pytest.approx(learned.similarity(one, other), abs=1e-5)


def test_equal_towers_are_alike_and_a_dead_one_is_left_out():
    architecture, dataset, state = made("alexnet-isolated")
    for name, tensor in state.items():
        if not name.startswith("fc8"):
            one, other = tensor.chunk(2)
            other.copy_(one)
    found = measured(architecture, dataset, state)
    assert found.similarity == {"fc7": pytest.approx(1)}
    assert found.orientation[0] == found.orientation[1]
    state["fc7.weight"].chunk(2)[1].zero_()
    assert measured(architecture, dataset, state).similarity == {}


def test_energies_are_those_of_each_towers_filters():
    architecture, dataset, state = made(channels=3)
    grey, coloured = state["conv1.weight"].chunk(2)
    grey.copy_(grey.mean(1, keepdim=True).expand_as(grey))
    found = measured(architecture, dataset, state)
    assert found.colour == (pytest.approx(0, abs=1e-6), learned.colour_energy(coloured))
    assert found.orientation == (learned.orientation_energy(grey), learned.orientation_energy(coloured))
    assert not_shown(found, architecture) == {}


def test_grey_images_show_no_colour():
    architecture, dataset, state = made()
    found = measured(architecture, dataset, state)
    assert found.colour is None
    assert not_shown(found, architecture) == {"colour energy": "grey images"}


def test_three_equal_channels_are_grey():
    """As a folder of grey files is read."""
    architecture, dataset, state = made(channels=3)
    grey = dataset.test.images[:, :1].expand(-1, 3, -1, -1)
    found = measured(architecture, replace(dataset, test=HeldSplit(grey, dataset.test.labels)), state)
    assert found.colour is None
    assert not_shown(found, architecture) == {"colour energy": "grey images"}


def test_one_tower_has_nothing_to_be_compared_with():
    architecture, dataset, state = made("alexnet", 1, channels=3)
    found = measured(architecture, dataset, state)
    assert (found.silenced, found.similarity) == ((), {})
    assert len(found.orientation) == len(found.colour) == 1
    assert list(not_shown(found, architecture).values()) == ["one tower, so there is nothing to compare"]


def test_of_more_towers_the_mean_over_pairs_is_told():
    architecture, dataset, state = made("alexnet", 4, channels=3)
    found = measured(architecture, dataset, state)
    assert [len(found.silenced), len(found.orientation), len(found.colour)] == [4, 4, 4]
    pixels = to_network(dataset.test.images, architecture.size)
    made_by = {row.name: x[0] for row, x in passes(architecture, whole(architecture, state), pixels)}
    for name, told in found.similarity.items():
        parts = [x.flatten(1) for x in made_by[name].chunk(4, dim=1)]
        pairs = [learned.similarity(parts[a], parts[b]) for a in range(4) for b in range(a)]
        assert len(pairs) == 6
        assert told == pytest.approx(sum(pairs) / 6, abs=1e-6)


def test_the_network_reads_what_pixels_make():
    architecture, dataset, state = made("alexnet", channels=3)
    given = []

    def pixels(images):
        given.append((images.dtype, tuple(images.shape)))
        return 255 * to_network(images, architecture.size) - 120

    other = measured(architecture, dataset, state, pixels)
    assert given == [(torch.uint8, (24, 3, 32, 32))]
    assert other.similarity != measured(architecture, dataset, state).similarity


# In the run's folder


def test_records_are_followed_and_the_end_is_shown(folder):
    architecture, dataset, state = made()
    look = Look(architecture, dataset, folder)
    look.follow(state, 0, 0)
    look.follow(draw(architecture, 2), 3, 1)
    assert [(r["step"], r["epoch"], r["images"]) for r in content(folder)["records"]] == [(0, 0, 24), (3, 1, 24)]
    assert content(folder).get("end") is None
    look.finish(state, 3, 1)
    found = content(folder)
    assert (found["towers"], found["row"], found["classes"]) == (2, "conv1", 10)
    assert found["not_shown"] == {"colour energy": "grey images"}
    assert len(found["records"]) == 2
    end = found["end"]
    assert (end["step"], len(end["filters"]), len(end["predictions"])) == (3, 2, PREDICTIONS)
    assert (end["nearest"]["row"], end["nearest"]["among"]) == ("fc7", 48)
    assert [len(query["images"]) for query in end["nearest"]["queries"]] == [6] * 5
    assert [query["place"] for query in end["nearest"]["queries"]] == [p["place"] for p in end["predictions"]][:5]


def test_predictions_are_the_networks(folder):
    architecture, dataset, state = made()
    Look(architecture, dataset, folder).finish(state, 0, 0)
    net = build(architecture, devices=["cpu"])
    net.load_whole_state_dict(state)
    for one in content(folder)["end"]["predictions"]:
        images = dataset.test.images[one["place"]][None]
        chances = net.eval()(to_network(images, architecture.size)).softmax(1)[0]
        assert one["label"] == dataset.test.labels[one["place"]]
        assert one["name"] == dataset.classes[one["label"]]
        assert [guess["label"] for guess in one["top"]] == chances.argsort(descending=True)[:5].tolist()
        assert [guess["probability"] for guess in one["top"]] == pytest.approx(
            chances.sort().values.flip(0)[:5].tolist()
        )
        assert one["rank"] == 1 + int((chances > chances[one["label"]]).sum())


def test_nearest_are_by_the_last_hidden_row(folder):
    """Beside a query that is a training image too, that one comes first, at no distance."""
    architecture, dataset, state = made()
    same = replace(dataset, test=HeldSplit(dataset.train.images[:24], dataset.train.labels[:24]))
    Look(architecture, same, folder).finish(state, 0, 0)
    net = build(architecture, devices=["cpu"])
    net.load_whole_state_dict(state)
    hidden = []
    net.hosted[0]["fc7"].register_forward_hook(lambda _, __, x: hidden.append(x))
    net.eval()(to_network(dataset.train.images, architecture.size))
    for query in content(folder)["end"]["nearest"]["queries"]:
        distances = ((hidden[0] - hidden[0][query["place"]]) ** 2).sum(1)
        assert [image["place"] for image in query["images"]] == distances.argsort()[:6].tolist()
        assert query["images"][0]["place"] == query["place"]
        assert query["images"][0]["distance"] == pytest.approx(0, abs=1e-9)
        assert [image["distance"] for image in query["images"]] == pytest.approx(
            distances.sort().values[:6].tolist(), rel=1e-3, abs=1e-7
        )
        assert query["images"][1]["name"] == dataset.classes[dataset.train.labels[query["images"][1]["place"]]]


def test_the_same_images_are_looked_at_whatever_was_drawn_before(folder, tmp_path):
    architecture, dataset, state = made()
    texts = []
    for number in range(2):
        torch.manual_seed(number)
        (tmp_path / f"{number}").mkdir()
        other = RunFolder(tmp_path / f"{number}")
        look = Look(architecture, dataset, other)
        look.follow(state, 0, 0)
        look.finish(state, 0, 0)
        texts.append((other.path / "learned.json").read_text())
    assert texts[0] == texts[1]


def test_images_come_from_all_over_a_set_that_is_sorted_by_class(folder):
    architecture, dataset, state = made()
    sorted_set = replace(dataset, test=load("fashion-mnist-small").test)
    order = sorted_set.test.labels.argsort(stable=True)
    sorted_set = replace(sorted_set, test=HeldSplit(sorted_set.test.images[order], sorted_set.test.labels[order]))
    Look(architecture, sorted_set, folder).finish(state, 0, 0)
    assert len({one["label"] for one in content(folder)["end"]["predictions"]}) >= 4


def test_fewer_images_can_be_asked_for(folder):
    architecture, dataset, state = made()
    look = Look(architecture, dataset, folder, tested=5, training=8)
    look.follow(state, 0, 0)
    look.finish(state, 0, 0)
    assert content(folder)["records"][0]["images"] == 5
    assert content(folder)["end"]["nearest"]["among"] == 8
    assert len(content(folder)["end"]["predictions"]) == PREDICTIONS


def test_a_resumed_run_goes_on_with_its_records(folder):
    architecture, dataset, state = made()
    first = Look(architecture, dataset, folder)
    for step in (0, 3, 6, 9):
        first.follow(state, step, step // 3)
    first.finish(state, 9, 3)
    resumed = Look(architecture, dataset, folder)
    resumed.follow(state, 6, 2)
    assert [record["step"] for record in content(folder)["records"]] == [0, 3, 6]
    assert content(folder).get("end") is None  # it was of a later step
    resumed.finish(state, 9, 3)
    resumed.follow(state, 12, 4)
    assert content(folder)["end"]["step"] == 9


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1}', '{"schema": 99, "records": []}'])
def test_what_cannot_be_read_is_written_anew(folder, text):
    architecture, dataset, state = made()
    (folder.path / "learned.json").write_text(text)
    Look(architecture, dataset, folder).follow(state, 3, 1)
    assert [record["step"] for record in content(folder)["records"]] == [3]


def test_without_a_folder_or_a_state_nothing_is_done(folder):
    architecture, dataset, state = made()
    nobody = Look(architecture, dataset, None)
    nobody.follow(state, 0, 0)
    nobody.finish(state, 0, 0)
    rank = Look(architecture, dataset, folder)
    rank.follow({}, 0, 0)
    rank.finish({}, 0, 0)
    assert list(folder.path.iterdir()) == []


def test_a_full_disk_costs_no_record(folder, monkeypatch):
    architecture, dataset, state = made()
    look = Look(architecture, dataset, folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write", full)
        look.follow(state, 0, 0)
        with pytest.raises(OSError, match="No space"):
            look.finish(state, 0, 0)
    look.follow(state, 3, 1)
    assert [record["step"] for record in content(folder)["records"]] == [0, 3]


def test_broken_images_are_left_out(tmp_path):
    root = tmp_path / "images"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 48, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        place = root / ("train" if number < 20 else "val") / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
        if number % 20 < 14:
            place.write_bytes(b"no image")
    dataset = load("imagefolder", root, size=96)
    architecture = small("alexnet").adapted(3, 2)
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    look = Look(architecture, dataset, folder)
    look.follow(draw(architecture, 1), 0, 0)
    look.finish(draw(architecture, 1), 0, 0)
    found = content(folder)
    assert found["records"][0]["images"] == 6
    assert found["end"]["nearest"]["among"] == 6
    assert len(found["end"]["predictions"]) <= 6
    assert "colour" in found["records"][0]


def test_it_is_small_even_for_noise_in_colour(folder):
    images = torch.randint(0, 256, (64, 3, 256, 256), dtype=torch.uint8)
    split = HeldSplit(images, torch.arange(64) % 10)
    dataset = Dataset("noise", 3, tuple(f"{i} {'long name ' * 9}" for i in range(10)), split, split, "noise")
    architecture = small("alexnet")
    look = Look(architecture, dataset, folder)
    for step in range(3):
        look.follow(draw(architecture, 1), step, step)
    look.finish(draw(architecture, 1), 3, 3)
    assert (folder.path / "learned.json").stat().st_size < 700_000
    assert json.loads((folder.path / "learned.json").read_text())["schema"] == 1


# Nothing else is touched


def test_no_device_no_ledger_no_generator_and_no_setting_is_touched(folder):
    fake.install(2)
    architecture, dataset, _ = made("alexnet", channels=3)
    net = build(architecture, devices=["fake:0", "fake:1"])
    net.train()
    state = net.whole_state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    use_precision(Execution("tf32"))
    fake.clear_copies()
    generator = torch.get_rng_state()
    look = Look(architecture, dataset, folder)
    try:
        look.follow(state, 0, 0)
        look.finish(state, 0, 0)
        assert torch.backends.cudnn.allow_tf32
    finally:
        use_precision(Execution())
    assert fake.copies() == {}
    assert net.ledger.transfers() == ()
    assert torch.equal(torch.get_rng_state(), generator)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
