"""The command line from a frozen dataclass: each option is written once, with its default and its help."""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from splitnet.errors import UsageError

T = TypeVar("T")

LARGEST = 2**63 - 1
"""What PyTorch takes as a number."""


def option(default: Any, text: str, choices: Sequence[str] | None = None, metavar: str | None = None) -> Any:
    """A dataclass field that is an option of the command line; one typed tuple[T, ...] may be given again and again."""
    return field(default=default, metadata={"help": text, "choices": choices, "metavar": metavar})


def positional(text: str, default: Any = MISSING) -> Any:
    """A dataclass field that is a word without a flag, in the order of the fields; one with a default is optional."""
    return field(default=default, metadata={"help": text, "positional": True})


class Parser(argparse.ArgumentParser):
    """Wrong input is one line on stderr and exit 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse(
    options: type[T],
    command: str,
    description: str,
    argv: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """The options given on a command line, otherwise `defaults` or the dataclass's own. UsageError for a wrong one.

    `command` is the module's name below splitnet, or the path of a script. Text among `defaults` is read as if given.
    """
    found = vars(_parser(options, command, description, defaults or {}).parse_intermixed_args(_words(argv)))
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def given(
    options: type[T], argv: Sequence[str] | None = None, command: str = "", description: str = ""
) -> dict[str, Any]:
    """The fields that a command line says something of, by name, unchecked but for their types."""
    unsaid = dict.fromkeys(entry.name for entry in fields(options))  # type: ignore[arg-type]
    found = vars(_parser(options, command, description, unsaid).parse_intermixed_args(_words(argv)))
    return {name: value for name, value in found.items() if value is not None}


def _words(argv: Sequence[str] | None) -> list[str]:
    """The command line; what begins like a negative number, "-3GB", belongs to the option in front of it."""
    words: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if re.match(r"-\.?\d", word) and words and re.fullmatch("--[^=]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _parser(options: type, command: str, description: str, defaults: Mapping[str, Any]) -> "Parser":
    program = command if "/" in command else f"-m splitnet.{command}"
    description = "\n\n".join(_reflowed(part) for part in description.strip().split("\n\n"))
    words = [_word(entry) for entry in fields(options) if "positional" in entry.metadata]
    usage = " ".join(["python", program, *words, "[options]"])
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(f"python {program}", usage=usage, description=description, formatter_class=raw, allow_abbrev=False)
    hints = get_type_hints(options)
    for entry in fields(options):
        _add(parser, entry, hints[entry.name])
    parser.set_defaults(**defaults)
    return parser


def _reflowed(paragraph: str) -> str:
    """At 80 columns; a paragraph with an indented line, such as a command or a list, line by line."""
    lines = paragraph.splitlines()
    if any(line.startswith((" ", "- ")) for line in lines):
        return "\n".join(lines)
    return textwrap.fill(" ".join(lines), 80)


def _add(parser: argparse.ArgumentParser, entry: "Field[Any]", hint: Any) -> None:
    kind = _kind(hint)
    settings: dict[str, Any] = {"help": entry.metadata["help"]}
    if "positional" in entry.metadata:
        if entry.default is not MISSING:
            settings |= {"nargs": "?", "default": entry.default}
        parser.add_argument(entry.name, type=kind, metavar=entry.name.upper(), **settings)
        return
    assert entry.default is not MISSING
    flag = "--" + entry.name.removesuffix("_").replace("_", "-")
    settings |= {"dest": entry.name, "default": entry.default}
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
        return
    choices = entry.metadata["choices"]
    if choices:
        settings["help"] += f": {', '.join(choices)}"
    if get_origin(hint) is tuple:
        settings |= {"action": "append", "default": list(entry.default), "help": settings["help"] + " (repeatable)"}
    elif entry.default is not None:
        settings["help"] += f" (default {entry.default})"
    parser.add_argument(
        flag, type=kind, choices=choices, metavar=entry.metadata["metavar"] or _metavar(kind), **settings
    )


def _word(entry: "Field[Any]") -> str:
    name = entry.name.upper()
    return name if entry.default is MISSING else f"[{name}]"


def _kind(hint: Any) -> Any:
    """The type that a value is read with: T for T, T | None and tuple[T, ...]."""
    if isinstance(hint, UnionType) or get_origin(hint) is tuple:
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _metavar(kind: type) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def check_bounds(options: object, bounds: Mapping[str, tuple[int, int]]) -> None:
    """UsageError for a number below or above what its option takes."""
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            wanted = f"at least {least}" if value < least else f"at most {most}"
            raise UsageError(f"--{name.replace('_', '-')} {value}: {wanted}")


def refuse(error: UsageError) -> int:
    """Print the one line; the exit status of bad usage."""
    sys.stderr.write(f"splitnet: error: {error}\n")
    return 2


def fail(line: str) -> int:
    """Print the one line; the exit status of what failed, though it was asked for rightly."""
    sys.stderr.write(f"splitnet: error: {line}\n")
    return 1


def out_of_memory(error: BaseException) -> int:
    """The same of a device that is full."""
    return fail(f"out of memory; a smaller --batch-size needs less ({error})")


def guarded(main: Callable[[], int | None]) -> NoReturn:
    """Run a main and exit: bad usage is one line and 2, an interrupt at whatever moment 130, neither a traceback.

    An interrupt that has a status of its own, as SIGTERM's 143, ends with that. A command whose output nobody reads any
    more ends quietly, with 1 where it would have with 0.
    """
    code: Any = 1
    try:
        code = _ended(main)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed again at the exit
        code = code or 1
    except KeyboardInterrupt as interrupt:
        code = getattr(interrupt, "status", 130)
    sys.exit(code)


def _ended(main: Callable[[], int | None]) -> Any:
    """The exit status, or what a SystemExit has in its place."""
    try:
        return main()
    except UsageError as error:
        return refuse(error)
    except SystemExit as end:
        return end.code
