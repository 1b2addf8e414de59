"""Names of classes: by the folder that begins a line, or in order."""

import re

import pytest

from splitnet.errors import UsageError
from splitnet.training.class_names import compared, read

FOLDERS = ("n01440764", "n01443537", "n01484850")


def written(tmp_path, text):
    path = tmp_path / "names.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_that_begin_with_their_folder_stand_in_any_order(tmp_path):
    path = written(tmp_path, "n01484850 great white shark\nn01440764 tench, Tinca tinca\n\nn01443537 goldfish\n")
    assert read(path, FOLDERS) == ("tench, Tinca tinca", "goldfish", "great white shark")


@pytest.mark.parametrize("between", [",", ", ", "\t"], ids=repr)
def test_a_comma_or_a_tab_may_stand_between_and_a_mark_of_the_encoding_before(tmp_path, between):
    lines = (
        f"{folder}{between}{name}" for folder, name in zip(FOLDERS[::-1], ("shark", "goldfish", "tench"), strict=True)
    )
    path = written(tmp_path, b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert read(path, FOLDERS) == ("tench", "goldfish", "shark")


def test_folders_alone_are_their_own_names_in_any_order(tmp_path):
    assert read(written(tmp_path, "\n".join(FOLDERS[::-1])), FOLDERS) == FOLDERS


def test_bare_lines_are_names_in_order(tmp_path):
    assert read(written(tmp_path, "tench\ngoldfish\nshark"), FOLDERS) == ("tench", "goldfish", "shark")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tench\ngoldfish\n", "2 names for 3 classes; wanted is a text file, a line for each"),
        ("tench, goldfish, shark", "1 name for 3 classes; wanted is a text file, a line for each"),
        ("n01440764 tench\nn01443537 goldfish\nn99 shark", "no line begins with n01484850, as others do with theirs"),
        ("n01440764 tench\nn01440764 tench\nn01443537 goldfish", "no line begins with n01484850"),
        (b"\xff\xfe\x00", "cannot be read (not UTF-8 text)"),
    ],
)
def test_a_list_that_does_not_match_is_one_line(tmp_path, text, line):
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read(path, FOLDERS)
    assert str(error.value).startswith(f"--class-names {path}: {line}")


def test_no_such_list(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.txt", FOLDERS)


def test_weights_names_are_compared_with_the_images():
    assert compared(("a", "b"), ()) == ""
    assert compared(("a", "b"), ("a", "b")) == ""
    line = "Names of classes are not the weights': class 1 is 'n02' here, 'tench' there; they are taken for .*"
    assert re.fullmatch(line, compared(("a", "n02", "b"), ("a", "tench", "cat")))
    with pytest.raises(UsageError, match=r"^class 1 is 'b' here, 'c' there: the same names in another order; rename"):
        compared(("a", "b", "c"), ("a", "c", "b"))
