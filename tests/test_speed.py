"""What `experiments/speed.py` measures is what it says: the products, the plain network, and processes that end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from jobs import environment
from layouts import small

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))  # as for a script there

import contenders  # noqa: E402
import contest  # noqa: E402
import growth  # noqa: E402
import overhead  # noqa: E402
import response_norm  # noqa: E402
import small_contenders  # noqa: E402
import speed  # noqa: E402
from contenders import CONTENDERS, Multiplication, Product, load_whole, plain_network, products  # noqa: E402
from contest import Contest, DeadContenderError  # noqa: E402

import splitnet  # noqa: E402
from splitnet.network.presets import preset  # noqa: E402
from splitnet.network.weights import draw  # noqa: E402

TABLES = [("alexnet-paper", 1), ("alexnet-paper", 2), ("fashion", 1), ("fashion", 2), ("torchvision", 1)]


# The products.


@pytest.mark.parametrize(("name", "towers"), TABLES)
def test_products_are_three_passes_but_for_the_images_gradient(name, towers):
    table = preset(name, towers)
    first = table.rows()[0].multiply_adds
    assert sum(p.multiply_adds for p in products(table)) == 3 * table.multiply_adds - first


def test_products_by_hand():
    found = {p.name: p for p in products(preset("alexnet-paper", 2))}
    # 224 pixels and three zeros behind; the images need no gradient
    assert found["conv1"] == Product(
        "conv1", (3, 227, 227), (96, 3, 11, 11), (96, 55, 55), stride=4, input_gradient=False
    )
    assert found["conv1"].multiply_adds == 2 * 105_415_200
    assert found["conv2"] == Product("conv2", (96, 27, 27), (256, 48, 5, 5), (256, 27, 27), padding=2, groups=2)
    assert found["conv2"].multiply_adds == 3 * 223_948_800
    assert found["fc6"] == Product("fc6", (9216,), (4096, 9216), (4096,))
    assert found["fc6"].multiply_adds == 3 * 37_748_736


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """Multiply-adds of what is called, by the shapes of the calls."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        match func._overloadpacket._qualified_op_name:
            case "aten::convolution" | "aten::mkldnn_convolution":
                self.total += args[1].numel() * found[0, 0].numel() * len(found)
            case "aten::convolution_backward":
                gradient, _, weight = args[:3]
                self.total += sum(args[10][:2]) * weight.numel() * gradient[0, 0].numel() * len(gradient)
            case "aten::addmm":
                self.total += args[1].numel() * args[2].shape[1]
            case "aten::mm":
                self.total += args[0].numel() * args[1].shape[1]
        return found


@pytest.mark.parametrize("towers", [1, 2])
def test_what_is_multiplied_is_what_the_list_says(towers):
    table = preset("alexnet-paper", towers).scaled(1 / 8, size=96)
    found = products(table)
    work = [Multiplication(product, 2, torch.float32) for product in found]
    with Recorded() as recorded:
        for multiplication in work:
            multiplication.forward()
            multiplication.backward()
    assert recorded.total == 2 * sum(p.multiply_adds for p in found)


@pytest.mark.parametrize("towers", [1, 2])
def test_a_training_step_multiplies_as_much(towers):
    """The plain network's own step, counted: an independent source for the list."""
    table = preset("alexnet-paper", towers).scaled(1 / 8, size=96)
    network, images = plain_network(table), torch.rand(2, 3, 96, 96)
    with Recorded() as recorded:
        network(images).sum().backward()
    assert recorded.total == 2 * sum(p.multiply_adds for p in products(table))


# The plain network.


@pytest.mark.parametrize(
    ("name", "towers", "parameters"),
    [("alexnet-paper", 2, 60_965_224), ("fashion", 2, 45_351_626), ("fashion", 1, 46_764_746)],
)
def test_the_plain_network_has_the_presets_parameters(name, towers, parameters):
    with torch.device("meta"):
        network = plain_network(preset(name, towers))
    assert sum(p.numel() for p in network.parameters()) == parameters == preset(name, towers).parameters


@pytest.mark.parametrize(("name", "towers"), [("alexnet-paper", 2), ("fashion", 1), ("fashion", 2)])
def test_the_plain_network_is_the_same_function(name, towers):
    """Logits and every gradient, from the same weights. As people write it, its norms run over all channels."""
    table = preset(name, towers).scaled(1 / 4, size=96)
    table = replace(table, norm=replace(table.norm, across_towers=True))
    state = draw(table, seed=1)
    ours = splitnet.build(table, devices=["cpu"]).eval()
    ours.load_whole_state_dict(state)
    network = plain_network(table).eval()
    load_whole(network, table, state)
    images = torch.rand(3, table.channels, 96, 96)
    logits, expected = ours(images), network(images)
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    away = torch.randn_like(expected)
    logits.backward(away)
    expected.backward(away)
    for own, plain in zip(ours.parameters(), network.parameters(), strict=True):
        assert torch.linalg.norm(own.grad - plain.grad) <= 1e-5 * torch.linalg.norm(plain.grad)


@pytest.mark.slow
def test_tensors_at_the_peak_are_counted():
    """Weights, gradients and the optimizer's at least, and no more than a few images' activations over that."""
    settings = contenders.Settings(preset="fashion", batch_size=2, threads=1, optimizer="sgd")
    contender = contenders.Contender(CONTENDERS["plain"], settings)
    contender.prepare()
    contender.step()
    peak, held = contender.tensors(), 3 * 4 * contender.table.parameters
    assert held < peak < 1.1 * held


# The judgements.


def entry(*seconds, **more):
    return {"seconds": list(seconds)} | more


def test_targets_are_judged_round_by_round():
    entries = {
        "ours": entry(1.02, 1.02, resident=100, tensors=50),
        "ours-whole": entry(1.0, 1.0),
        "plain": entry(2.5, 2.4, resident=99, tensors=None),
        "plain-kept": entry(1.3, 1.3),
        "products": entry(0.9, 0.8),
    }
    found = {j["text"]: j for j in speed.judgements(speed.TARGETS["alexnet-paper"], entries)}
    assert found["float32 / plain as installed"]["value"].median == pytest.approx(2.45 / 1.02)
    assert found["float32 / plain as installed"]["reached"]
    assert not found["float32 / plain with our allocator"]["reached"]
    assert found[speed.SHARE]["value"].median == pytest.approx(0.85)
    assert found[speed.SHARE]["reached"]
    assert found["time of two towers / in one piece"]["reached"]
    assert "value" not in found["bf16 / plain float32 as installed"]
    assert not found["peak memory of ours / plain, resident"]["reached"]
    assert "peak memory of ours / plain, tensors" not in found


@pytest.mark.parametrize("batch", [2, 3])
def test_processes_share_a_batch_whole(batch):
    settings = contenders.Settings(preset="fashion", batch_size=batch, threads=1, optimizer="sgd")
    shares = [contenders.Contender(CONTENDERS["ddp"], replace(settings, rank=rank)).images for rank in range(2)]
    assert sum(shares) == batch
    assert contenders.Contender(CONTENDERS["plain"], settings).images == batch


def test_layouts_are_named_once():
    assert overhead.Options(only="cpu, whole,cpu").names == ["cpu", "whole"]
    with pytest.raises(splitnet.UsageError, match="--only all: no such layout"):
        overhead.Options(only="all")


def test_every_target_names_contenders():
    for targets in speed.TARGETS.values():
        assert {name for t in targets for name in (t.name, t.base)} <= set(CONTENDERS)


def test_a_slope_is_an_exponent():
    assert growth.slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert growth.slope([5, 7, 11], [2, 2, 2]) == pytest.approx(0)


def test_growth_is_judged_against_its_bound():
    points = [growth.Point(str(n), n, 100 * n, [0.1 * n**1.2]) for n in (1, 4, 16)]
    towers = {name: growth.Point(name, 1, 1, [s, s]) for name, s in (("2, one piece", 1.0), ("2, by themselves", 1.04))}
    batch, size, two = growth.verdicts(points, towers, points[:1])
    assert batch == "time over batch, from 4 images, medians of 1: slope 1.200 (at most 1.05: NOT REACHED)"
    assert growth.verdicts(points[:2], towers, points[:1])[0].endswith(
        "slope not measured (at most 1.05)"
    )  # one of them has 4 images
    assert size.endswith("slope not measured (at most 1.05)")
    assert two.endswith("median 1.040 (at most 1.05: reached)")


def test_names_of_points_do_not_touch():
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    batch = [growth.Point(str(n), n, n, [1.5 * n]) for n in sizes]
    drawn = str(growth.picture("", batch, {"7": growth.Point("7", 7, 7, [7.0])}, [growth.Point("9", 9, 9, [9.0])]))
    names = re.findall(r'text-anchor="middle" class="soft">(\d+)</text>', drawn)
    assert sorted(map(int, names)) == [1, 2, 4, 7, 8, 9, 16, 32, 64, 256]  # no room for 128 beside 256


# Processes.

TINY = {"preset": "fashion", "batch_size": 2, "threads": 1, "optimizer": "sgd"}


def children(pid: int | None = None) -> set[int]:
    """Processes that run a contender, as far as they are children of `pid` (this process)."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if any(word.endswith(b"contenders.py") for word in words) and parent == (pid or os.getpid()):
            found.add(int(path.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to see processes in")


def gone(pids: set[int], within: float = 20) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@needs_proc
def test_a_contender_that_dies_is_named_and_none_is_left(monkeypatch):
    monkeypatch.setattr(contest, "command", small_contenders.command)
    with Contest(["plain", "ours"], contenders.Settings(**TINY)) as both:
        both.prepare()
        started = children()
        assert len(started) == 2
        victim = both.contestants[1]._processes[0]
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(DeadContenderError, match=r"contender ours ended \(signal 9\)"):
            both.run(3)
    assert gone(started)


@pytest.mark.slow
def test_one_that_cannot_be_built_says_why(monkeypatch, capsys):
    monkeypatch.setattr(speed, "PRESETS", {"lenet": "sgd"})
    monkeypatch.setattr(speed, "TARGETS", {"lenet": ()})
    options = replace(speed.Options(), preset="lenet", batch_size=2, rounds=1, threads=1, only="plain")
    monkeypatch.setattr(speed, "parse", lambda *_: options)
    assert speed.main() == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("splitnet: error: contender plain ended (exit status 1): ")
    assert "lenet has one tower" in line


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)]
)  # SIGTERM, which nobody handles, ends it as SIGKILL does
def test_whatever_ends_it_leaves_none_behind(number):
    words = "--preset fashion --only plain,ddp --threads 1 --batch-size 2 --rounds 1000000"
    command = [sys.executable, small_contenders.__file__, *words.split()]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts behind it ignores Ctrl-C
    pipes = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": listening}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as process:
        end = time.monotonic() + 60
        while len(started := children(process.pid)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(6)  # some are at work by then
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert len(started) == 3
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert said == ""
    assert gone(started, 60)


@pytest.mark.slow
def test_figures_and_picture_are_written(tmp_path):
    files = tmp_path / "speed.json", tmp_path / "speed.svg"
    words = "--preset fashion --batch-size 2 --rounds 2 --threads 1 --only ours-whole,plain,products,ddp"
    command = [sys.executable, small_contenders.__file__, *words.split(), "--json", files[0], "--picture", files[1]]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(files[0].read_text("utf-8"))
    assert {name: len(e["seconds"]) for name, e in found["contenders"].items()} == dict.fromkeys(
        ["ours-whole", "plain", "products", "ddp"], 2
    )
    assert found["contenders"]["plain"]["allocator"] == "as installed"
    weights = 4 * small("fashion", 2).parameters
    for name in ("ours-whole", "plain"):
        assert found["contenders"][name]["resident"] > 4 * weights  # Adam: weights, gradients and two moments
        assert found["contenders"][name]["tensors"] > 4 * weights
    assert re.search(r"product share: .* \d\.\d{3} \[.*\] \(at least 0\.80", done.stdout)
    assert "ours-whole" in ElementTree.fromstring(files[1].read_text("utf-8")).find(".//*[@class='on']/..").itertext()


def test_wrong_files_and_names_are_refused(tmp_path):
    with pytest.raises(splitnet.UsageError, match=r"x\.png: the picture is SVG"):
        speed.Options(picture=tmp_path / "x.png")
    with pytest.raises(splitnet.UsageError, match="no such folder"):
        speed.Options(json=tmp_path / "gone" / "x.json")
    with pytest.raises(splitnet.UsageError, match="is a folder"):
        speed.Options(json=tmp_path)
    with pytest.raises(splitnet.UsageError, match=r"--only nobody: no such contender \(there are ours, "):
        speed.chosen(speed.Options(only="ours,nobody"))


@pytest.mark.parametrize("lacks", [None, "no bf16 here"])
def test_bf16_is_left_out_where_the_cpu_has_none(monkeypatch, lacks):
    monkeypatch.setattr(speed, "bf16_lacks", lambda: lacks)
    names, lines = speed.chosen(speed.Options(preset="alexnet-paper"))
    assert ("ours-bf16" in names) == (lacks is None)
    assert bool(lines) == (lacks is not None)
    assert not any("plain-dense" in name for name in names)
    assert "plain-dense" in speed.chosen(speed.Options(preset="fashion"))[0]
    if lacks:
        with pytest.raises(splitnet.UsageError, match="--only ours-bf16: no bf16 here"):
            speed.chosen(speed.Options(only="ours-bf16"))


@pytest.mark.parametrize(
    ("ratios", "said"), [([0.4, 0.41, 0.4], "shown"), ([0.4, 0.7, 0.3], "not shown"), ([0.1], "not shown")]
)
def test_norms_say_whether_their_claim_is_shown(ratios, said):
    """By the interval, not by the median."""
    assert response_norm.verdict(response_norm.Ratio.of(ratios)) == f"at most 0.5: {said}"


def test_help_names_the_contenders(capsys):
    with pytest.raises(SystemExit):
        speed.parse(speed.Options, "experiments/speed.py", "", ["--help"])
    assert "ours-whole" in capsys.readouterr().out
