"""What the page of a search holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agrekd_ray.core.selection import RULES
from agrekd_ray.report import tables
from agrekd_ray.report.archive import SearchSettings, read_search
from agrekd_ray.report.facts import (
    Fact,
    as_yaml,
    cost_facts,
    data_facts,
    date,
    listed,
    student_facts,
    teacher_facts,
)
from agrekd_ray.report.tables import plain
from agrekd_ray.report.words import degraded, difference_in_words, over, test_metrics, tested
from agrekd_ray.search.results import DEFAULT, WINNER, TrialResult
from agrekd_ray.tracking.labels import label
from agrekd_ray.tracking.tables import paired

SEARCH = "search.yaml"


def content(folder: Path) -> dict[str, Any]:
    """What the template needs of the search in a folder, besides its plots."""
    run = read_search(folder)
    result, about, settings = run.result, run.about, run.settings
    winner = next((trial for trial in result.trials if trial.number == result.winner), None)
    rows = tested(result.final)
    measured = [*test_metrics(result.final), *(trial.test for trial in result.trials if trial.test)]
    names = {WINNER: f"Winner (trial {result.winner})", DEFAULT: "Default"}

    def name(method: str) -> str:
        return names.get(method, label(method))

    return {
        "kind": "search",
        "name": result.name,
        "date": date(result.folder),
        "headline": result.verdict or _no_verdict(winner),
        "remarks": degraded(result.final, name),
        "worst": result.worst,
        "facts": [
            Fact("Searcher", _named(settings.searcher)),
            Fact("Scheduler", _named(settings.scheduler)),
            Fact("Budget", _budget(settings)),
            Fact("Trials", _states(result.trials)),
            Fact("Seeds", f"in each trial {listed(settings.seeds)}; {_final_seeds(settings)}"),
            *data_facts(run.job, about.classes, about.groups, about.splits, measured),
            *teacher_facts(about.members, None),
            *student_facts(run.job),
            *cost_facts(about.cost),
            Fact("Base job", settings.job, code=True),
            Fact("Folder", str(folder), code=True),
            Fact("To run it again", f"agrekd tune {shlex.quote(str(folder / SEARCH))}", code=True),
        ],
        "space": tables.space(settings.space),
        "select": result.select,
        "selected_on": result.selected_on,
        "select_summary": RULES[result.select].summary if result.select in RULES else "",
        "rules": tables.rules(result),
        "winner": winner,
        "setting": winner and tables.setting(winner, about.job, settings.final.default),
        "over": over(rows),
        "comparison": tables.comparison(
            "Winner and default on the test split",
            [(row, [name(row.method)], row.method == WINNER) for row in rows],
            ["Setting"],
        ),
        "difference": difference_in_words(paired(result.final, WINNER, DEFAULT)),
        "seeds": tables.by_seed(result.final, name),
        "trials": tables.trials(result, list(settings.space)),
        "weights": tables.weights(result.final, about.members, name),
        "influence": tables.influence(result.final, about.members, name),
        "agreement": None,
        "teachers": tables.teachers(about.members, None),
        "configuration": [
            ("The search", as_yaml(about.settings)),
            ("Its base job", as_yaml(about.job)),
        ],
        "versions": about.versions,
    }


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
    return f"for winner and default {listed(seeds)}" if seeds else "none trained after the search"
