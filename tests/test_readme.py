"""What the README says to type works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z]+@", README)


def test_there_are_examples():
    assert any("resnet18" in block for block in BLOCKS)
    assert any("def test_" in block for block in BLOCKS)
    assert any("splitnet.build" in block for block in BLOCKS)


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if "def test_" not in b], ids=lambda b: b.split("\n")[2][:30])
def test_an_example_runs(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_fixture_works_in_somebody_elses_tests(tmp_path):
    [block] = [block for block in BLOCKS if "def test_" in block]
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["splitnet.testing"]\n')
    (tmp_path / "test_theirs.py").write_text("import torch\n\n\n" + block)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_commands_of_the_readme_exist():
    for module in re.findall(r"python -m (splitnet\.\w+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for path in re.findall(r"python (experiments/\w+\.py)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
