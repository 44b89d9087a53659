"""``report.html``: one page that shows what a search found, how, and how sure that is.

The page holds everything it shows (inline SVG and CSS, no script, nothing fetched), so it can be mailed or
archived.
"""

from __future__ import annotations

from pathlib import Path

from ..atomic import write_text
from .page import render
from .read import Run, read_run

__all__ = ["Run", "build_report", "read_run", "render"]


def build_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run directory, finished or not, and return its path.

    Raises:
        InputError: ``run_dir`` is not a run directory or one of its files is broken (the message names it).
        OSError: the page cannot be written; an older one is then left as it was.
    """
    return write_text(Path(run_dir) / "report.html", render(read_run(run_dir)))
