"""The command: which link is at fault and how, in a table that can be read, and an exit status."""

import re
from itertools import permutations

import pytest
import torch
from layouts import small
from quick import few

from splitnet import doctor
from splitnet.doctor import main, worst_first
from splitnet.parallel import device_links, fake, probes
from splitnet.parallel.probes import Difference, LinkReport
from splitnet.testing import fake_devices  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fake_devices")]

ONE, TWO, HOST = "fake:0", "fake:1", "cpu"
DEVICES = [f"fake:{i}" for i in range(4)]
WAYS = list(permutations((ONE, TWO, HOST), 2))
KINDS = ("zeros", "stale", "flip", "misroute")


@pytest.fixture(autouse=True)
def threads():
    """`main` sets PyTorch's for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def examine(monkeypatch, capsys):
    """Runs the command on an eighth of a preset, without the largest sizes: exit status, stdout, stderr."""
    monkeypatch.setattr(doctor, "preset", small)
    monkeypatch.setattr(probes, "STAGING", 1 << 12)

    def run(*words):
        code = main(["--batch-size", "2", *words])
        return code, *capsys.readouterr()

    return run


def rows(out):
    """Each link of the table, in order: (from, to) and what was found."""
    words = [line.split() for line in out.splitlines()]
    return [((w[0], w[2]), w[3]) for w in words if len(w) > 3 and w[1] == "->" and w[2] in (HOST, *DEVICES)]


def last(out):
    return out.splitlines()[-1]


def test_sound_links_are_called_sound(examine):
    code, out, err = examine()
    assert (code, err) == (0, "")
    assert sorted(rows(out)) == sorted((way, "sound") for way in WAYS)
    assert last(out).startswith("Sound: all ")
    assert "Times are emulated" in out
    for row in ("conv3", "fc6", "fc7", "fc8"):
        for phase in ("forward", "backward"):
            assert f"{row} {phase} sound 0 / " in " ".join(out.split())


# Each kind and each way; that the check finds every kind on every way is test_parallel_links.py's.
SAID = dict(zip(WAYS, ("misroute", "stale", "flip", "zeros", "flip", "misroute"), strict=True))


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=() if SAID[way] == kind else pytest.mark.soak, id=f"{kind}-{'-'.join(way)}")
        for way in WAYS
        for kind in KINDS
    ],
)
def test_each_fault_on_each_way_is_found_and_named(examine, kind, way):
    with fake.fault(kind, source=way[0], target=way[1]):
        code, out, err = examine()
    assert (code, err) == (1, "")
    found = rows(out)
    assert found[0][0] == way  # the worst first
    if not (kind == "misroute" and way[0] == HOST):  # what the host sent elsewhere leaves whatever was there
        assert found[0][1] == kind
    assert [link for link, what in found if what not in ("sound", "not")] == [way]
    assert last(out).startswith(f"NOT sound: {way[0]} -> {way[1]}.")
    assert ("--link host" in last(out)) == (HOST not in way)
    assert max(map(len, out.splitlines()[1:-1])) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("kind", few(KINDS, "flip"))
def test_what_goes_wrong_now_and_then_is_found(examine, kind):
    with fake.fault(kind, source=TWO, target=ONE, every=3):
        code, out, _ = examine()
    assert code == 1
    assert "NOT sound: fake:1 -> fake:0." in last(out)
    assert dict(rows(out))[TWO, ONE] == kind


def test_what_differs_is_said_in_full(examine):
    with fake.fault("flip", source=ONE, target=TWO):
        _, out, _ = examine()
    said = (
        r"fake:0 -> fake:1: (\d+) of \1 tensors are wrong \(flip: float64 x 65,537, round 0: bit 0 of byte 0 of 524,296"
    )
    assert re.search(said, " ".join(out.split()))


def test_a_slow_link_is_sound_and_stands_first(examine):
    with fake.fault("slow", source=ONE, target=TWO, factor=8):
        code, out, _ = examine()
    assert code == 0
    assert rows(out)[0] == ((ONE, TWO), "sound")
    rate = {w[0] + w[2]: float(w[7]) for w in map(str.split, out.splitlines()) if len(w) == 9 and w[1] == "->"}
    assert rate[TWO + ONE] / rate[ONE + TWO] == pytest.approx(8, rel=0.05)


def test_through_the_host_only_its_links_matter(examine):
    with fake.fault("zeros", source=ONE, target=TWO):
        code, out, _ = examine("--link", "host")
        assert code == 0
        assert "Between devices everything went through host memory." in out
    with fake.fault("zeros", source=ONE, target=HOST):
        code, out, _ = examine("--link", "host")
        assert code == 1
        assert "host memory instead" not in out


def test_an_exchange_that_is_wrong_over_sound_links_is_not_sound(examine, monkeypatch):
    right = device_links.LocalExchange.gather
    monkeypatch.setattr(device_links.LocalExchange, "gather", lambda self, xs, row: right(self, xs[::-1], row))
    code, out, _ = examine()
    assert code == 1
    assert last(out).startswith("NOT sound: ")
    assert "fc8 forward: 3 of 3 tensors are wrong" in " ".join(out.split())


@pytest.mark.parametrize(
    ("devices", "said"),
    [("cpu,cpu", "nothing crosses a link"), ("fake:0,fake:0", "Sound: all"), ("fake:1", "Sound: all")],
)
def test_towers_may_share_a_device(examine, devices, said):
    code, out, _ = examine("--devices", devices)
    assert code == 0
    assert said in out


def test_four_towers_on_four_devices(examine):
    code, out, _ = examine("--towers", "4")
    assert code == 0
    assert len(rows(out)) == 4 * 3 + 2 * 4


def test_output_is_plain_and_fits(examine):
    _, out, _ = examine()
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "\x1b" not in out
    assert set(out) - set("─") <= set(map(chr, range(128)))


def test_the_seed_changes_what_is_sent(examine, monkeypatch):
    seeds = []
    right = device_links.Contents
    monkeypatch.setattr(
        device_links, "Contents", lambda device, size, seed: (seeds.append(seed), right(device, size, seed))[1]
    )
    examine("--seed", "7")
    assert set(seeds) == {7}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "fake:0,fake:9"], "--devices fake:9"),
        (["--devices", "a,b"], "--devices a"),
        (["--devices", "cpu,cpu,cpu"], "3 devices for --towers 2"),
        (["--link", "peer"], "--link"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--seed", "-1"], "--seed -1: at least 0"),
        (["--threads", "0"], "--threads 0"),
        (["--towers", "5"], "--towers 5"),
        (["--crosses", "conv9"], "--crosses conv9"),
        (["--preset", "vgg"], "--preset"),
        (["--steps", "1"], "--steps"),
    ],
)
def test_wrong_options_are_one_line(capsys, words, said):
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("splitnet: error: ")
    assert err.count("\n") == 1
    assert said in err


def test_what_does_not_fit_is_one_line(examine, capsys):
    fake.set_capacity(TWO, 1 << 16)
    code, _, err = examine()
    assert code == 1
    assert err.startswith("splitnet: error: out of memory; a smaller --batch-size needs less")


def test_the_worst_is_first():
    def report(name, wrong, rate=1.0, untested=""):
        worst = Difference("zeros", "x", "y", 1) if wrong else None
        return LinkReport(name, "b", tensors=10, wrong=wrong, worst=worst, rates=(rate,), untested=untested)

    reports = [
        report("fast", 0, 2.0),
        report("slow", 0),
        report("bad", 3),
        report("unknown", 0, 9, "why"),
        report("worst", 9),
    ]
    assert [r.source for r in worst_first(reports)] == ["worst", "bad", "unknown", "slow", "fast"]
