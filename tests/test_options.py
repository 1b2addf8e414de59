"""The command line from a dataclass."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from splitnet.errors import UsageError
from splitnet.options import guarded, option, parse, refuse


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
