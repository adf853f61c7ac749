"""The report of a run as one HTML page that can be mailed: nothing is fetched, no script is needed.

How the page looks and most of its words are in `page.html.j2`, its tables in `tables.py`;
what each kind of run has on it, in `job.py`, `search.py` and `study.py`.
It is made from the run's folder alone: `results.json` of a job or a search, and the plots there.
"""

from __future__ import annotations

import base64
import re
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from agrekd_ray.errors import RunError
from agrekd_ray.files import exists, is_folder, real, replacing
from agrekd_ray.report import job, search, study
from agrekd_ray.report.style import DPI

POINTS, REPORT = "points", "report.html"
WEIGHTS_PLOT = "weights_by_group"
CAPTIONS = {
    "worst_group_by_method": "Worst-group accuracy (bars) and accuracy of all samples (diamonds) "
    "on the test split, by method. Whiskers are the standard deviation over seeds, dots are seeds.",
    "training_curves": "Worst-group accuracy on the validation split, and training loss, by epoch: "
    "means over seeds, bands from the lowest to the highest seed.",
    "winner_against_default": "The winner's students against the default's, trained after the "
    "search with fresh seeds.",
    "worst_against_accuracy": "Every trial on the test split: its worst group against its accuracy "
    "of all samples.",
    "parameter_effects": "What each parameter of the search does to a trial, on the test split.",
    "parallel_coordinates": "Every trial as a line through its setting to the test split.",
    "trial_history": "The trials in the course of the search.",
    "map": "When to use what: worst-group accuracy that AGRE-KD gains over AVER at every place of "
    "the sweep, in points, with its 95 % bootstrap interval; bold where that leaves 0 out.",
    "gains": "AGRE-KD's worst-group accuracy minus each other method's: means, 95 % bootstrap "
    "intervals, and what was paired.",
    "agreement_by_group": "How the teachers' vote stands to the biased model, by split and group. "
    "Only where it contradicts the biased model and is right (blue) can it teach against the bias.",
    "fallback_by_group": "Share of the training samples on which every weight was 0, so that the "
    "fallback decided, by epoch and group.",
    "influence_by_group": "Influence of a teacher by epoch, method and group of the training "
    "samples: its share in the length of the gradients that the student followed. Below 0 it was "
    "overruled. The dashed line is an even share.",
    "calibration": "Accuracy by confidence on the test split, and how many samples are answered so "
    "confidently, all seeds together. Bars below the diagonal are overconfident.",
    WEIGHTS_PLOT: "Mean weight of a teacher by epoch, method and group of the training samples. "
    "The dashed line is what each would have if all weights were even.",
}
"""What the known plots show, in the order in which a page has them."""


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a finished job, study or search.

    Args:
        folder: of the run.
        output: the page; None is `report.html` in the run's folder. Replaced as a whole.

    Returns:
        The page's path.

    Raises:
        RunError: there is no run, it is not finished, its results are damaged, or the page cannot
            be written.
    """
    folder = real(folder)
    kinds = ((search.SEARCH, search), (POINTS, study), (job.JOB, job))
    content = next((kind.content for name, kind in kinds if exists(folder / name)), None)
    if content is None:
        raise RunError(
            f"{folder}: no run there. Name the folder of a job, a study or a search, like "
            "runs/JOB/latest."
        )
    page = _render({**content(folder), **_pictures(folder)})
    output = output or folder / REPORT
    if is_folder(output):
        raise RunError(f"{output}: is a folder. Name a file with --output.")
    try:
        with replacing(output) as draft:
            # Names can hold halves of characters, which UTF-8 does not know.
            draft.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    except OSError as error:
        raise RunError(
            f"{output}: cannot be written ({error.strerror or error}). Name another file with "
            "--output."
        ) from None
    return output


def _render(content: dict[str, Any]) -> str:
    text = resources.files("agrekd_ray.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    return environment.from_string(text).render(content).lstrip()


def _breakable(text: str) -> Markup:
    """Escaped text that may go on in a new line within a path or a long name."""
    return Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(text))))


def _inches(data: str) -> float:
    """How wide a PNG was drawn, by its first bytes; 0 for what is none."""
    head = base64.b64decode(data[:32])
    pixels = int.from_bytes(head[16:20], "big") if head.startswith(b"\x89PNG") else 0
    return round(pixels / DPI, 1)


def _pictures(folder: Path) -> dict[str, Any]:
    """The run's plots, known ones first, with captions; the one of the teachers' weights apart.

    Raises:
        RunError: one cannot be read.
    """
    known = [*CAPTIONS]
    pictures = {}
    paths = {path.stem: path for path in sorted((folder / "plots").glob("[!.]*.png"))}
    for name in sorted(paths, key=lambda n: known.index(n) if n in known else len(known)):
        try:
            data = base64.b64encode(paths[name].read_bytes()).decode()
        except OSError as error:
            raise RunError(
                f"{paths[name]}: cannot be read ({error.strerror or error}). Make it readable or "
                "remove it, then try again."
            ) from None
        words = name.replace("_", " ").replace("-", " ").strip()
        caption = CAPTIONS.get(name, f"{words[:1].upper()}{words[1:]}.")
        if name.startswith("sweep_"):
            caption = (
                f"Test accuracy by {words.removeprefix('sweep ')}: means, whiskers the standard "
                "deviation over draws and seeds; hollow diamonds are published figures."
            )
        source = f"data:image/png;base64,{data}"
        pictures[name] = {"caption": caption, "source": source, "inches": _inches(data)}
    weights = pictures.pop(WEIGHTS_PLOT, None)
    return {"plots": [*pictures.values()], "weights_plot": weights}
