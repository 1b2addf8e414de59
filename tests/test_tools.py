"""The figure is the table's, and `python -m splitnet` knows every command."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from quick import few

from splitnet.__main__ import COMMANDS
from splitnet.__main__ import main as list_commands
from splitnet.network.presets import preset

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "towers.svg"
SVG = "{http://www.w3.org/2000/svg}"
DRAW = "tools/draw_towers.py"


def drawn():
    return subprocess.run(
        [sys.executable, DRAW], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True, timeout=60
    ).stdout.decode()


def texts():
    return ["".join(text.itertext()) for text in ElementTree.parse(FIGURE).iter(f"{SVG}text")]


def test_the_figure_is_what_the_tool_draws_from_the_table():
    assert FIGURE.read_text(encoding="utf-8") == drawn(), f"make it again: python {DRAW} > docs/towers.svg"


def test_the_figure_is_xml_with_its_title_and_size():
    root = ElementTree.parse(FIGURE).getroot()
    assert root.tag == f"{SVG}svg"
    title = root.find(f"{SVG}title").text
    assert root.get("aria-label") == title
    assert "conv3, fc6, fc7, fc8" in title
    *_, width, height = map(float, root.get("viewBox").split())
    for box in root.iter(f"{SVG}rect"):
        assert 0 <= float(box.get("x")) < float(box.get("x")) + float(box.get("width")) <= width
        assert 0 <= float(box.get("y")) < float(box.get("y")) + float(box.get("height")) <= height


def test_every_crossing_and_its_bytes_are_in_the_figure():
    found = texts()
    table = preset("alexnet", 2)
    crossings = [row for row in table.rows() if row.crosses]
    assert [row.name for row in crossings] == ["conv3", "fc6", "fc7", "fc8"]
    sizes = [f"{sum(t.bytes for t in row.transfers(1) if t.phase == 'forward'):,}" for row in crossings]
    for size in set(sizes):
        assert sum(text.startswith(size) for text in found) == sizes.count(size), size
    assert any(f"{table.bytes_exchanged(1, 'forward'):,}" in text for text in found)
    assert table.bytes_exchanged(1, "forward") == 234_496


def test_every_row_of_every_tower_is_in_the_figure():
    found = texts()
    for row in preset("alexnet", 2).rows():
        assert found.count(row.name) == row.holders


def test_the_figure_of_another_table_is_drawn_as_well():
    draw = runpy.run_path(str(ROOT / DRAW))["draw"]
    figure = ElementTree.fromstring(draw(preset("fashion", 2)))
    assert "fashion" in figure.find(f"{SVG}title").text


# Commands


def commands():
    """Modules right below splitnet with a `main`, that run it when they are the program."""
    for path in sorted((ROOT / "splitnet").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        runs = any(isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'" for n in tree.body)
        if has_main and runs and path.name != "__main__.py":
            yield path.stem


def test_the_list_of_commands_is_complete():
    assert {"run", "verify"} <= set(commands())
    assert set(COMMANDS) == set(commands())


def test_the_list_is_printed_in_80_columns(capsys):
    assert list_commands() == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f"python -m splitnet.{name}" in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


@pytest.mark.slow
@pytest.mark.parametrize("name", few(["", *commands()], "", "run", "view"))
def test_each_command_starts_and_explains_itself(name):
    words = [sys.executable, "-m", f"splitnet.{name}" if name else "splitnet", *(["--help"] if name else [])]
    done = subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m splitnet{'.' + name if name else ''}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
