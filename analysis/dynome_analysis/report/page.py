"""Put chapters, figures and their library into one HTML file that needs nothing else.

What comes from a recording is text and stays text: the template escapes it, figures get it as data, and the page
forbids itself any connection, so that even a hostile name can do nothing.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynome_analysis.files import write_text
from dynome_analysis.report.document import Chapter, Drawing, Section, Table, plural
from dynome_analysis.report.evidence import gather
from dynome_analysis.report.figures.style import THEME, dark_of
from dynome_analysis.report.sections.chapter import recording_chapter
from dynome_analysis.report.sections.prediction import prediction_section
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynome_analysis.compute import Progress
    from dynome_analysis.prediction import Prediction
    from dynome_analysis.recording import Recording

__all__ = ["render_page", "write_report"]

TITLE = "What a network did while it learned"
PACKAGES = ("dynome", "numpy", "scipy", "scikit-learn", "numba", "xarray", "dask", "zarr", "bokeh")
MARKS = Table(
    caption="Marks",
    header=("Mark", "Meaning"),
    words=True,
    rows=(
        ("[P]", "stated by the paper, or read in its authors' code"),
        ("[G]", "from the same group's earlier paper or code"),
        ("[O]", "our own choice; METHODS.md gives the reason"),
    ),
)
PAPERS = Table(
    caption="Papers",
    header=("Short", "Paper"),
    words=True,
    rows=(
        ("TOP", "Wu, He, Songdechakraiwut: Data-Efficient Neural Training with Dynamic Connectomes, arXiv 2508.06817"),
        (
            "CG-ALR",
            "He, Songdechakraiwut: Connectome-Guided Automatic Learning Rates for Deep Networks, arXiv 2510.23781",
        ),
        (
            "Prediction",
            "Vahedian, Li, Trivedi, Jin, Koutra: Leveraging the Graph Structure of Neural Network Training Dynamics, "
            "arXiv 2111.05410",
        ),
        ("Births, deaths", "Songdechakraiwut, Krause, Banks, Nourski, Van Veen: Fast Topological Clustering with "
         "Wasserstein Distance, ICLR 2022"),
    ),
)  # fmt: skip


def write_report(
    recordings: Sequence[Recording | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    prediction: Prediction | None = None,
    patience: int = 5,
    title: str = TITLE,
    progress: Progress | None = None,
) -> Path:
    """Write a report on recordings as one HTML file that works offline.

    Parameters
    ----------
    recordings : sequence of Recording or path
        At least one; each gets a chapter.
    out : path
        The file to write; it appears whole or not at all.
    prediction : Prediction, optional
        From `predict_performance`, over these or other runs.
    patience : int
        Of the replayed stopping rules.
    title : str
        Heading of the page.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InvalidArgumentError
        No recording is given.
    RecordingNotFoundError, CorruptRecordingError, UnsupportedVersionError
        A recording cannot be read.
    StorageError
        The file cannot be written.

    Notes
    -----
    What a recording has no data for is named in its section. Costs the analysis of each recording where that is not
    cached, then about two seconds; the file is 1.3 MB plus a few hundred kB per recording.
    """
    from dynome_analysis.recording import open_recording

    if not recordings:
        raise InvalidArgumentError("a report needs at least one recording: name its folder")
    opened = [
        open_recording(Path(recording)) if isinstance(recording, str | os.PathLike) else recording
        for recording in recordings
    ]
    chapters = [
        recording_chapter(
            gather(recording, patience=patience, progress=progress),
            key=f"run{place}",
            title=recording.path.resolve().name,
        )
        for place, recording in enumerate(opened, start=1)
    ]
    chapters.append(_closing_chapter(prediction))
    what = f"Recording {opened[0].path.resolve().name}" if len(opened) == 1 else plural(len(opened), "recording")
    subtitle = f"{what}; the stopping rules have a patience of {plural(patience, 'epoch')}."
    path = Path(out)
    write_text(path, render_page(chapters, title=title, subtitle=subtitle))
    return path


def render_page(chapters: Sequence[Chapter], *, title: str, subtitle: str) -> str:
    """Return the HTML of chapters."""
    from bokeh.embed import json_item
    from bokeh.resources import Resources
    from jinja2 import Environment, StrictUndefined

    drawings = [drawing for chapter in chapters for section in chapter.sections for drawing in section.drawings]
    places = {id(drawing): f"drawing{number}" for number, drawing in enumerate(drawings, start=1)}
    items = [json_item(drawing.model, places[id(drawing)], theme=THEME) for drawing in drawings]
    package = files("dynome_analysis.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(package.joinpath("template.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        chapters=chapters,
        # With one recording, chapters are the page's own structure and need no headings.
        headings=len(chapters) > 2,
        drawing_id=lambda drawing: places[id(drawing)],
        height_of=_height_of,
        css=package.joinpath("page.css").read_text(encoding="utf-8"),
        script=package.joinpath("page.js").read_text(encoding="utf-8"),
        # Only the core of BokehJS: widgets, tables and mathematics would triple the file.
        bokeh=Resources(mode="inline", components=["bokeh"]).render_js(),
        drawings=_embeddable({"items": items, "dark": dark_of()}),
        footer=f"Made by Dynome {version('dynome')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
        "This file is complete: it works offline and connects to nothing.",
    )


def _closing_chapter(prediction: Prediction | None) -> Chapter:
    versions = tuple((package, version(package)) for package in PACKAGES)
    return Chapter(
        key="all",
        title="Prediction and methods",
        sections=(
            prediction_section(prediction),
            Section(
                key="methods",
                title="Methods and versions",
                paragraphs=("Every claim above carries a mark that tells where it comes from.",),
                tables=(MARKS, PAPERS, Table(caption="Analysed with", header=("Package", "Version"), rows=versions)),
            ),
        ),
    )


def _embeddable(value: Any) -> str:
    """Return JSON that can stand inside a script element: no ``<`` can end it or begin another."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _height_of(drawing: Drawing) -> int:
    """Return the height that a figure will take, so that the page does not jump when it is drawn."""
    model: Any = drawing.model
    children = getattr(model, "children", [model])
    return sum(int(child.height or 0) for child in children)
