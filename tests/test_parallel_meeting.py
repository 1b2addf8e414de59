"""Processes before they form groups, here threads with one store: who differs or cannot begin is told once."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import HashStore

from splitnet.errors import UsageError
from splitnet.parallel.collective import LostRankError
from splitnet.parallel.meeting import Meeting, code


@pytest.fixture
def together():
    """Runs a function of (meeting, rank) for every rank at once; returns what each came to, or the error."""

    def run(world, function, timeout=20.0):
        store = HashStore()
        meetings = [Meeting(store, rank, world, timeout) for rank in range(world)]

        def one(rank):
            try:
                return function(meetings[rank], rank)
            except (UsageError, LostRankError) as error:
                return error

        with ThreadPoolExecutor(world) as pool:
            return meetings, list(pool.map(one, range(world)))

    return run


def test_all_hear_everybodys_note_in_order(together):
    _, found = together(3, lambda meeting, rank: meeting.agree({"--seed": "0"}, {"gpu": rank == 1}))
    assert found == [[{"gpu": False}, {"gpu": True}, {"gpu": False}]] * 3


@pytest.mark.parametrize(("odd", "told"), [(1, "rank 1 has 9"), (2, "rank 2 has 9")])
def test_a_rank_with_another_option_is_named_beside_the_first(together, odd, told, capfd):
    def begin(meeting, rank):
        try:
            return meeting.agree({"--seed": "9" if rank == odd else "0", "--lr": "0.1"})
        except UsageError as error:
            return meeting.refuse(error)

    _, found = together(3, begin)
    assert found == [2, 2, 2]
    assert capfd.readouterr().err == f"splitnet: error: rank 0 has --seed 0, {told}; they must be alike\n"


def test_what_one_rank_cannot_do_is_told_once_with_its_number(together, capfd):
    def begin(meeting, rank):
        try:
            if rank == 1:
                raise UsageError("--data-dir /nix: no such folder")
            return meeting.agree({})
        except UsageError as error:
            return meeting.refuse(error)

    _, found = together(2, begin)
    assert found == [2, 2]
    assert capfd.readouterr().err == "splitnet: error: rank 1: --data-dir /nix: no such folder\n"


def test_what_none_can_do_is_told_without_a_number(together, capfd):
    _, found = together(2, lambda meeting, rank: meeting.refuse(UsageError("--lr 0: a positive number")))
    assert found == [2, 2]
    assert capfd.readouterr().err == "splitnet: error: --lr 0: a positive number\n"


def test_a_refusal_in_a_later_round_reaches_those_who_agreed_before(together, capfd):
    def begin(meeting, rank):
        meeting.agree({})
        try:
            if rank == 0:
                raise UsageError("--out /nix: cannot write there")
            meeting.agree({})
        except UsageError as error:
            return meeting.refuse(error)

    _, found = together(2, begin)
    assert found == [2, 2]
    assert capfd.readouterr().err == "splitnet: error: rank 0: --out /nix: cannot write there\n"


def test_who_does_not_come_is_named(together):
    _, found = together(3, lambda meeting, rank: rank == 1 or meeting.agree({}), timeout=0.5)
    assert found[1] is True
    assert [str(found[rank]) for rank in (0, 2)] == ["rank 1 did not come within 0.5 s"] * 2


def test_the_code_is_the_sources_and_the_versions(monkeypatch, tmp_path):
    from splitnet.parallel import meeting

    for name in ("parallel/meeting.py", "run.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(meeting, "__file__", str(tmp_path / "parallel" / "meeting.py"))
    before = code()
    assert code() == before
    (tmp_path / "run.py").write_text("x = 2\n")
    assert code() != before
    assert "torch" in code()


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_job_that_does_not_answer_is_one_line(command, monkeypatch, capfd):
    from splitnet import doctor, party, run

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(party, "START", 0.2)
    assert {"run": run, "doctor": doctor}[command].main([]) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("splitnet: error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"splitnet: error: the job's store at 127.0.0.1:{port} does not answer")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_variables_that_are_no_numbers_make_no_job(name, monkeypatch):
    from splitnet.parallel import ranks

    for variable in ranks.VARIABLES:
        monkeypatch.setenv(variable, "1")
    assert ranks.launched()
    monkeypatch.setenv(name, "one")
    assert not ranks.launched()
