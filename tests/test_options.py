"""The command line from a dataclass."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from splitnet.errors import UsageError
from splitnet.options import guarded, option, parse, positional, refuse


def heeding_ctrl_c() -> None:
    """A shell's background job ignores it, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Some:
    count: int = option(3, "how many")
    rate: float | None = option(None, "how fast")
    where_to: Path | None = option(None, "the folder")
    kind: str = option("a", "which", ("a", "b"))
    quick: bool = option(True, "whether")
    break_: str | None = option(None, "a word of Python's")


def test_defaults_are_the_dataclass():
    assert parse(Some, "some", "", []) == Some()


def test_values_have_the_fields_types():
    words = ["--count", "5", "--rate", "1e-3", "--where-to", "x/y", "--kind", "b", "--no-quick", "--break", "z"]
    assert parse(Some, "some", "", words) == Some(5, 1e-3, Path("x/y"), "b", False, "z")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--count x", "--count: invalid int value: 'x'"),
        ("--kind c", "--kind: invalid choice: 'c' (choose from 'a', 'b')"),
        ("--nothing 1", "unrecognized arguments: --nothing 1"),
        ("--coun 1", "unrecognized arguments: --coun 1"),
        ("--count", "--count: expected one argument"),
    ],
)
def test_a_wrong_word_is_one_line(words, message):
    with pytest.raises(UsageError) as refusal:
        parse(Some, "some", "", words.split())
    assert str(refusal.value).replace("choose from a, b", "choose from 'a', 'b'") == message


def test_what_begins_like_a_negative_number_is_a_value():
    assert parse(Some, "some", "", ["--where-to", "-3GB", "--rate", "-2"]) == Some(rate=-2.0, where_to=Path("-3GB"))


def test_help_is_reflowed_and_commands_stay(capsys):
    text = (
        "Claim: " + 30 * "word " + "\n" + 30 * "more " + "\n\n    python experiments/some.py [--count 3] [--rate X]\n"
    )
    with pytest.raises(SystemExit):
        parse(Some, "experiments/some.py", text, ["--help"])
    lines = capsys.readouterr().out.partition("\noptions:")[0].splitlines()[2:]
    told = lines[: lines.index("")]
    assert all(60 < len(line) <= 80 for line in told[:-1])  # none is left short in the middle
    assert "    python experiments/some.py [--count 3] [--rate X]" in lines


def test_refusing_prints_one_line_and_exits_with_2(capsys):
    assert refuse(UsageError("--count x: a number")) == 2
    assert capsys.readouterr().err == "splitnet: error: --count x: a number\n"


def test_help_tells_defaults(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(Some, "some", "What it does.", ["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert "python -m splitnet.some" in text
    assert "how many (default 3)" in text
    assert "--no-quick" in text


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (UsageError("--x: y"), 2), (None, 0)])
def test_a_command_exits_without_a_traceback(error, status, capsys):
    def main():
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit) as leaving:
        guarded(main)
    assert leaving.value.code == status
    assert capsys.readouterr().err == ("splitnet: error: --x: y\n" if status == 2 else "")


def test_an_interrupted_import_of_a_command_ends_it_by_the_signal_without_a_traceback(tmp_path):
    (tmp_path / "rich.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    for words, traceback in ((["-m", "splitnet"], False), (["-c", "import splitnet, rich"], True)):
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            preexec_fn=heeding_ctrl_c,
        )
        assert done.returncode == -signal.SIGINT
        assert (b"Traceback" in done.stderr) == traceback == bool(done.stderr)


@dataclass(frozen=True)
class Words:
    run: Path = positional("a folder")
    other: Path | None = positional("another", None)
    fail_if: tuple[str, ...] = option((), "when")
    port: int = option(1, "where")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a"], Words(Path("a"))),
        (["a", "b"], Words(Path("a"), Path("b"))),
        (["--port", "2", "a", "--fail-if", "x < 1", "b"], Words(Path("a"), Path("b"), ("x < 1",), 2)),
        (["--fail-if", "x < 1", "--fail-if", "y > 2", "a"], Words(Path("a"), None, ("x < 1", "y > 2"))),
    ],
)
def test_words_without_a_flag_and_options_given_again(words, found):
    assert parse(Words, "words", "", words) == found
    assert parse(Words, "words", "", ["a"]) == Words(Path("a"))  # nothing is left in the default


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["a", "b", "c"], "unrecognized arguments: c"),
        (["a", "--fail-if"], "--fail-if: expected one argument"),
    ],
)
def test_a_word_too_few_or_too_many_is_one_line(words, message):
    with pytest.raises(UsageError) as refusal:
        parse(Words, "words", "", words)
    assert str(refusal.value).startswith(message)


def test_help_shows_words_and_what_can_be_repeated(capsys):
    with pytest.raises(SystemExit):
        parse(Words, "words", "", ["--help"])
    text = capsys.readouterr().out
    assert "usage: python -m splitnet.words RUN [OTHER] [options]" in text
    assert "a folder" in text
    assert "when (repeatable)" in text
    assert "()" not in text
