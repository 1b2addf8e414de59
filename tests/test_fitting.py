"""What fits: limits, and the line that says which row did not and by how much."""

import gc
import io
import json
import pickle
import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from layouts import small
from quick import few

from splitnet import job, run, tables
from splitnet.comparison import Contender, Training, compare
from splitnet.errors import UsageError
from splitnet.fitting import DoesNotFitError, Refusal, Room, check, explain, read_limit, read_size, snapshot
from splitnet.measure.records import plain
from splitnet.parallel import fake
from splitnet.parallel.placement import host, place
from splitnet.training.data import batches, load
from splitnet.training.loop import evaluate, training_step
from splitnet.training.optimizer import make_optimizer

pytestmark = pytest.mark.slow  # whole runs: `make fast` leaves them out

KIB, MIB, GIB = 2**10, 2**20, 2**30
TABLE = small("fashion")
ROWS = [row.name for row in TABLE.rows()]
CROSSING = [row.name for row in TABLE.rows() if row.crosses]
FAKES = ["fake:0", "fake:1"]


@pytest.fixture(autouse=True, scope="module")
def swept():
    """Garbage is collected often here: leave out what was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fresh():
    fake.install(2)
    fake.reset()
    gc.collect()  # what others left must not go under way
    yield
    fake.reset()
    gc.collect()  # nor for others what is left here


def allocated(device):
    return torch.fake.memory_allocated(torch.device(device))


def fill(device, spare=0):
    """Leave a device `spare` bytes."""
    fake.set_capacity(device, allocated(device) + spare)


@pytest.fixture(scope="module")
def data():
    return load("fashion-mnist-small", size=TABLE.size)


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3GiB", 3 * GIB),
        ("1.5 gib", 3 * GIB // 2),
        ("512MiB", 512 * MIB),
        ("2GB", 2 * 10**9),
        ("0.5MB", 500_000),
        ("64kB", 64_000),
        ("64KiB", 64 * KIB),
        ("1TiB", 1024 * GIB),
        ("1000000", 1_000_000),
        ("1000000B", 1_000_000),
    ],
)
def test_sizes_are_read(text, size):
    assert read_size(text) == read_limit(text) == size


def test_without_a_limit_there_is_none():
    assert read_limit(None) is None


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "0.1", "GiB", "3 giraffes", "3Gi", "1e9", "nan", "9" * 20, "3,5GB", "٣"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=rf"^--memory-limit {text}: a size such as 3GiB"):
        read_size(text)


# Messages of PyTorch, of which only the numbers are ours

LIMITED = (
    "CUDA out of memory. Tried to allocate 994.00 MiB. GPU 1 has a total capacity of 44.43 GiB of which 9.06 GiB is "
    "free. Process 4711 has 17.54 GiB memory in use. Including non-PyTorch memory, this process has 17.81 GiB memory "
    "in use. 17.50 GiB allowed; Of the allocated memory 17.25 GiB is allocated by PyTorch, with 17.00 MiB allocated in "
    "private pools (e.g., CUDA Graphs), and 64.00 MiB is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
    "documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html)"
)
FULL = (
    "CUDA out of memory. Tried to allocate 320.00 MiB. GPU 0 has a total capacity of 31.37 GiB of which 80.50 MiB is "
    "free. Including non-PyTorch memory, this process has 31.28 GiB memory in use. Of the allocated memory 30.76 GiB "
    "is allocated by PyTorch, and 33.46 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def test_cudas_message_under_a_limit():
    assert Refusal.read(LIMITED) == Refusal("cuda:1", 994 * MIB, (994 + 64 - 256) * MIB, limited=True)


def test_cudas_message_of_a_full_gpu():
    assert Refusal.read(FULL) == Refusal("cuda:0", 320 * MIB, 239 * MIB + MIB // 2, limited=False)


def test_a_gpu_that_is_full_before_the_limit_is_reached():
    full = LIMITED.replace("17.50 GiB allowed", "40.00 GiB allowed").replace("9.06 GiB is free", "0 bytes is free")
    assert Refusal.read(full) == Refusal("cuda:1", 994 * MIB, 994 * MIB, limited=False)
    said = explain(torch.OutOfMemoryError(full), 40 * GIB)
    assert said.startswith("cuda:1: loading the weights needs 994.00 MiB, 994.00 MiB more than is free; ")


@pytest.mark.parametrize("free", ["320.00 MiB", "800.00 MiB"])
def test_free_memory_in_pieces(free):
    said = explain(torch.OutOfMemoryError(FULL.replace("80.50 MiB", free)), None)
    assert said.startswith("cuda:0: loading the weights needs 320.00 MiB, more in one piece than is free; ")


def test_another_message_is_passed_on_in_one_line():
    said = explain(torch.OutOfMemoryError("too much\nand more"), GIB)
    assert said == "out of memory; a smaller --batch-size needs less (too much)"


def test_a_fake_devices_message_is_exact():
    torch.zeros(25, device="fake:1")
    fill("fake:1", 1000)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.zeros(KIB, device="fake:1")
    assert str(caught.value).endswith(" is allocated. 3.02 KiB (3,096 bytes) are missing.")
    assert Refusal.read(str(caught.value)) == Refusal("fake:1", 4096, 3096, limited=True)


# Places: a device is filled at a known moment, and the line must name what came next


class Stage:
    """A network, its optimizer and a batch, in a room without a limit of its own."""

    def __init__(self, data, devices, optimizer="adam", limit=None):
        gc.collect()
        placement = place(TABLE, devices)
        self.batch = next(batches(data.train, 4, None))
        self.data = data
        with Room(placement.devices, limit) as self.room:
            self.net = host(TABLE, placement, 0)
            self.optimizer = make_optimizer(self.net.parameters(), optimizer)
            self.room.watch(self.net, self.optimizer)

    def block(self, row, device):
        for tower in self.net.hosted:
            if row in tower and str(tower[row].weight.device) == device:
                return tower[row]
        return None

    def step(self, count=1):
        with self.room:
            for _ in range(count):
                training_step(self.net, self.optimizer, self.batch)

    def said(self, action=None):
        with pytest.raises(DoesNotFitError) as caught, self.room:
            (action or self.step_once)()
        fake.reset()
        return str(caught.value)

    def step_once(self):
        training_step(self.net, self.optimizer, self.batch)


def before(owner, name, first):
    """Have `first` called with the arguments of a method before it is."""
    method = getattr(owner, name)

    def both(*args, **kwargs):
        first(*args, **kwargs)
        return method(*args, **kwargs)

    object.__setattr__(owner, name, both)


LAYOUTS = [(FAKES, "fake:0"), (FAKES, "fake:1"), (["fake:1"], "fake:1"), (["fake:0", "fake:0"], "fake:0")]
everywhere = pytest.mark.parametrize(("devices", "full"), LAYOUTS, ids=["first", "second", "whole", "shared"])
in_two_places = pytest.mark.parametrize(("devices", "full"), few(LAYOUTS, *LAYOUTS[:2]))


@everywhere
def test_forward_names_its_row_and_the_bytes(data, devices, full):
    for row in TABLE.rows():
        stage = Stage(data, devices)
        if (block := stage.block(row.name, full)) is None:
            continue
        before(block, "forward", lambda *_, **__: fill(full, 5))
        needs = re.escape(f"{full}: forward of {row.name} needs ") + r"([\d.]+) (bytes|KiB)"
        found = re.match(needs + r", ([\d.]+) (bytes|KiB) more than is free; a smaller --batch-size", stage.said())
        assert found, row
        if row.name == "conv1":  # the convolution's result, in float32
            places = 4 * row.layer.out // (len(devices)) * row.outputs[0][1] ** 2
            assert float(found[1]) == pytest.approx(places * 4 / KIB, abs=0.01)


@pytest.mark.parametrize("full", FAKES)
@pytest.mark.parametrize("row", CROSSING)
def test_an_exchange_is_told_from_its_row(data, row, full):
    if (row, full) == ("fc8", "fake:1"):
        return  # tower 0 alone reads it
    stage = Stage(data, FAKES)
    verb = "gather" if row == "fc8" else "all_gather"
    before(stage.net.exchange, verb, lambda _, name: fill(full, 5) if name == row else None)
    assert stage.said().startswith(f"{full}: the exchange before {row} needs ")


@in_two_places
def test_backward_names_its_row(data, devices, full):
    for row in ROWS:
        stage = Stage(data, devices)
        if (block := stage.block(row, full)) is None:
            continue
        stage.step(2)  # nothing may depend on state being there or not
        forward = block.forward

        def hooked(*args, forward=forward):
            out = forward(*args)
            out.register_hook(lambda grad: fill(full, 5))
            return out

        block.forward = hooked
        assert stage.said().startswith(f"{full}: backward of {row} needs "), row


def test_backward_of_one_device_may_be_ahead_of_the_others(data):
    """As on two GPUs, which go backward in a thread each."""
    stage = Stage(data, FAKES)
    for device, reached in (("fake:0", "conv3"), ("fake:1", "fc6")):
        for row in ROWS[ROWS.index(reached) :]:
            for parameter in block.parameters() if (block := stage.block(row, device)) else ():
                parameter.grad = torch.zeros_like(parameter)

    def full(device):
        message = "out of memory. Tried to allocate 4.00 KiB. 2.00 KiB (2,048 bytes) are missing."
        raise torch.OutOfMemoryError(f"{device} {message}")

    for device, row in (("fake:0", "conv2"), ("fake:1", "conv5")):
        x = torch.ones(1, requires_grad=True)
        x.register_hook(lambda _, device=device: full(device))
        said = stage.said(x.sum().backward)
        assert said.startswith(f"{device}: backward of {row} needs 4.00 KiB, 2.00 KiB more than is free; ")


@in_two_places
def test_the_optimizers_state_names_its_row(data, devices, full):
    for row in ROWS:
        for kind in ("weight", "bias"):
            stage = Stage(data, devices)
            if (block := stage.block(row, full)) is None:
                continue
            held = [p for p in stage.net.parameters() if str(p.device) == full]
            earlier = held[: next(i for i, p in enumerate(held) if p is getattr(block, kind))]
            spare = sum(8 * p.numel() + 4 for p in earlier) + 4  # two moments, and its count of steps
            before(stage.optimizer, "step", lambda *_, spare=spare: fill(full, spare))
            expected = f"{full}: the optimizer's state of {row} needs "
            said = stage.said()
            assert said.startswith(expected), (row, kind)
            assert said.endswith(" more than is free; --optimizer sgd needs less")


def test_sgds_state_is_entered_all_at_once(data):
    stage = Stage(data, FAKES, "sgd")
    before(stage.optimizer, "step", lambda *_: fill("fake:1", 5))
    assert re.fullmatch(r"fake:1: the optimizer's state needs \S+ \w+, \S+ \w+ more than is free", stage.said())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("full", FAKES)
def test_images_are_told(data, full, steps):
    stage = Stage(data, FAKES)
    stage.step(steps)
    before(stage.net.exchange, "replicate", lambda *_: fill(full, 5))
    for action in (None, partial(evaluate, stage.net, data.test, batch_size=4, images=8)):
        assert stage.said(action).startswith(f"{full}: reading the images or their loss needs ")


def test_a_test_names_its_row(data):
    stage = Stage(data, FAKES)
    stage.step()
    before(stage.block("conv4", "fake:1"), "forward", lambda *_: fill("fake:1", 5))
    said = stage.said(partial(evaluate, stage.net, data.test, batch_size=4, images=8))
    assert said.startswith("fake:1: forward of conv4 needs ")


@pytest.mark.parametrize(("devices", "full"), LAYOUTS[:3])
def test_weights_are_told(data, devices, full):
    fake.set_capacity(full, allocated(full) + 20_000)
    with pytest.raises(DoesNotFitError, match=rf"^{full}: loading the weights needs .*more devices hold less each$"):
        Stage(data, devices)


# The limit itself


def needed(data, devices, optimizer, limit):
    """What was said within a limit; "" if two steps fit."""
    try:
        stage = Stage(data, devices, optimizer, limit)
        stage.step(2)
    except DoesNotFitError as error:
        return str(error), error.__cause__
    return "", None


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", few(["adam", "sgd"], "adam"))
def test_what_is_missing_is_exact(data, optimizer):
    """Each time what is missing is added: at one byte less the same is missing one byte, and in the end it fits."""
    limit, places = 1, []
    before_all = allocated("fake:0")
    for turn in range(150):
        said, cause = needed(data, ["fake:0"], optimizer, limit)
        if not said:
            break
        limit += Refusal.read(str(cause)).missing
        del cause
        assert allocated("fake:0") == before_all
        places.append(re.match(r"fake:0: (.*?) needs", said)[1])
        if turn % 5 == 0:
            short = needed(data, ["fake:0"], optimizer, limit - 1)[0]
            assert short.startswith(f"fake:0: {places[-1]} needs ")
            assert ", 1 bytes more than --memory-limit " in short
    else:
        pytest.fail("it never fits")
    torch.fake.reset_peak_memory_stats("fake:0")
    assert needed(data, ["fake:0"], optimizer, limit) == ("", None)
    assert torch.fake.max_memory_allocated("fake:0") - before_all == limit
    check_order(places)


def check_order(places):
    """Weights, then two steps: forward down the table, backward up, the optimizer down again."""
    step = [f"forward of {row}" for row in ROWS] + [f"backward of {row}" for row in reversed(ROWS)]
    step = ["reading the images or their loss", *step, "the optimizer's state"]
    step += [f"the optimizer's state of {row}" for row in ROWS]
    whole = ["loading the weights", *step, *step]
    found = 0
    for one in places:  # ValueError where it is not in this order
        found = whole.index(one, found)
    assert places[0] == "loading the weights"
    assert found > len(step)


def test_a_limit_holds_beside_what_others_hold_and_ends_with_the_room():
    device = torch.device("fake:0")
    others = torch.zeros(100, device=device)
    room = Room([device, device, torch.device("cpu")], 1000)
    with room:
        own = torch.zeros(200, device=device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(51, device=device)
    torch.zeros(10_000, device=device)
    more = torch.zeros(1000, device=device)
    with room:  # its own 800 count, the others' 4400 do not
        torch.zeros(50, device=device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(51, device=device)
    del own, others, more
    with pytest.raises(DoesNotFitError, match=r"loading the weights needs 1.17 KiB, 200 bytes more than --memory-lim"):
        hold(device, 300, 1000)
    torch.zeros(10_000, device=device)


def hold(device, count, limit):
    """So many float32 numbers in a room."""
    with Room([device], limit):
        torch.zeros(count, device=device)


def test_other_errors_pass_and_the_limit_ends():
    with pytest.raises(KeyboardInterrupt), Room([torch.device("fake:0")], 10):
        raise KeyboardInterrupt
    torch.zeros(10_000, device="fake:0")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_devices_with_counters_can_be_limited(device):
    check([torch.device("fake:0"), torch.device("cuda:0")], "3GiB", snapshot=False)
    check([torch.device(device)], None, snapshot=False)
    with pytest.raises(UsageError, match=rf"^--memory-limit 3GiB: {device} has no memory counters; fake devices have"):
        check([torch.device("fake:0"), torch.device(device)], "3GiB", snapshot=False)


# The comparison


def comparison(data, limit=None, devices=FAKES, table=TABLE):
    rounds = 2
    steps = [next(batches(data.train, 4, None))] * (2 + rounds)
    *_, (_, found) = compare(table, place(table, devices), Training(steps, "adam", None, 0), rounds, limit)
    return plain(found)


@pytest.fixture(scope="module")
def unlimited(data):
    fake.install(2)
    return comparison(data)


def peaks(found):
    return {c["layout"]: max(m["peak"] for m in c["memory"].values()) for c in found["layouts"] if "memory" in c}


def test_each_layout_has_the_limit_to_itself(data, unlimited):
    """All fit within the largest peak, though the four together hold more than three times that."""
    highest = max(peaks(unlimited).values())
    before_all = allocated("fake:0")
    found = comparison(data, highest)
    assert peaks(found) == peaks(unlimited)
    assert [c["losses"] for c in found["layouts"]] == [c["losses"] for c in unlimited["layouts"]]
    assert allocated("fake:0") == before_all


@pytest.mark.parametrize("layout", ["dense", "whole"])
def test_a_layout_that_misses_one_byte_is_left_out(data, unlimited, layout):
    limit = peaks(unlimited)[layout] - 1
    found = comparison(data, limit)
    assert [c["layout"] for c in found["layouts"]] == ["towers", "whole", "replicas", "dense"]
    left_out = [c for c in found["layouts"] if peaks(unlimited)[c["layout"]] > limit]
    assert layout in [c["layout"] for c in left_out]
    for column in found["layouts"]:
        if column in left_out:
            assert set(column) - {"replicas"} == {"layout", "towers", "devices", "parameters", "does_not_fit"}
            assert re.match(r"fake:[01]: \S.* needs .* more than --memory-limit ", column["does_not_fit"])
        else:
            assert column["step_ms"]["n"] == 2
            assert column["losses"] == next(
                c["losses"] for c in unlimited["layouts"] if c["layout"] == column["layout"]
            )
    whole_fits = layout == "dense"
    assert found["base"] == ("whole" if whole_fits else "towers")
    assert (found["layouts"][0]["ratio"] is not None) == whole_fits
    assert (found["layouts"][0]["loss_differences"] is not None) == whole_fits


@pytest.mark.slow
def test_where_replicas_do_not_fit_a_line_says_which_row_and_phase(data):
    """From the first byte that is missed to the last: each phase is named, and on which of the two devices."""
    training = Training([next(batches(data.train, 4, None))] * 2, "adam", None, 0)
    full = Contender("replicas", TABLE, place(TABLE, FAKES), training).memory
    peak = max(held.peak for held in full.values())
    said = []
    for limit in range(10_000, peak, peak // 60):
        with pytest.raises(DoesNotFitError) as raised:
            Contender("replicas", TABLE, place(TABLE, FAKES), training, limit)
        said.append(str(raised.value))
    named = [rf"{phase} of [a-z]+\d" for phase in ("forward", "backward", "the optimizer's state")]
    named += ["loading the weights", "the sum of the gradients"]
    what = "|".join([*named, "reading the images or their loss"])
    known = [re.match(rf"(fake:[01]): ({what}) needs .* more than --memory-limit", line) for line in said]
    assert all(known), said
    assert {match[1] for match in known} == set(FAKES)
    assert all(any(re.fullmatch(phase, match[2]) for match in known) for phase in named)


def test_what_was_left_out_holds_nothing(data, unlimited):
    before_all = allocated("fake:0")
    comparison(data, peaks(unlimited)["whole"] - 1)
    assert allocated("fake:0") == before_all


def test_a_layout_that_stops_fitting_under_way_is_left_out(data, monkeypatch):
    """As on a GPU, where the free memory of the second round may be in smaller pieces."""
    entered = Room.__enter__
    count = []

    def shrinking(room):
        count.append(room)
        if len(count) > 4 + 4 and room is count[1]:  # the second layout in the second round
            room.limit = 1
        return entered(room)

    monkeypatch.setattr(Room, "__enter__", shrinking)
    found = comparison(data, GIB)
    assert ["does_not_fit" in c for c in found["layouts"]] == [False, True, False, False]
    assert [c["ratio"] for c in found["layouts"] if "ratio" in c] == [None, None, None]


def test_if_nothing_fits_it_is_an_error(data, unlimited):
    with pytest.raises(DoesNotFitError, match=r"^fake:[01]: .* more than --memory-limit "):
        comparison(data, min(peaks(unlimited).values()) - 1)


def printed(found):
    console = tables.Console(width=80, file=io.StringIO())
    with console.capture() as caught:
        console.print(tables.results(found))
        console.print(tables.notes(found), highlight=False)
    return caught.get()


def test_the_table_says_what_does_not_fit(data, unlimited):
    found = comparison(data, peaks(unlimited)["whole"] - 1)
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^( +does not fit){3} *$", text, re.MULTILINE)
    assert "speed /" not in text
    joined = " ".join(text.split())
    for column in found["layouts"][1:]:
        assert f"{column['does_not_fit']}." in joined
    assert "Does not fit (same, whole): fake:0: " in joined
    assert "Does not fit (2 replicas): fake:" in joined
    assert "Replicas are" not in joined
    assert "nan" not in joined
    found = comparison(data, peaks(unlimited)["dense"] - 1)
    assert re.search(r"^ speed / .*\n   same, whole ", printed(found), re.MULTILINE)


def test_a_comparison_in_which_all_fits_says_nothing_of_it(unlimited):
    assert "fit" not in printed(unlimited)


# The command


@pytest.fixture
def go(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "preset", lambda name, towers, crosses: small(name, towers, crosses))
    monkeypatch.setattr(run, "ROUNDS", 1)

    def started(*words):
        words = ["--data", "fashion-mnist-small", "--batch-size", "4", "--no-profile", *words]
        code = run.main([*words, "--out", str(tmp_path / "runs")])
        folders = list((tmp_path / "runs").glob("*"))
        return code, *capsys.readouterr(), folders[0] if folders else None

    return started


def test_a_run_that_does_not_fit_says_which_row_and_how_much(go, unlimited):
    limit = peaks(unlimited)["towers"] - 10_000
    code, out, err, folder = go("--steps", "2", "--memory-limit", f"{limit}")
    needs = r"(?:forward|backward|the optimizer's state) of \w+ needs \S+ \w+, \S+ \w+ more than --memory-limit .*"
    found = re.fullmatch(rf"splitnet: error: (fake:\d: {needs} leaves; .*)\n", err)
    assert (code, bool(found)) == (1, True), err
    assert json.loads((folder / "run.json").read_text())["status"] == f"failed: {found[1]}"
    assert json.loads((folder / "run.json").read_text())["options"]["memory_limit"] == str(limit)
    assert out.endswith(f"Run folder: {folder}\n")
    torch.zeros(MIB, device="fake:0")  # the limit is gone


def test_a_run_whose_whole_network_does_not_fit_goes_on(go, unlimited):
    peak = peaks(unlimited)
    limit = (peak["towers"] + peak["whole"]) // 2
    code, out, err, folder = go("--steps", "2", "--memory-limit", str(limit))
    assert (code, err) == (0, "")
    assert "does not fit" in out
    columns = json.loads((folder / "compare.json").read_text())["layouts"]
    assert ["does_not_fit" in column for column in columns] == [False, True, True, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--memory-limit lots", "--memory-limit lots: a size such as"),
        ("--memory-limit 3GiB --devices cpu", "--memory-limit 3GiB: cpu has no memory counters"),
        ("--memory-limit 3GiB --devices fake:0,cpu", "--memory-limit 3GiB: cpu has no memory counters"),
        ("--memory-snapshot", "--memory-snapshot: needs CUDA, not fake:0, fake:1"),
        ("--memory-snapshot --no-compare", "--memory-snapshot: is of the comparison's steps"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(go, words, said):
    code, out, err, folder = go(*words.split())
    assert (code, out, folder) == (2, "", None)
    assert err.startswith(f"splitnet: error: {said}")
    assert err.count("\n") == 1


# Memory snapshots


def test_a_snapshot_needs_cuda():
    check([torch.device("cuda:0"), torch.device("cpu")], None, snapshot=True)
    with pytest.raises(UsageError, match=r"needs CUDA, not fake:0$"):
        check([torch.device("fake:0"), torch.device("fake:0")], None, snapshot=True)


@pytest.mark.parametrize("error", [None, DoesNotFitError("x")])
def test_a_snapshot_is_of_what_is_inside_and_written_at_any_end(monkeypatch, tmp_path, error):
    done = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled="all", **_: done.append(enabled))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: done.append(path))
    with snapshot(None):
        assert done == []
    try:
        with snapshot(tmp_path / "x.pickle"):
            done.append("steps")
            if error:
                raise error
    except DoesNotFitError:
        assert error
    assert done == ["all", "steps", str(tmp_path / "x.pickle"), None]


@pytest.mark.gpu
def test_a_gpu_within_a_limit(tmp_path):
    device = torch.device("cuda:0")
    others = torch.zeros(8 * MIB, device=device)
    message = r"^cuda:0: loading the weights needs 512\.00 MiB, .*--memory-limit 256\.00 MiB leaves; "
    with snapshot(tmp_path / "s.pickle"), pytest.raises(DoesNotFitError, match=message):
        hold(device, 128 * MIB, 256 * MIB)
    assert torch.zeros(128 * MIB, device=device).numel() == 128 * MIB  # the limit is gone
    hold(device, 32 * MIB, 256 * MIB)
    assert others.numel() == 8 * MIB
    assert pickle.loads((tmp_path / "s.pickle").read_bytes())["device_traces"]


def test_limits_of_cuda_are_shares_of_its_memory(monkeypatch):
    """What is asked of PyTorch, without a GPU: the limit and what others hold, then all of it."""
    asked = []
    counter = type("Counter", (), {"memory_allocated": staticmethod(lambda _: GIB), "max_memory_allocated": None})
    monkeypatch.setattr("splitnet.fitting.counters", lambda _: counter)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"total_memory": 8 * GIB}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *words: asked.append(words))
    device = torch.device("cuda:1")
    for limit in (3 * GIB, 100 * GIB, None):
        with Room([device], limit):
            pass
    shares = [share for share, _ in asked]
    assert shares == [0.5, 1.0, 1.0, 1.0]
    assert {place for _, place in asked} == {device}
    assert all(isinstance(share, float) for share in shares)
    assert all(a <= b for a, b in pairwise(shares))
