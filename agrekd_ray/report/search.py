"""What people see of a search: trials, rules and winner on the screen, in files and its page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.config.search import default_strategy
from agrekd_ray.config.space import Domain, applied, conditions
from agrekd_ray.core.selection import RULES
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.files import checked, exists
from agrekd_ray.report import ensemble, facts, plots, settings_plots, style, tables
from agrekd_ray.report.archive import RESULTS, kept_apart, read_search, write_results
from agrekd_ray.report.facts import Fact, listed
from agrekd_ray.report.job import data_of, degraded_lines, render_degraded
from agrekd_ray.report.labels import labels_used
from agrekd_ray.report.models import TEST, compared, over_seeds, students, teachers, tested
from agrekd_ray.report.settings_plots import Point
from agrekd_ray.report.tables import Table, texts
from agrekd_ray.results import EnsembleCheck, TeacherResult
from agrekd_ray.results.arrays import ARRAYS
from agrekd_ray.results.frame import difference
from agrekd_ray.results.intervals import seeds_of_one_draw, signed
from agrekd_ray.results.metrics import (
    ACCURACY,
    ECE,
    METRICS,
    MISSING,
    WORST_GROUP,
    label,
    measured_over,
    setting_text,
    short_paths,
)
from agrekd_ray.results.search import (
    DEFAULT,
    FAILED,
    STRATEGY,
    WINNER,
    SearchResult,
    TrialResult,
    in_words,
)

SEARCH, TRIALS = "search.yaml", "trials.csv"
SHOWN = 8
"""Trials in the table on the screen; all are in the folder."""
_SPARE = ("epochs", "needs", "state", "choice", "test")
"""Columns that a narrow screen does without."""


def publish_search(folder: Path, result: SearchResult, *, anew: bool = True) -> None:
    """Write results.json, trials.csv, teachers.csv, and what there is to draw as `plots/*.png`.

    Args:
        folder: of the search.
        result: what came out.
        anew: false writes what is missing and leaves the rest as it is.

    Raises:
        OSError: where they cannot be written.
    """
    if anew:
        final = [kept_apart(outcome, folder) for outcome in result.final]
        write_results(folder / RESULTS, {**vars(result), "final": final})
    if anew or not exists(folder / TRIALS):
        write_trials(folder / TRIALS, result.trials)
    told = result.about.get("ensemble")
    if told and (anew or not exists(folder / ensemble.TEACHERS)):
        ensemble.write_csv(checked(EnsembleCheck, told), folder / ensemble.TEACHERS)
    trials, final = [_point(trial, result) for trial in result.trials], result.final
    members = checked(list[TeacherResult], result.about.get("members", []))
    score, job = f"select/{result.select}", result.about.get("job", {})
    data = data_of(job)
    note = style.about(data, "", None, f"trials: means over {_seeds(result)}")
    space = result.about.get("settings", {}).get("space", {})
    logs = [path for path, domain in space.items() if domain.get("loguniform")]
    several = final if any(outcome.method == DEFAULT for outcome in final) else []
    style.draw_plots(
        folder / "plots",
        {
            "worst_against_accuracy": partial(
                settings_plots.worst_against_accuracy, trials, note=note
            ),
            "parameter_effects": partial(
                settings_plots.parameter_effects, trials, logs=logs, note=note
            ),
            "parallel_coordinates": partial(
                settings_plots.parallel_coordinates, trials, logs=logs, note=note
            ),
            "trial_history": partial(settings_plots.trial_history, trials, score, note=note),
            "winner_against_default": partial(plots.worst_group_by_method, several, data),
            **plots.of_training(final, members, data),
        },
        anew=anew,
        formats=job.get("plots", ("png",)),
    )


def _seeds(result: SearchResult) -> str:
    """Of each trial, in words."""
    return seeds_of_one_draw(len(result.about.get("settings", {}).get("seeds", (0,))))


def _point(trial: TrialResult, result: SearchResult) -> Point:
    """A trial as pictures take it."""
    last = trial.history[-1] if trial.history else None
    measured = {
        TEST: trial.test.scalars() if trial.test else {},
        "val": last.val.scalars() if last else {},
        "select": last.selection if last else {},
    }
    metrics = {
        f"{of}/{name}": value for of, those in measured.items() for name, value in those.items()
    }
    chosen = f"the winner by {result.select}" if trial.number == result.winner else ""
    setting, state = trial.setting, trial.state
    return Point(trial.name, trial.number, setting, metrics, state=state, chosen=chosen)


def write_trials(path: Path, trials: Sequence[TrialResult]) -> None:
    """A row a trial: setting, state, epochs, score by rule, test metrics.

    Args:
        path: the file, replaced as a whole.
        trials: of a search.
    """
    settings = [
        {path: v if isinstance(v, str) else json.dumps(v) for path, v in trial.setting.items()}
        for trial in trials
    ]
    paths = dict.fromkeys(path for setting in settings for path in setting)
    rows = [
        {
            "trial": trial.name,
            **{path: setting.get(path, "") for path in paths},
            "state": trial.state,
            "epochs": len(trial.history),
            "seconds": round(trial.seconds, 2),
            **{f"select/{rule}": trial.score(rule) for rule in RULES},
            f"{TEST}/{WORST_GROUP}": trial.test_worst,
            f"{TEST}/{ACCURACY}": trial.test.accuracy if trial.test else None,
            f"{TEST}/measured_over": measured_over(trial.test.coverage) if trial.test else "",
            "reason": trial.reason or "",
        }
        for trial, setting in zip(trials, settings, strict=True)
    ]
    tables.write_csv(rows, path, "trial", [f"{TEST}/measured_over"])


# --- the screen ------------------------------------------------------------------------------


def show(result: SearchResult, console: Console, base: Mapping[str, Any] | None = None) -> None:
    """Prints trials, rules, final students, winner, verdict, and which labels were used.

    Args:
        result: what came out.
        console: where to print.
        base: settings of the base job, for the labels; None says nothing of them.
    """
    for table in (_trials_on_screen(result), _rules_on_screen(result), _final(result)):
        if table is not None:
            console.print()
            strong = next(iter(table.strong), None)
            bold = None if strong is None else (strong, table.columns[0].name)
            tables.show(table, console, bold=bold, spare=_SPARE)
    console.print()
    render_degraded(degraded_lines(result.final, str), console)
    winner = next(trial for trial in result.trials if trial.number == result.winner)
    chosen = f"{winner.name}, chosen by {result.selected_on}: {in_words(winner.setting)}"
    console.print(Text(f"winner      {chosen}"), soft_wrap=True)
    if result.verdict:
        console.print(Text(f"verdict     {result.verdict}"), soft_wrap=True)
    if base is not None:
        console.print(Text(_labels(result, base)), soft_wrap=True)


def _labels(result: SearchResult, base: Mapping[str, Any]) -> str:
    known = any(metrics.groups_known for metrics in result.tested)
    return labels_used(base, groups_known=known, rule=result.select)


def _ranked(result: SearchResult) -> list[TrialResult]:
    """The trials, best score of the selecting rule first; without a score by number."""

    def score(trial: TrialResult) -> float:
        score = trial.score(result.select)
        return -math.inf if score is None or math.isnan(score) else score

    return sorted(result.trials, key=lambda trial: (-score(trial), trial.number))


def _trials(
    result: SearchResult, trials: Sequence[TrialResult], score: str, worst: str, *paths: str
) -> Table:
    """A row a trial, with its setting on one line and path by path; the winner stands out.

    Args:
        result: of the search.
        trials: that are shown.
        score: what people call the score by the selecting rule.
        worst: what they call the worst-group accuracy.
        paths: that the search varies.
    """
    headers = {"trial": "Trial", "setting": "Setting", **short_paths(paths), "state": "State"}
    figures = {"epochs": "Epochs", "score": score, "test": f"Test {worst}", "seconds": "Seconds"}
    rows = [
        (
            trial.name,
            in_words(trial.setting),
            *(setting_text(trial.setting[p]) if p in trial.setting else MISSING for p in paths),
            trial.state,
            f"{len(trial.history)}/{trial.epochs}",
            percent(trial.score(result.select)),
            percent(trial.test_worst),
            f"{trial.seconds:.0f}" if math.isfinite(trial.seconds) else MISSING,
        )
        for trial in trials
    ]
    failed = {n: trial.reason for n, trial in enumerate(trials) if trial.state == FAILED}
    return Table(
        "Trials",
        texts(headers | figures, rows, figures),
        frozenset(n for n, trial in enumerate(trials) if trial.number == result.winner),
        {n: reason or "No reason is known." for n, reason in failed.items()},
    )


def _trials_on_screen(result: SearchResult) -> Table:
    over = [trial for trial in _ranked(result) if trial.state != FAILED]
    failed = len(result.trials) - len(over)
    title = f"{len(result.trials)} trials"
    title += f", {failed} of them failed" if failed else ""
    title += f", the best {SHOWN} by {result.select}" if len(over) > SHOWN else ""
    table = _trials(result, over[:SHOWN], result.select, "WGA")
    return table.named(("trial", "setting", "state", "epochs", "score", "test"), title)


def _rules(result: SearchResult, worst: str) -> Table:
    """How well each selection rule would have served; the one that chose stands out."""
    headers = {"rule": "Rule", "needs": "Needs", "correlation": "Correlation"}
    headers |= {"trials": "Over trials", "choice": "Its choice", "test": f"Its test {worst}"}
    rows = [
        (
            rule.rule,
            ", ".join(rule.needs) or "nothing",
            MISSING if rule.correlation is None else signed(rule.correlation, 2),
            str(rule.trials),
            f"trial-{rule.choice:03}",
            percent(rule.test_worst_group_accuracy),
        )
        for rule in result.rules
    ]
    names = [rule.rule for rule in result.rules]
    return Table(
        "Selection rules",
        texts(headers, rows, ("correlation", "trials", "test")),
        frozenset(n for n, name in enumerate(names) if name == result.select),
        {n: RULES[name].summary for n, name in enumerate(names) if name in RULES},
    )


def _ranked_over(result: SearchResult) -> str:
    """The trials that rank correlations are over: `9 of 12 trials, those of 10 epochs`."""
    trials = max((rule.trials for rule in result.rules), default=0)
    epochs = max((rule.epochs for rule in result.rules), default=0)
    left_out = any(len(trial.history) != epochs for trial in result.trials if trial.test)
    if not epochs or not left_out:
        return f"{trials} trials"
    several = "epochs" if epochs > 1 else "epoch"
    return f"{trials} of {len(result.trials)} trials, those of {epochs} {several}"


def _rules_on_screen(result: SearchResult) -> Table:
    title = f"Rules: their choices, and rank correlation with test WGA over {_ranked_over(result)}"
    title += f"; WGA: {result.worst}" if result.worst != "worst group" else ""
    rules = _rules(result, "WGA")
    return rules.named(("rule", "needs", "correlation", "choice", "test"), title)


def _final(result: SearchResult) -> Table | None:
    seeds = len({outcome.seed for outcome in result.final})
    title = f"Trained again, {seeds} fresh seed{'s' * (seeds != 1)}, test split in %"
    table = compared(result.final, title, str, method="")
    return table and table.named(("method", WORST_GROUP, ACCURACY, ECE))


def percent(share: float | None) -> str:
    """A share in percent, without the sign."""
    return METRICS[ACCURACY].text(share)


# --- the page --------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    """What the template needs of the search in a folder, besides its plots."""
    run = read_search(folder)
    result, about, settings = run.result, run.about, run.settings
    winner = next((trial for trial in result.trials if trial.number == result.winner), None)

    twins = result.final and not any(outcome.method == DEFAULT for outcome in result.final)

    def name(method: str) -> str:
        winner = f"Winner (trial {result.winner}{', the default setting' if twins else ''})"
        return winner if method == WINNER else label(method)

    score = f"Score, {result.selected_on}"
    trials = _trials(result, _ranked(result), score, result.worst, *settings.space)
    shown = ("trial", *settings.space, "state", "epochs", "score", "test", "seconds")
    title = "Winner, the default setting, on the test split"
    title = title if twins else "Winner and default on the test split"
    gain = difference(result.final, WINNER, DEFAULT)
    headline = "The search has no winner: no trial has a score."
    if winner:
        headline = f"Trial {winner.number} is the winner; it was not held against the default."
    for_final = f"for winner and default {listed(settings.final.seeds)}"
    final_seeds = for_final if settings.final.seeds else "none trained after the search"
    states = Counter(trial.state for trial in result.trials)
    in_states = ", ".join(f"{count} {state}" for state, count in states.items())
    budget = [f"{settings.trials:,} trials"] if settings.trials is not None else []
    budget += [f"{settings.minutes:g} minutes"] if settings.minutes is not None else []
    return {
        "kind": "search",
        "name": result.name,
        "date": facts.date(result.folder),
        "headline": result.verdict or headline,
        "remarks": [],
        "degraded": degraded_lines(result.final, name),
        **ensemble.content(about.ensemble),
        "worst": result.worst,
        "facts": [
            Fact("Searcher", _named(settings.searcher)),
            Fact("Scheduler", _named(settings.scheduler)),
            Fact("Budget", " or ".join(budget) or "all of the grid"),
            Fact("Trials", f"{len(result.trials)}: {in_states}" if states else "none"),
            Fact("Seeds", f"in each trial {listed(settings.seeds)}; {final_seeds}"),
            *facts.data(run.job, about, result.tested),
            *facts.teachers(about.members, None),
            facts.labels(_labels(result, about.job)),
            facts.student(run.job),
            facts.by_group(about, about.members, ARRAYS),
            Fact("Base job", settings.job, code=True),
            *facts.run(folder, about, "tune", SEARCH),
        ],
        "space": _space(settings.space),
        "select": result.select,
        "selected_on": result.selected_on,
        "select_summary": RULES[result.select].summary if result.select in RULES else "",
        "rules": _rules(result, result.worst) if result.rules else None,
        "ranked_over": _ranked_over(result),
        "winner": winner,
        "setting": winner and _setting(winner, about.job, settings.final.default),
        "over": over_seeds(tested(result.final)),
        "comparison": compared(result.final, title, name, WINNER, method="Setting"),
        "difference": gain.in_words() if gain else "",
        **students(result.final, about.members, name),
        "trials": trials.named(shown) if result.trials else None,
        "agreement": None,
        "teachers": teachers(about.members, None),
        "configuration": [
            ("The search", facts.as_yaml(about.settings)),
            ("Its base job", facts.as_yaml(about.job)),
        ],
        "versions": about.versions,
    }


def _space(domains: Mapping[str, Domain]) -> Table:
    """What a search varies."""
    begin = {
        "uniform": "real, ",
        "loguniform": "real, logarithmic, ",
        "integer": "whole, ",
        "choice": "one of ",
        "grid": "each of ",
    }

    def values(domain: Domain) -> str:
        several = domain.kind in ("choice", "grid")
        shown = map(setting_text, (domain.listed or ()) if several else domain.bounds)
        return begin[domain.kind] + (", " if several else " … ").join(shown)

    def when(path: str, domain: Domain) -> str:
        needed = conditions(path, domain, STRATEGIES).items()
        return "; ".join(f"{p} = {' or '.join(map(setting_text, v))}" for p, v in needed)

    headers = {"path": "Parameter", "values": "Values", "when": "Only where"}
    rows = [(path, values(domain), when(path, domain)) for path, domain in domains.items()]
    return Table("Search space", texts(headers, rows))


def _setting(winner: TrialResult, job: dict[str, Any], default: dict[str, Any]) -> Table:
    """The winner's setting beside the default's.

    Args:
        winner: the trial.
        job: the resolved base job.
        default: changes to it that the winner is held against.
    """

    def having(changes: dict[str, Any], path: str) -> str:
        if path in changes:
            value = changes[path]
        elif path == STRATEGY:
            value = default_strategy(job)
        else:
            value = applied(job, changes)
            for part in path.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        return setting_text(value)

    name = f"Winner, trial {winner.number}"
    headers = {"path": "Parameter", "winner": name, "default": "Default"}
    paths = dict.fromkeys([*winner.setting, *default])
    rows = [(path, having(winner.setting, path), having(default, path)) for path in paths]
    return Table("The winner's setting", texts(headers, rows))


def _named(chosen: dict[str, Any]) -> str:
    """A searcher or a scheduler, with its options."""
    options = [f"{key} {setting_text(value)}" for key, value in chosen.items() if key != "name"]
    name = str(chosen.get("name", ""))
    if name == "none":
        return "none: every trial trains to its end"
    return f"{name} ({', '.join(options)})" if options else name
