"""The pages of a run: written by a run at its end, and again by `report`."""

from importlib.util import find_spec
from pathlib import Path

from splitnet.errors import UsageError
from splitnet.measure import learned_pictures, pictures
from splitnet.measure.markdown import markdown
from splitnet.measure.page import page
from splitnet.measure.records import write_whole
from splitnet.measure.summary import Summary, summarise

NO_PAGE = "report.html: not made; it needs plotly (pip install plotly)"


def has_page() -> bool:
    """Whether report.html can be made here; everything else of a run can be without plotly."""
    return find_spec("plotly") is not None


def write_pages(folder: Path, out: Path | None = None) -> list[Path]:
    """Make a run's pages from its other files, in its folder or in `out`. Returns the files that were written.

    UsageError if the folder is no run's, or `out` cannot be written.
    """
    return write_summary(summarise(folder), out or folder)


def write_summary(summary: Summary, out: Path) -> list[Path]:
    """Every page is made before the first is written, each aside and renamed."""
    drawn = pictures.pictures(summary) | learned_pictures.pictures(summary.learned)
    files = {f"pictures/{name}": text for name, text in drawn.items()}
    files["report.md"] = markdown(summary, drawn)
    if has_page():
        files["report.html"] = page(summary)
    written = write_files(out, files)
    for name in (*pictures.NAMES, *learned_pictures.NAMES):
        if name not in drawn:
            (out / "pictures" / name).unlink(missing_ok=True)  # of an earlier state of the folder
    return written


def write_files(out: Path, files: dict[str, str]) -> list[Path]:
    """Name -> text. UsageError if they cannot be written."""
    try:
        for name, text in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / name, text)
    except OSError as error:
        raise UsageError(f"{out}: cannot write there ({error.strerror})") from error
    return [out / name for name in files]
