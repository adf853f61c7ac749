"""What a search comes to: its winner, how every selection rule would have served, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agrekd_ray.core.selection import RULES
from agrekd_ray.results import StudentResult
from agrekd_ray.results.frame import difference
from agrekd_ray.results.intervals import INTERVAL, ONE_DRAW
from agrekd_ray.results.metrics import accuracy_of
from agrekd_ray.results.search import DEFAULT, FAILED, WINNER, RuleReport, TrialResult

FEWEST = 3
"""Trials without which a rank correlation says nothing."""


def best(trials: Sequence[TrialResult], rule: str) -> TrialResult | None:
    """The trial that a rule chooses: the highest score after its last epoch.

    Among equal scores the one that was trained longer, then the earlier one. A trial that was
    stopped early is a candidate like any other; one that failed is none.

    Args:
        trials: of a search.
        rule: name of the selection rule.
    """
    scored = [trial for trial in trials if trial.state != FAILED and trial.score(rule) is not None]
    return max(
        scored,
        key=lambda trial: (trial.score(rule), len(trial.history), -trial.number),
        default=None,
    )


def rule_reports(trials: Sequence[TrialResult]) -> list[RuleReport]:
    """How well every rule would have ranked the trials, by worst-group accuracy on the test split.

    A trial that was stopped early is behind one that was not, whatever its setting: ranks are of
    trials that ran equally long, the longest that `FEWEST` of them did.

    Args:
        trials: of a search, with test metrics where they have any; those without are left out.
    """
    found = []
    measured = [trial for trial in trials if trial.test is not None and trial.state != FAILED]
    lengths = Counter(len(trial.history) for trial in measured)
    enough = [epochs for epochs, count in lengths.items() if count >= FEWEST]
    epochs = max(enough or lengths, default=0)
    ranked = [trial for trial in measured if len(trial.history) == epochs]
    for name, rule in RULES.items():
        chosen = best(measured, name)
        if chosen is None or chosen.test is None:
            continue
        pairs = [
            (trial.score(name), trial.test.worst_group_accuracy)
            for trial in ranked
            if trial.test is not None and trial.score(name) is not None
        ]
        found.append(
            RuleReport(
                name,
                rule.needs,
                _correlation(pairs),
                len(pairs),
                chosen.number,
                chosen.test.worst_group_accuracy,
                epochs,
            )
        )
    return found


def verdict(final: Sequence[StudentResult], select: str) -> str:
    """Whether the winner is better than the default on the test split, in a sentence.

    Args:
        final: students of both, with the same seeds.
        select: the rule that chose the winner; see `SearchResult.selected_on`.
    """
    if final and not any(outcome.method == DEFAULT for outcome in final):
        seeds = f"{len(final)} fresh seed{'s' * (len(final) != 1)}"
        return f"The winner ({select}) is the default setting: trained once, with {seeds}."
    found = difference(final, WINNER, DEFAULT)
    if found is None:
        return ""
    worst = accuracy_of(final[0].splits["test"].worst)
    points = f"{found.points} points of {worst} on the test split"
    if found.low is None or found.high is None:
        return (
            f"The winner ({select}) is {points} from the default with one seed, {ONE_DRAW}: no "
            "interval."
        )
    interval = f"{INTERVAL} {found.interval()}"
    seeds = f"{found.seeds} fresh seeds, {ONE_DRAW}"
    if found.low > 0:
        words = "The winner is better than the default"
    elif found.high < 0:
        words = "The winner is worse than the default"
    else:
        words = "The winner is not shown to differ from the default"
    return f"{words}: {points} ({interval}, {seeds}, chosen by {select})."


def _correlation(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    scores, truths = zip(*pairs, strict=True)
    if len(pairs) < FEWEST or len(set(scores)) < 2 or len(set(truths)) < 2:
        return None
    from scipy.stats import spearmanr  # a second that few processes need

    return float(spearmanr(scores, truths).statistic)
