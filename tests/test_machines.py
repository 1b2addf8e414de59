"""Machines: every figure has a source, a file is what it says, and no figure that cannot be is believed."""

import json
from dataclasses import fields, replace

import pytest

from splitnet.errors import UsageError
from splitnet.machines import MACHINES, Machine, as_json, emulate, machine, read

FIGURES = [f.name for f in fields(Machine) if f.name not in ("name", "gpu", "measured", "sources")]
LEAST = {"float32": 1e12, "memory_bandwidth": 1e11, "memory": 1e9, "link": 1e10}


def plain(**figures):
    return Machine(name="m", **LEAST | figures)


@pytest.fixture
def described(tmp_path):
    """Writes a machine's file and reads it."""

    def write(content):
        path = tmp_path / "mine.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read(path)

    return write


def test_all_missing_figures_are_named(described):
    with pytest.raises(UsageError, match=r"mine.json: float32, memory_bandwidth, memory, link are missing$"):
        described({})


def test_a_command_names_its_own_option():
    with pytest.raises(
        UsageError, match=r"^--machines here: no such machine or file \(there are gtx580-pcie2"
    ) as caught:
        machine("here", "--machines", here=False)
    assert "and here" not in str(caught.value)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_has_a_source(name, figure):
    found = MACHINES[name]
    if getattr(found, figure) is not None:
        assert len(found.sources[figure]) > 9
    assert found.name == name


@pytest.mark.parametrize("name", MACHINES)
def test_peaks_are_a_vendors_and_shares_below_one(name):
    found = MACHINES[name]
    for figure in ("float32", "memory_bandwidth"):
        assert found.sources[figure].startswith("NVIDIA")
    for share in ("float32_share", "tensor_share", "memory_share", "link_share"):
        assert 0 < getattr(found, share) < 1


def test_a_gtx_580_by_hand():
    found = machine("gtx580-pcie2")
    assert found.float32 == pytest.approx(512 * 2 * 1.544e9, rel=1e-3)
    assert found.memory_bandwidth == pytest.approx(384 / 8 * 4.008e9, rel=1e-3)
    assert found.link == 5e9 * 16 * 8 / 10 / 8
    assert (found.tf32, found.bf16) == (None, None)
    assert found.link_bytes_per_second == 6e9


def test_machines_grow_with_the_years():
    order = ["gtx580-pcie2", "k40-pcie3", "titanx-pcie3", "gtx1080ti-pcie3", "v100-nvlink2", "a100-nvlink3"]
    for figure in ("float32", "memory_bandwidth"):
        values = [getattr(MACHINES[name], figure) for name in [*order, "h100-nvlink4"]]
        assert values == sorted(values)
    assert MACHINES["h100-pcie4"].link < MACHINES["h100-pcie5"].link < MACHINES["h100-nvlink4"].link
    assert MACHINES["h100-pcie4"].float32 == MACHINES["h100-pcie5"].float32


def test_a_transfer_takes_latency_and_then_its_bytes():
    found = plain(link=1e10, link_share=0.5, latency=1e-5)
    assert found.transfer(5e9) == pytest.approx(1 + 1e-5)
    assert found.transfer(0) == 0
    assert replace(found, both_ways=False).transfer(5e9) == pytest.approx(2 + 1e-5)
    assert replace(found, both_ways=False).transfer(5e9, answered=False) == pytest.approx(1 + 1e-5)


def test_precisions_that_are_not_there_are_refused_by_name():
    assert plain(bf16=4e12, tensor_share=0.5).flops("bf16") == 2e12
    with pytest.raises(UsageError, match=r"^--precision tf32: m has no such units \(it has float32, bf16\)$"):
        plain(bf16=4e12).flops("tf32")


def test_fake_devices_get_the_machines_proportions():
    factor, link, latency = emulate(plain(float32=1e12, float32_share=0.5, latency=3e-6, link_share=0.5), 1e11)
    assert (factor, link, latency) == (5.0, 5e9, 3e-6)
    slow, fast = (emulate(plain(), flops)[0] for flops in (2e11, 1e11))
    assert fast == 2 * slow
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no machine computes"):
            emulate(plain(), wrong)


@pytest.mark.parametrize("name", MACHINES)
def test_a_file_says_the_same_again(name, described):
    assert described(as_json(MACHINES[name])) == MACHINES[name]


def test_a_file_needs_four_figures_and_may_say_more(described):
    found = described(LEAST | {"bf16": None, "latency": 0, "launch": 0, "measured": {"adam": 1e9}})
    assert (found.name, found.latency, found.bf16, found.measured) == ("mine", 0, None, {"adam": 1e9})


@pytest.mark.parametrize("figure", LEAST)
def test_a_missing_figure_is_named(figure, described):
    with pytest.raises(UsageError, match=f"mine.json: {figure} is missing$"):
        described({key: value for key, value in LEAST.items() if key != figure})


NUMBERS = sorted(set(FIGURES) - {"both_ways"})
IMPOSSIBLE = [-1, float("nan"), float("inf"), "fast", True, [1], {}, 10**400, 1e19]


@pytest.mark.parametrize("figure", NUMBERS)
@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
def test_a_figure_that_cannot_be_is_named_in_one_line(figure, value, described):
    with pytest.raises(UsageError) as caught:
        described(LEAST | {figure: value})
    text = str(caught.value)
    assert f" {figure} is " in text
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize("figure", sorted(set(NUMBERS) - {"latency", "launch"}))
def test_zero_is_no_figure(figure, described):
    with pytest.raises(UsageError, match=f" {figure} is 0, not "):
        described(LEAST | {figure: 0})


@pytest.mark.parametrize("figure", LEAST)
def test_what_is_required_may_not_be_null(figure, described):
    with pytest.raises(UsageError, match=f" {figure} is None, not "):
        described(LEAST | {figure: None})


WRONG = [
    (LEAST | {"float32_share": 1.5}, "float32_share is 1.5, not a share"),
    (LEAST | {"latency": 2}, "latency is 2, not seconds, 0 to 1"),
    (LEAST | {"both_ways": 1}, "both_ways is 1, not true or false"),
    (LEAST | {"flops": 1}, "'flops' is no figure of a machine"),
    (LEAST | {"two\nlines": 1}, r"'two\nlines' is no figure"),
    (LEAST | {"name": "two\nlines"}, "not a line of text"),
    (LEAST | {"sources": {"link": 1}}, "not a line of text for each figure, by its name"),
    (LEAST | {"sources": {"link": "\x1b[31mred"}}, "not a line of text for each figure, by its name"),
    (LEAST | {"sources": {"lnk": "a data sheet"}}, "not a line of text for each figure, by its name"),
    (LEAST | {"memory": 2000}, "memory is 2000, not a size of at least 1,048,576 bytes"),
    (LEAST | {"measured": {"adam": 0}}, "not a number above 1000 for each kind"),
    ([1], "an object of figures is wanted, not list"),
    ("{", "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    ("", "is no JSON"),
]


@pytest.mark.parametrize(("content", "text"), WRONG, ids=[text for _, text in WRONG])
def test_a_wrong_file_is_one_line(content, text, described):
    with pytest.raises(UsageError) as caught:
        described(content)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_machine_lists_the_known(tmp_path):
    with pytest.raises(UsageError) as caught:
        machine("gtx9000")
    assert "gtx9000: no such machine or file" in str(caught.value)
    assert all(name in str(caught.value) for name in [*MACHINES, "here"])
    with pytest.raises(UsageError, match="cannot be read"):
        machine(str(tmp_path / "none.json"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no JSON"):
        machine(str(tmp_path / "bytes.json"))
