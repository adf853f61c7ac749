"""The report of a run as one HTML page that can be mailed: nothing is fetched, no script is needed.

How the page looks and most of its words are in `page.html.j2`, its tables in `tables.py`.
It is made from the run's folder alone: `results.json` of a job or a search, and the plots there.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from agrekd_ray.core.selection import RULES
from agrekd_ray.errors import RunError
from agrekd_ray.files import is_file, is_folder, real
from agrekd_ray.passwords import without_password
from agrekd_ray.report import study, tables
from agrekd_ray.report.archive import (
    JobSettings,
    SearchSettings,
    read_job,
    read_search,
    read_study,
)
from agrekd_ray.report.tables import TEST, percent, plain, signed
from agrekd_ray.results import Effort, Member, Metrics, Outcome
from agrekd_ray.search.results import DEFAULT, WINNER, TrialResult
from agrekd_ray.tracking.files import replacing
from agrekd_ray.tracking.labels import family, is_distilled, label
from agrekd_ray.tracking.tables import Paired, Row, degraded_lines, paired, summary

JOB, SEARCH, POINTS, REPORT = "job.yaml", "search.yaml", "points", "report.html"
WEIGHTS_PLOT = "weights_by_group"
CAPTIONS = {
    "worst_group_by_method": "Worst-group accuracy (bars) and accuracy of all samples (diamonds) "
    "on the test split, by method. Whiskers are the standard deviation over seeds, dots are seeds.",
    "training_curves": "Worst-group accuracy on the validation split, and training loss, by epoch: "
    "means over seeds, bands from the lowest to the highest seed.",
    "winner_against_default": "The winner's students against the default's, trained after the "
    "search with fresh seeds.",
    "worst_against_accuracy": "Every trial: its worst group against its accuracy of all samples.",
    "parameter_effects": "What each parameter of the search does to a trial.",
    "parallel_coordinates": "Every trial as a line through its setting.",
    "trial_history": "The trials in the course of the search.",
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

_WGA = "worst_group_accuracy"
_MOST_NAMES = 12


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
    if is_file(folder / SEARCH):
        content = _search_page(folder)
    elif is_folder(folder / POINTS):
        content = _study_page(folder)
    elif is_file(folder / JOB):
        content = _job_page(folder)
    else:
        raise RunError(
            f"{folder}: no run there. Name the folder of a job, a study or a search, like "
            "runs/JOB/latest."
        )
    output = output or folder / REPORT
    if is_folder(output):
        raise RunError(f"{output}: is a folder. Name a file with --output.")
    page = _render(content)
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


@dataclass(frozen=True)
class Fact:
    """A term and what there is to say of it.

    Attributes:
        term: the term.
        text: in words.
        code: whether the text is for a terminal.
    """

    term: str
    text: str
    code: bool = False


@dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
        caption: what it shows.
        source: the image itself, a data URI.
    """

    caption: str
    source: str


def headline(outcomes: Sequence[Outcome]) -> str:
    """The result of a job in a sentence: its best distilled student, held against AVER.

    Args:
        outcomes: finished students.
    """
    rows = _tested(outcomes)
    best = _best(rows)
    if best is None:
        return "No distilled student is finished, so there is nothing to hold against AVER."
    text = f"{label(best.method)} is the best distilled student: {_in_words(best)}"
    if best.method != "aver":
        found = _difference(paired(outcomes, best.method, "aver"))
        return f"{text}, {found} against {label('aver')}." if found else f"{text}."
    second = _best(row for row in rows if row is not best)
    if second is None:
        return f"{text}. There is no other to hold against it."
    found = _difference(paired(outcomes, second.method, "aver")) or _in_words(second)
    return f"{text}. The next is {label(second.method)}: {found}."


def remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader of the headline should know besides.

    Args:
        outcomes: finished students.

    Returns:
        AGRE-KD against AVER where the headline is about others, and the best reference where it
        does better than every distilled student.
    """
    rows = _tested(outcomes)
    best, found = _best(rows), []
    difference = _difference(paired(outcomes, "agre_kd", "aver"))
    if best and best.method not in ("agre_kd", "aver") and difference:
        found.append(f"{label('agre_kd')} against {label('aver')}: {difference}.")
    references = _finite(row for row in rows if not is_distilled(row.method))
    leading = max(references, key=lambda row: row.mean[_WGA], default=None)
    if leading and best is None:
        found.append(f"{label(leading.method)} is the best reference: {_in_words(leading)}.")
    elif leading and best and leading.mean[_WGA] > best.mean[_WGA]:
        found.append(
            f"{label(leading.method)}, a reference without distillation, does better than every "
            f"distilled student: {_in_words(leading)}."
        )
    return found


def _degraded(outcomes: Sequence[Outcome], name: Callable[[str], str]) -> list[str]:
    return [f"Degraded: {line}." for line in degraded_lines(outcomes, name)]


def _render(content: dict[str, Any]) -> str:
    text = resources.files("agrekd_ray.report").joinpath("page.html.j2").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    return environment.from_string(text).render(content).lstrip()


def _breakable(text: str) -> Markup:
    """Escaped text that may go on in a new line within a path or a long name."""
    return Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(text))))


def _job_page(folder: Path) -> dict[str, Any]:
    run = read_job(folder)
    rows = _tested(run.outcomes)
    best = _best(rows)
    plots, weights_plot = _pictures(folder)
    return {
        "kind": "job",
        "name": run.job.name,
        "date": _date(run.job.folder),
        "headline": headline(run.outcomes),
        "remarks": [*remarks(run.outcomes), *_degraded(run.outcomes, label)],
        "facts": [
            *_data_facts(
                run.settings, run.job.classes, run.job.groups, _test_metrics(run.outcomes)
            ),
            *_teacher_facts(run.members, run.biased),
            *_student_facts(run.settings),
            Fact("Seeds", _listed(run.settings.seeds)),
            *_cost_facts(run.job.seconds, run.job.effort),
            Fact("Folder", str(folder), code=True),
            Fact("To run it again", f"agrekd run {shlex.quote(str(folder / JOB))}", code=True),
        ],
        "over": _over(rows),
        "comparison": tables.comparison(
            "Methods on the test split",
            [(row, [label(row.method), row.teachers], row is best) for row in rows],
            ["Method", "Teachers"],
        ),
        "seeds": tables.by_seed(run.outcomes, label),
        "plots": plots,
        "weights_plot": weights_plot,
        "weights": tables.weights(run.outcomes, run.members, label),
        "influence": tables.influence(run.outcomes, run.members, label),
        "agreement": tables.agreement(run.diagnostics),
        "teachers": tables.teachers(run.members, run.biased),
        "configuration": [("The job", _yaml(run.job.settings))],
        "versions": run.job.versions,
    }


def _search_page(folder: Path) -> dict[str, Any]:
    run = read_search(folder)
    result, about, settings = run.result, run.about, run.settings
    winner = next((trial for trial in result.trials if trial.number == result.winner), None)
    rows = _tested(result.final)
    tested = [*_test_metrics(result.final), *(trial.test for trial in result.trials if trial.test)]
    plots, weights_plot = _pictures(folder)
    names = {WINNER: f"Winner (trial {result.winner})", DEFAULT: "Default"}

    def name(method: str) -> str:
        return names.get(method, label(method))

    return {
        "kind": "search",
        "name": result.name,
        "date": _date(result.folder),
        "headline": result.verdict or _no_verdict(winner),
        "remarks": _degraded(result.final, name),
        "facts": [
            Fact("Searcher", _named(settings.searcher)),
            Fact("Scheduler", _named(settings.scheduler)),
            Fact("Budget", _budget(settings)),
            Fact("Trials", _states(result.trials)),
            Fact("Seeds", f"{_listed(settings.seeds)} in each trial; {_final_seeds(settings)}"),
            *_data_facts(run.job, about.classes, about.groups, tested),
            *_teacher_facts(about.members, None),
            *_student_facts(run.job),
            *_cost_facts(about.seconds, about.effort),
            Fact("Base job", settings.job, code=True),
            Fact("Folder", str(folder), code=True),
            Fact("To run it again", f"agrekd tune {shlex.quote(str(folder / SEARCH))}", code=True),
        ],
        "space": tables.space(settings.space),
        "select": result.select,
        "select_summary": RULES[result.select].summary if result.select in RULES else "",
        "rules": tables.rules(result),
        "winner": winner,
        "setting": winner and tables.setting(winner, about.job, settings.final.default),
        "over": _over(rows),
        "comparison": tables.comparison(
            "Winner and default on the test split",
            [(row, [name(row.method)], row.method == WINNER) for row in rows],
            ["Setting"],
        ),
        "difference": _difference(paired(result.final, WINNER, DEFAULT)),
        "seeds": tables.by_seed(result.final, name),
        "trials": tables.trials(result, list(settings.space)),
        "plots": plots,
        "weights_plot": weights_plot,
        "weights": tables.weights(result.final, about.members, name),
        "influence": tables.influence(result.final, about.members, name),
        "agreement": None,
        "teachers": tables.teachers(about.members, None),
        "configuration": [
            ("The search", _yaml(about.settings)),
            ("Its base job", _yaml(about.job)),
        ],
        "versions": about.versions,
    }


def _study_page(folder: Path) -> dict[str, Any]:
    result = read_study(folder)
    plots, _ = _pictures(folder)
    return {
        **study.content(result, folder),
        "date": _date(result.folder),
        "facts": [
            *(Fact(*fact) for fact in study.facts(result, folder)),
            Fact("Took", _duration(result.seconds)),
        ],
        "plots": plots,
        "weights_plot": None,
        "weights": None,
        "influence": None,
        "agreement": None,
        "teachers": None,
        "configuration": [("The study", _yaml(result.settings))],
    }


def _tested(outcomes: Sequence[Outcome]) -> list[Row]:
    return [row for row in summary(outcomes) if row.split == TEST]


def _test_metrics(outcomes: Sequence[Outcome]) -> list[Metrics]:
    return [outcome.splits[TEST] for outcome in outcomes if TEST in outcome.splits]


def _finite(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if math.isfinite(row.mean.get(_WGA, math.nan))]


def _best(rows: Iterable[Row]) -> Row | None:
    taught = [row for row in _finite(rows) if is_distilled(row.method)]
    return max(taught, key=lambda row: row.mean[_WGA], default=None)


def _in_words(row: Row) -> str:
    spread = f" ± {percent(row.std[_WGA])}" if len(row.seeds) > 1 else ""
    return f"{percent(row.mean[_WGA])}{spread} % on the {row.worst}"


def _difference(found: Paired | None) -> str:
    """`+19.0 points by seed (+17.6 … +19.9, 3 seeds)`; empty where there is none."""
    if found is None or not math.isfinite(found.mean):
        return ""
    count = len(found.seeds)
    reach = f"{signed(100 * found.low, 1)} … {signed(100 * found.high, 1)}, {count} seeds"
    return f"{signed(100 * found.mean, 1)} points by seed ({reach if count > 1 else '1 seed'})"


def _over(rows: Sequence[Row]) -> str:
    counts = {len(row.seeds) for row in rows}
    if counts <= {1}:
        return "one seed"
    many = f"{max(counts)}" if len(counts) == 1 else f"up to {max(counts)}"
    return f"mean ± standard deviation over {many} seeds"


def _no_verdict(winner: TrialResult | None) -> str:
    if winner is None:
        return "The search has no winner: no trial has a score."
    return f"Trial {winner.number} is the winner; it was not held against the default."


def _named(found: dict[str, Any]) -> str:
    """A searcher or a scheduler, with its options."""
    options = ", ".join(f"{key} {plain(value)}" for key, value in found.items() if key != "name")
    name = str(found.get("name", ""))
    if name == "none":
        return "none: every trial trains to its end"
    return f"{name} ({options})" if options else name


def _budget(settings: SearchSettings) -> str:
    parts = [f"{settings.trials:,} trials"] if settings.trials is not None else []
    parts += [f"{settings.minutes:g} minutes"] if settings.minutes is not None else []
    return " or ".join(parts) or "all of the grid"


def _states(trials: Sequence[TrialResult]) -> str:
    states = [trial.state for trial in trials]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{len(trials)}: {', '.join(parts)}" if trials else "none"


def _final_seeds(settings: SearchSettings) -> str:
    seeds = settings.final.seeds
    return f"{_listed(seeds)} for winner and default" if seeds else "none trained after the search"


def _data_facts(
    job: JobSettings,
    classes: Sequence[str],
    groups: Sequence[str],
    tested: Sequence[Metrics],
) -> list[Fact]:
    counts = tested[0].counts if tested else {}
    told = [f"{name} ({counts[name]:,})" if name in counts else name for name in groups]
    details = [
        f"{key} {plain(value)}"
        for key, value in job.data.items()
        if key != "name" and isinstance(value, str | int | float)
    ]
    return [
        Fact("Data", f"{job.data.get('name', '')}: {', '.join(details)}"),
        Fact("Classes", f"{len(classes)}: {_listed(classes)}"),
        Fact("Groups (test samples)" if counts else "Groups", _listed(told)),
    ]


def _teacher_facts(members: Sequence[Member], biased: Member | None) -> list[Fact]:
    if not members:
        return []
    kinds = {
        kind: [m.name for m in members if m.kind == kind] for kind in (m.kind for m in members)
    }
    told = [f"{len(names)} {family(kind)}: {_listed(names)}" for kind, names in kinds.items()]
    facts = [Fact("Teachers drawn", "; ".join(told))]
    return [*facts, Fact("Biased model", biased.name)] if biased else facts


def _student_facts(job: JobSettings) -> list[Fact]:
    model, training = job.student.get("model"), job.student.get("training")
    parts = [str(model["name"])] if isinstance(model, dict) and "name" in model else []
    if isinstance(training, dict) and "epochs" in training:
        parts.append(f"{training['epochs']} epochs")
    parts += [
        f"{key} {plain(job.distillation[key])}"
        for key in ("temperature", "alpha")
        if key in job.distillation
    ]
    return [Fact("Student", ", ".join(parts))]


def _cost_facts(seconds: float, effort: Effort | None) -> list[Fact]:
    facts = [Fact("Took", _duration(seconds))] if math.isfinite(seconds) else []
    if effort:
        kept = f", {effort.recorded / 1e6:,.1f} MB recorded" if effort.recorded else ""
        told = (
            f"{effort.forwards:,} forward passes{kept}"
            if effort.forwards
            else "all recorded before"
        )
        facts.append(Fact("Teachers' cost", told))
    return facts


def _pictures(folder: Path) -> tuple[list[Picture], Picture | None]:
    """The run's plots, known ones first; the one of the teachers' weights apart.

    Raises:
        RunError: one cannot be read.
    """
    known = list(CAPTIONS)

    def order(path: Path) -> tuple[int, str]:
        return known.index(path.stem) if path.stem in known else len(known), path.name

    pictures, weights = [], None
    for path in sorted((folder / "plots").glob("[!.]*.png"), key=order):
        try:
            data = base64.b64encode(path.read_bytes()).decode()
        except OSError as error:
            raise RunError(
                f"{path}: cannot be read ({error.strerror or error}). Make it readable or remove "
                "it, then try again."
            ) from None
        words = path.stem.replace("_", " ").replace("-", " ").strip()
        caption = CAPTIONS.get(path.stem, f"{words[:1].upper()}{words[1:]}.")
        if path.stem.startswith("sweep_"):
            caption = (
                f"Test accuracy by {words.removeprefix('sweep ')}: means, whiskers the standard "
                "deviation over draws and seeds; hollow diamonds are published figures."
            )
        picture = Picture(caption, f"data:image/png;base64,{data}")
        if path.stem == WEIGHTS_PLOT:
            weights = picture
        else:
            pictures.append(picture)
    return pictures, weights


def _date(folder: str) -> str:
    """When a run began, out of its folder's name; empty for a name without a stamp."""
    try:
        when = datetime.strptime(Path(folder).name[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return ""
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "less than a second"


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:_MOST_NAMES]))
    left = len(values) - _MOST_NAMES
    return f"{shown} and {left} more" if left > 0 else shown


def _yaml(values: dict[str, Any]) -> str:
    # Earlier versions kept passwords of tracking stores.
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return without_password(text)
