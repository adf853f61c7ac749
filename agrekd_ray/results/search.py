"""What a search leaves behind: plain records that tables, plots and tracking read.

As `agrekd_ray.results`, they turn into JSON and back without loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agrekd_ray.files import checked
from agrekd_ray.results.metrics import part_measured, setting_text
from agrekd_ray.results.records import Cost, Epoch, Metrics, Number, StudentResult

STRATEGY = "strategy"
"""The one path that is no key of a job: the weighting, of which a trial has one."""
WINNER, DEFAULT = "winner", "default"
"""Methods of the students trained after a search: its winner, and the base job's setting."""
FINISHED, STOPPED, FAILED, RUNNING = "finished", "stopped early", "failed", "running"
"""States of a trial; `running` is also what was under way when a search was interrupted."""


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Attributes:
        number: of the trial, from 0.
        setting: value by dotted path, of what the search varies and the trial has. `strategy` is
            the weighting; all others are keys of the job.
        state: `finished`, `stopped early`, `failed` or `running`.
        epochs: that it was to train.
        history: a record an epoch, means over the seeds; `selection` has the score by rule.
        seconds: of its epochs.
        test: metrics on the test split of its last epoch's students, means over the seeds; measured
            after the search, None before.
        reason: why it failed.
    """

    number: int
    setting: dict[str, Any]
    state: str
    epochs: int
    history: list[Epoch] = field(default_factory=list)
    seconds: Number = 0.0
    test: Metrics | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """`trial-007`."""
        return f"trial-{self.number:03}"

    @property
    def test_worst(self) -> float | None:
        """Worst-group accuracy on the test split; None before it was measured."""
        return self.test.worst_group_accuracy if self.test else None

    def score(self, rule: str) -> float | None:
        """The last epoch's score by a selection rule; None before the first epoch."""
        return self.history[-1].selection.get(rule) if self.history else None


@dataclass(frozen=True)
class RuleReport:
    """How well a selection rule would have served.

    Attributes:
        rule: its name.
        needs: what it must know of the samples: `groups`, `labels`, `teachers`.
        correlation: Spearman's rank correlation over the trials between its score and worst-group
            accuracy on the test split; None where there is none (fewer than three trials, or all
            the same).
        trials: that it was computed over, which all ran equally long.
        choice: number of the trial that it chooses.
        test_worst_group_accuracy: of that trial.
        epochs: that the trials ran which the correlation is over; 0 in results of before, whose
            trials may have run for different numbers.
    """

    rule: str
    needs: tuple[str, ...]
    correlation: float | None
    trials: int
    choice: int
    test_worst_group_accuracy: Number
    epochs: int = 0


@dataclass(frozen=True)
class SearchResult:
    """A search, as `results.json` holds it.

    Attributes:
        name: of the search.
        folder: where it is.
        select: name of the rule that chose.
        winner: number of the trial that was chosen; None where none had a score.
        trials: in the order in which they began.
        rules: how well each rule would have served; the one that chose among them.
        final: students trained after the search with fresh seeds, methods `winner` and `default`;
            `winner` alone where the winner is the default setting.
        verdict: whether the winner is better than the default, in a sentence.
        about: settings, versions, names of classes and groups, seconds, cost of the teachers.
    """

    name: str
    folder: str
    select: str
    winner: int | None
    trials: list[TrialResult]
    rules: list[RuleReport] = field(default_factory=list)
    final: list[StudentResult] = field(default_factory=list)
    verdict: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """What it took.

        Raises:
            DamagedError: `about` does not say it as it should.
        """
        return checked(Cost, self.about)

    @property
    def selected_on(self) -> str:
        """The rule that chose, with what it looked at: `worst_group over 2 of 4 groups`."""
        histories = [trial.history for trial in self.trials if trial.history]
        coverage = histories[0][-1].val.coverage if histories else {}  # all answer to the same
        part = part_measured(coverage, f"{self.select}_accuracy")
        return f"{self.select} over {part}" if part else self.select

    @property
    def tested(self) -> list[Metrics]:
        """All that was measured on the test split, by the final students first."""
        final = [outcome.splits["test"] for outcome in self.final if "test" in outcome.splits]
        return final + [trial.test for trial in self.trials if trial.test]

    @property
    def worst(self) -> str:
        """What the worst-group accuracy on the test split is of; see `Metrics.worst`."""
        return self.tested[0].worst if self.tested else "worst group"


def in_words(setting: Mapping[str, Any]) -> str:
    """A setting on one line, paths by their last part."""
    return ", ".join(
        ("" if path == STRATEGY else f"{path.rpartition('.')[2]} ") + setting_text(value)
        for path, value in setting.items()
    )
