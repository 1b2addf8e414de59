"""The project around the package: what is said twice agrees, and a fresh machine gets what it needs."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TARGETS = ("run", "test", "fast", "check", "soak", "clean")
MIB = 2**20

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def conda_packages() -> list[str]:
    text = (ROOT / "environment.yml").read_text("utf-8")
    _, _, packages = text.partition("\ndependencies:\n")
    return [line.strip().removeprefix("- ") for line in packages.splitlines()]


def tracked() -> list[Path]:
    """Files that a clone gets, and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files belong to the project")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [file for name in listed.split("\0") if name and (file := ROOT / name).is_file()]


# One list of dependencies.


def test_conda_installs_the_project_and_nothing_else():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert conda_packages() == [f"python={oldest}", "pip", "pip:", "-e .[dev]"]


def test_there_is_no_second_list():
    lists = ("requirements*", "setup.py", "setup.cfg", "Pipfile*", "poetry.lock", "tox.ini", "pytest.ini", "mypy.ini")
    assert [file.name for pattern in lists for file in ROOT.glob(pattern)] == []
    installs = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text("utf-8"))
    assert installs == ["--editable '.[dev]'"]


def test_tools_that_make_calls_are_installed_by_it():
    dev = " ".join(PROJECT["project"]["optional-dependencies"]["dev"])
    called = set(re.findall(r"\$\(VENV\) -m (\w+)", (ROOT / "Makefile").read_text("utf-8"))) - {"splitnet", "pip"}
    assert called == {"pytest", "ruff", "mypy"}
    assert [tool for tool in sorted(called) if tool not in dev] == []


def test_data_in_the_package_is_there():
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package.replace(".", "/")).glob(pattern)), f"{package}: nothing matches {pattern}"


# make


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "ARGS"))}
    return subprocess.run(["make", *arguments], cwd=cwd, env=clean, capture_output=True, text=True, timeout=60)


@needs_make
@pytest.mark.parametrize("target", TARGETS)
def test_make_has_the_target(target):
    done = make("--dry-run", target)
    assert done.returncode == 0, done.stderr


@needs_make
def test_make_run_passes_options_on():
    assert "-m splitnet.run --towers 2 --steps 3" in make("--dry-run", "run", "ARGS=--steps 3").stdout


@needs_make
def test_gpu_tests_have_a_process_of_their_own():
    runs = re.findall(r'-m pytest .*?-m "(.*?)"', make("--dry-run", "test").stdout)
    assert runs == ["(gpu or two_gpus) and not soak", "not (gpu or two_gpus) and not soak"]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The Makefile on a machine whose Python makes environments with a pip that fails while `broken` exists."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    inner = tmp_path / "inner"
    inner.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$3" in install) test ! -e {tmp_path}/broken ;; esac\n'
    )
    outer = tmp_path / "python"
    outer.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        f"echo made >> {tmp_path}/calls; mkdir -p .venv/bin; cp {inner} .venv/bin/python\n"
    )
    for script in (inner, outer):
        script.chmod(0o755)
    return tmp_path


def calls(bare: Path) -> list[str]:
    """What was called since the last look."""
    log = bare / "calls"
    found = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [call for call in found if call != "-m pip --version"]


@needs_make
def test_an_environment_is_made_once(bare):
    install = "-m pip install --editable .[dev]"
    tests = "-m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m soak"
    assert make("soak", "PYTHON=./python", cwd=bare).returncode == 0
    assert calls(bare) == ["made", install, tests]
    assert make("soak", "PYTHON=./python", cwd=bare).returncode == 0
    assert calls(bare) == [tests]

    later = (bare / ".venv/.installed").stat().st_mtime + 10
    os.utime(bare / "pyproject.toml", (later, later))
    make("soak", "PYTHON=./python", cwd=bare)
    assert calls(bare) == [install, tests]


@needs_make
def test_a_half_made_environment_is_made_again(bare):
    (bare / "broken").touch()
    assert make("soak", "PYTHON=./python", cwd=bare).returncode == 2
    (bare / ".venv/rest").touch()
    (bare / "broken").unlink()
    calls(bare)

    assert make("soak", "PYTHON=./python", cwd=bare).returncode == 0
    assert calls(bare)[0] == "made"
    assert not (bare / ".venv/rest").exists()


@needs_make
def test_an_old_python_is_refused_in_one_line(bare):
    (bare / "python").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])" "$2"\n'
    )
    done = make("soak", "PYTHON=./python", cwd=bare)
    assert done.returncode == 2
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    line = f"splitnet: error: ./python is Python 3.9; name one >= {oldest}: make PYTHON=/path/to/python\n"
    assert line in done.stderr
    assert not (bare / ".venv").exists()


@needs_make
def test_no_python_is_said_in_one_line(bare):
    done = make("soak", "PYTHON=./nowhere", cwd=bare)
    assert done.returncode == 2
    assert "splitnet: error: ./nowhere not found" in done.stderr


# CI, pages


def test_ci_runs_what_a_person_runs():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text("utf-8").splitlines()
    assert lines[-2:] == ["make check", "make test"]
    assert "set -euo pipefail" in lines


def test_readme_begins_with_make():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "make run" in readme
    assert "make test" in readme


def test_contributing_is_one_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 45


# Files


def test_no_file_is_large():
    large = [f"{file.relative_to(ROOT)}: {file.stat().st_size / MIB:.1f} MiB" for file in tracked()]
    assert [line for line in large if float(line.split()[-2]) > 2] == []


def unfinished(text: str) -> list[str]:
    """Words that mark something left to do, and paths that exist on one person's machine only."""
    words = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3))
    return re.findall(rf"\b(?:{words})\b|(?<![\w.])/(?:home|Users|root)/\w+", text)


def test_nothing_is_left_to_do():
    kinds = {".py", ".md", ".toml", ".yml", ".yaml", ""}
    files = [file for file in tracked() if file.suffix in kinds and file != Path(__file__)]
    found = {str(file.relative_to(ROOT)): unfinished(file.read_text("utf-8")) for file in files}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("text", ["# " + "TO" + "DO: later", "see /home/someone/runs"])
def test_left_to_do_can_fail(text):
    assert unfinished(text)


def test_no_module_hides_one_of_the_standard_library():
    """`python splitnet/run.py` would import it instead."""
    modules = {file.stem for file in (ROOT / "splitnet").rglob("*.py")} - {"__init__", "__main__"}
    assert sorted(modules & set(sys.stdlib_module_names)) == []


# A skip says why.


def silent_skips(text: str) -> Iterator[int]:
    """Lines of skips and expected failures without a reason."""
    if "skip" not in text and "xfail" not in text:
        return
    tree = ast.parse(text)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        call = called.get(id(node))
        given = {k.arg for k in call.keywords if ast.unparse(k.value) not in ("''", "None")} if call else set()
        if name in ("pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail", "pytest.importorskip"):
            if "reason" not in given:
                yield node.lineno
        elif name in ("pytest.skip", "pytest.xfail") and call is not None:
            words = [ast.unparse(argument) for argument in call.args[:1]]
            if "reason" not in given and words in ([], ["''"]):
                yield node.lineno


def test_every_skip_says_why():
    silent = [f"{file.name}:{line}" for file in ROOT.glob("tests/**/*.py") for line in silent_skips(file.read_text())]
    assert silent == []


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.skip\ndef test(): pass",
        "@pytest.mark.skip()\ndef test(): pass",
        "pytest.mark.skipif(True, reason='')",
        "pytest.mark.xfail(strict=True)",
        "pytest.skip()",
        "pytest.skip('')",
        "pytest.importorskip('onnx')",
    ],
)
def test_a_silent_skip_is_found(text):
    assert list(silent_skips(text))


def test_a_skip_with_a_reason_is_not():
    assert list(silent_skips("pytest.skip('no browser')\npytest.skip(why)\npytest.mark.skipif(x, reason='r')")) == []
