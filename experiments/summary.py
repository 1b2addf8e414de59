"""All experiments' verdicts as one table, from their results' files.

    python experiments/summary.py [FOLDER] [--index]

Prints Markdown, as the README has it: what was claimed, the published figure, ours with what it is of, its 99 %
interval over seeds, n and the bound, the verdict, and what of the two can be compared; then how large each experiment
was, and the commands that made its trials. With `--index` it also writes the folder's `index.html`, which has the same
table and leads to each experiment's page.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from results_file import RESULTS, put, read
from results_page import figured, index

from splitnet.errors import UsageError
from splitnet.options import guarded, option, parse, positional

ROOT = Path(__file__).resolve().parents[1]

HEADINGS = ("experiment", "claim", "published", "here", "verdict", "comparable, and not")


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Path | None = positional("the results' files (experiments/results)", None)
    index: bool = option(False, "write index.html there")


def found(folder: Path) -> list[dict[str, Any]]:
    """The results that have come to an end, by name; of others a line on stderr. UsageError if none has."""
    contents = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    ended = [content for content in contents.values() if content.get("claims")]
    counts = {name: len(c.get("trials", ())) for name, c in contents.items() if not c.get("claims")}
    lines = [f"{name}: {n} trial{'s' * (n != 1)}, not finished" for name, n in counts.items()]
    if not ended:
        raise UsageError(f"{folder}: no results of an experiment{' that has ended: ' * bool(lines)}{'; '.join(lines)}")
    for line in lines:
        print(line, file=sys.stderr)
    return ended


def commands(content: Mapping[str, Any]) -> list[str]:
    """Each command that made some of the trials, once; the last one where there are no trials."""
    made = dict.fromkeys(trial["session"] for trial in content.get("trials", ()))
    return list(dict.fromkeys(shlex.join(content["sessions"][i]["command"]) for i in made)) or [content["command"]]


def shown(folder: Path) -> str:
    """As a link has it: from the project's root if it is below it."""
    whole = folder.resolve()
    return quote(str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole))


def rows(contents: Sequence[Mapping[str, Any]], folder: Path) -> list[tuple[str, ...]]:
    """A line for each claim; what is the same as in the line above is left out."""
    lines: list[tuple[str, ...]] = []
    for content in contents:
        name = f"{content['experiment']}{'-full' * content.get('full', False)}"
        link, before = f"[{name}]({shown(folder)}/{name}.html)", ""
        for c in content["claims"]:
            comparable = "" if c["comparable"] == before else c["comparable"]
            lines.append((link, c["claim"], c["published"] or "-", figured(c), c["verdict"], comparable))
            link, before = "", c["comparable"]
    return lines


def markdown(contents: Sequence[Mapping[str, Any]], folder: Path) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows(contents, folder)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    sizes = []
    for content in contents:
        made = ",\n  ".join(f"`{command}`" for command in commands(content))
        sizes.append(f"- {made}: {content['size']}. {content['says']}".rstrip())
    return "\n".join([*table, "", *sizes])


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/summary.py", __doc__ or "", argv)
    folder = options.folder or RESULTS
    contents = found(folder)
    if options.index:
        put(folder / "index.html", index(contents))
    print(markdown(contents, folder))


if __name__ == "__main__":
    guarded(main)
