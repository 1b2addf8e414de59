"""The house: four rooms, one direction of imports, and what a line in each room may touch.

Read from the source with ast, so that an import inside a function or under TYPE_CHECKING counts as well.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "splitnet"

# Modules at the root: for everyone, a harness for other people's tests, the commands and what they share.
SHARED = {"errors", "spans", "keyed"}
COMMANDS = {"__main__", "run", "verify", "doctor", "report", "view", "predict", "convert", "prepare"}
COMMAND_PARTS = {
    *("options", "comparison", "equality", "faults", "tables", "progress", "compiling", "job", "fitting", "pages"),
    *("allocator", "party", "resuming", "learning", "reporting", "interrupts", "rank_comparison"),
    *("recipes", "machines", "looking", "pixels", "peaks", "costs", "calibration", "emulation"),
    *("weight_files", "pickled_arrays", "onnx_graph"),
}

# Which rooms a room may import, beside SHARED and itself; commands do not import each other.
MAY_IMPORT = {
    "network": set(),
    "parallel": {"network"},
    "testing": {"parallel", "network"},
    "training": {"parallel", "network"},
    "measure": set(),
    "commands": {"network", "parallel", "training", "measure", "command parts", "root"},
    "command parts": {"network", "parallel", "training", "measure"},
    "root": {"network", "parallel", "training", "measure", "testing"},
    "shared": set(),
}

# What a file, or every file of a folder, may not name: the dotted names are prefixes.
ENVIRONMENT = ("os.environ", "os.getenv", "os.putenv")
COMMAND_LINE = ("sys.argv", "argparse")
DEVICES = ("torch.cuda", "torch.distributed", "torch.accelerator")
MAY_NOT_NAME = {
    "network/": (*ENVIRONMENT, *COMMAND_LINE, *DEVICES),
    "parallel/": COMMAND_LINE,
    "parallel/exchange.py": (*ENVIRONMENT, "torch.distributed.init_process_group"),
    "training/": (*ENVIRONMENT, *COMMAND_LINE, *DEVICES),
    "measure/": (*COMMAND_LINE, "torch.distributed"),
    "spans.py": ("torch", "os", "io", "pathlib"),
    "errors.py": ("torch", "os", "io", "pathlib"),
}

# Files of integers and tuples: all that they may import.
TABLES = {"network/architecture.py", "network/presets.py"}
TABLES_MAY_IMPORT = {"collections", "dataclasses", "fractions", "functools", "itertools", "math", "typing"}

LAYER_NAME = re.compile(r"\b(conv|fc)\d\b")
MAX_FILE, MAX_FUNCTION = 260, 45


@dataclass(frozen=True)
class Source:
    """A file of the package: its path below splitnet/, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        return room_of(self.path.removesuffix(".py").replace("/", "."))


@cache
def sources() -> list[Source]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [Source(file.relative_to(PACKAGE).as_posix(), file.read_text("utf-8")) for file in files]


def room_of(module: str) -> str:
    """The room of "network.towers", "run" or "__init__"; "?" if the house has none for it."""
    first, _, rest = module.partition(".")
    if first in ("network", "parallel", "training", "measure"):
        return first
    if rest:
        return "?"
    rooms = {"": "root", "__init__": "root", "testing": "testing"}
    rooms |= dict.fromkeys(SHARED, "shared")
    rooms |= dict.fromkeys(COMMANDS, "commands")
    rooms |= dict.fromkeys(COMMAND_PARTS, "command parts")
    return rooms.get(first, "?")


def imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, dotted name, and the name it gets here, of everything imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}", alias.asname or alias.name


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported or used, with aliases undone."""
    known = {}
    for line, name, here in imports(tree):
        known[here] = here if name.startswith(f"{here}.") else name
        yield line, name
    for node in ast.walk(tree):
        chain, at = [], node
        while isinstance(at, ast.Attribute):
            chain.append(at.attr)
            at = at.value
        if chain and isinstance(at, ast.Name) and at.id in known:
            yield node.lineno, ".".join([known[at.id], *reversed(chain)])


def splitnet_module(name: str) -> str | None:
    """Room or root module that an imported name is in: "" for the public names; None if not splitnet's."""
    if name != "splitnet" and not name.startswith("splitnet."):
        return None
    first = name.split(".")[1] if "." in name else ""
    return "" if room_of(first) == "?" else first


def is_device_move(call: ast.Call) -> bool:
    """`x.cuda()`, and `x.to(…)` unless it plainly asks for a dtype or a memory format."""
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr != "to":
        return call.func.attr == "cuda"
    plain = {"dtype", "memory_format", "copy", "non_blocking"}
    return not all(is_dtype(arg) for arg in call.args) or not {k.arg for k in call.keywords} <= plain


def is_dtype(node: ast.expr) -> bool:
    name = ast.unparse(node)
    return name.split(".")[-1] == "dtype" or re.fullmatch(r"torch\.(bool|uint8|int\d+|b?float\d+)", name) is not None


def docstrings(tree: ast.Module) -> set[ast.Constant]:
    """Strings that stand alone: docstrings, and those behind an attribute."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {value for value in alone if isinstance(value, ast.Constant) and isinstance(value.value, str)}


def code_lines(source: Source) -> set[int]:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    lines = {line for t in tokens if t.type not in empty for line in range(t.start[0], t.end[0] + 1)}
    return lines - {
        line for doc in docstrings(source.tree) for line in range(doc.lineno, (doc.end_lineno or doc.lineno) + 1)
    }


# The rules. Each yields what is wrong with one file.


def wrong_imports(source: Source) -> Iterator[str]:
    if source.room == "?":
        yield f"{source.path}: the house has no room for it"
        return
    allowed = MAY_IMPORT[source.room] | {"shared"} | ({source.room} - {"commands"})
    for line, name, _ in imports(source.tree):
        module = splitnet_module(name)
        if name.startswith("."):
            yield f"{source.path}:{line}: relative import of {name}"
        elif module is not None and room_of(module) not in allowed:
            yield f"{source.path}:{line}: {source.room} may not import {name}"


def wrong_names(source: Source) -> Iterator[str]:
    for place, forbidden in MAY_NOT_NAME.items():
        if source.path == place or (place.endswith("/") and source.path.startswith(place)):
            for line, name in names(source.tree):
                if any(name == prefix or name.startswith(f"{prefix}.") for prefix in forbidden):
                    yield f"{source.path}:{line}: {place} may not touch {name}"


def wrong_tables(source: Source) -> Iterator[str]:
    if source.path not in TABLES:
        return
    for line, name, _ in imports(source.tree):
        if not name.startswith("splitnet.") and name.partition(".")[0] not in TABLES_MAY_IMPORT:
            yield f"{source.path}:{line}: a table may not import {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "__import__"):
            yield f"{source.path}:{node.lineno}: a table may not call {node.func.id}"


def wrong_moves(source: Source) -> Iterator[str]:
    if source.room != "network":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and is_device_move(node):
            yield f"{source.path}:{node.lineno}: network/ may not move tensors: {ast.unparse(node)}"


def wrong_words(source: Source) -> Iterator[str]:
    if source.path not in ("parallel/exchange.py", "parallel/placement.py"):
        return
    free = docstrings(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in free:
            for found in LAYER_NAME.finditer(node.value):
                yield f"{source.path}:{node.lineno}: knows the layer {found[0]}"


def wrong_sizes(source: Source) -> Iterator[str]:
    lines = code_lines(source)
    if len(lines) > MAX_FILE:
        yield f"{source.path}: {len(lines)} lines of code, at most {MAX_FILE}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            if size > MAX_FUNCTION:
                yield f"{source.path}:{node.lineno}: {node.name} has {size} lines of code, at most {MAX_FUNCTION}"


RULES = [wrong_imports, wrong_names, wrong_tables, wrong_moves, wrong_words, wrong_sizes]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_stands(rule):
    assert [wrong for source in sources() for wrong in rule(source)] == []


def test_all_rooms_are_read():
    assert {source.room for source in sources()} >= {"network", "parallel", "training", "measure", "root", "shared"}


LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION
BROKEN = [
    ("network/towers.py", "from splitnet.parallel import exchange", wrong_imports),
    ("network/towers.py", "from splitnet.parallel.exchange import LocalExchange", wrong_imports),
    ("network/towers.py", "def f():\n    import splitnet.parallel.exchange as e", wrong_imports),
    ("network/towers.py", "if TYPE_CHECKING:\n    from splitnet import parallel", wrong_imports),
    ("network/towers.py", "from splitnet import build", wrong_imports),
    ("network/towers.py", "import splitnet", wrong_imports),
    ("network/towers.py", "from .weights import chunk", wrong_imports),
    ("parallel/fake/clock.py", "from splitnet.training.loop import train", wrong_imports),
    ("training/loop.py", "from splitnet.measure.meter import Meter", wrong_imports),
    ("training/loop.py", "from splitnet.options import Options", wrong_imports),
    ("measure/page.py", "from splitnet.network.architecture import Row", wrong_imports),
    ("measure/page.py", "from splitnet.network import architecture", wrong_imports),
    ("testing.py", "from splitnet.training import loop", wrong_imports),
    ("spans.py", "from splitnet.network import presets", wrong_imports),
    ("report.py", "from splitnet.run import main", wrong_imports),
    ("utils.py", "", wrong_imports),
    ("network/layers.py", "import torch\ntorch.cuda.synchronize()", wrong_names),
    ("network/layers.py", "import torch as t\nt.cuda.synchronize()", wrong_names),
    ("network/layers.py", "from torch import cuda", wrong_names),
    ("network/layers.py", "import torch.distributed as dist", wrong_names),
    ("network/layers.py", "from os import environ", wrong_names),
    ("parallel/exchange.py", "import os\nos.environ['RANK']", wrong_names),
    ("parallel/exchange.py", "import torch.distributed as d\nd.init_process_group()", wrong_names),
    ("training/loop.py", "import sys\nsys.argv[1]", wrong_names),
    ("training/loop.py", "import argparse", wrong_names),
    ("spans.py", "import torch", wrong_names),
    ("network/architecture.py", "import torch", wrong_tables),
    ("network/architecture.py", "from pathlib import Path", wrong_tables),
    ("network/architecture.py", "open('x')", wrong_tables),
    ("network/layers.py", "x.to(device)", wrong_moves),
    ("network/layers.py", "x.to(device=d)", wrong_moves),
    ("network/layers.py", "x.to('cuda:1', torch.float64)", wrong_moves),
    ("network/layers.py", "x.to(y)", wrong_moves),
    ("network/layers.py", "x.cuda()", wrong_moves),
    ("parallel/exchange.py", "if row == 'conv3': pass", wrong_words),
    ("network/layers.py", LONG, wrong_sizes),
    ("network/layers.py", "x = 1\n" * (MAX_FILE + 1), wrong_sizes),
]


@pytest.mark.parametrize(("path", "text", "rule"), BROKEN)
def test_each_rule_can_fail(path, text, rule):
    assert list(rule(Source(path, text)))


SOUND = [
    ("network/towers.py", "from splitnet import keyed, spans\nfrom splitnet.network.weights import chunk"),
    ("network/layers.py", "x.to(torch.float64)\nx.to(y.dtype)\nx.to(memory_format=torch.channels_last)\nx.cpu()"),
    ("parallel/exchange.py", '"""At conv3."""\nimport os\nos.PathLike'),
    ("parallel/placement.py", "import os\nfrom splitnet.parallel import fake\nos.environ['RANK']\nx.to(device)"),
    ("run.py", "import splitnet\nfrom splitnet import build\nfrom splitnet.options import Options\nimport argparse"),
    ("options.py", "import argparse\nfrom splitnet.network.presets import presets"),
    ("network/layers.py", 'def f():\n    """' + "words\n" * 99 + '"""\n' + "    # why\n\n" * 99 + "    return 1"),
]


@pytest.mark.parametrize(("path", "text"), SOUND)
def test_the_rules_allow_what_they_should(path, text):
    assert [wrong for rule in RULES for wrong in rule(Source(path, text))] == []


# Importing does nothing and needs nothing.

WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
"""
WHAT_CAME = """
import sys
before = set(sys.modules)
import {module}
came = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(came - sys.stdlib_module_names - {{"splitnet"}}))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "module",
    ["splitnet", "splitnet.errors", "splitnet.spans", "splitnet.network.architecture", "splitnet.network.presets"],
)
def test_imports_without_torch(module):
    done = python(f"{WITHOUT_TORCH}\nimport {module}")
    assert done.returncode == 0, done.stderr


def test_without_torch_can_fail():
    done = python(f"{WITHOUT_TORCH}\nimport splitnet.network.layers")
    assert done.returncode == 1
    assert "blocked: torch" in done.stderr


def test_import_splitnet_brings_nothing_heavy():
    done = python(WHAT_CAME.format(module="splitnet"))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_nothing_heavy_can_fail():
    assert "rich" in python(WHAT_CAME.format(module="rich")).stdout.split()
