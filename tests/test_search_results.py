"""What a search comes to: the choice, rules held to the truth, the verdict; its live view."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from agrekd_ray.files import checked
from agrekd_ray.report import style
from agrekd_ray.report.search import publish_search, show, write_trials
from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.results.search import (
    DEFAULT,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WINNER,
    SearchResult,
    TrialResult,
)
from agrekd_ray.search import trial_table
from agrekd_ray.search.folder import TrialStore
from agrekd_ray.search.ranking import best, rule_reports, verdict
from agrekd_ray.search.trial_table import TrialTable


def metrics(worst: float) -> Metrics:
    return Metrics(0.5, worst, 0.5, 0.5, 0.1, 0.3, {"a": worst, "b": 0.9}, {"a": 4, "b": 4})


def trial(
    number: int, truth: float, state: str = FINISHED, epochs: int = 3, **scores: float
) -> TrialResult:
    history = [
        Epoch(epoch, 1.0, 0.1, 0.5, metrics(0.2), selection=dict(scores)) for epoch in range(epochs)
    ]
    setting = {"strategy": "agre_kd", "distillation.temperature": 1.5 + number}
    return TrialResult(number, setting, state, 3, history, 0.5 * epochs, metrics(truth))


def students(method: str, *values: float) -> list[StudentResult]:
    return [
        StudentResult(method, 100 + n, "5", {"val": metrics(value), "test": metrics(value)})
        for n, value in enumerate(values)
    ]


def test_the_choice_is_the_highest_score_then_the_longer_training_then_the_earlier() -> None:
    trials = [
        trial(0, 0.1, worst_group=0.4),
        trial(1, 0.2, STOPPED, 2, worst_group=0.6),
        trial(2, 0.3, worst_group=0.6),
        trial(3, 0.4, worst_group=0.6),
        trial(4, 0.5, FAILED, worst_group=0.9),
    ]
    chosen = best(trials, "worst_group")
    assert chosen is not None
    assert chosen.number == 2
    assert best(trials, "contradicted") is None
    assert best([], "worst_group") is None


def test_rules_are_held_to_the_truth() -> None:
    trials = [
        trial(n, truth, worst_group=truth, contradicted=1 - truth, accuracy=0.5)
        for n, truth in enumerate((0.1, 0.3, 0.2, 0.4))
    ]
    found = {rule.rule: rule for rule in rule_reports([*trials, trial(4, 0.9, FAILED, 0)])}
    assert set(found) == {"worst_group", "contradicted", "accuracy"}
    assert found["worst_group"].correlation == pytest.approx(1)
    assert found["worst_group"].choice == 3
    assert found["contradicted"].correlation == pytest.approx(-1)
    assert found["contradicted"].test_worst_group_accuracy == pytest.approx(0.1)
    assert found["accuracy"].correlation is None  # all the same
    assert {rule.trials for rule in found.values()} == {4}
    assert {rule.correlation for rule in rule_reports(trials[:2])} == {None}  # too few


@pytest.mark.parametrize(
    ("winner", "default", "says"),
    [
        ((0.5, 0.6, 0.55), (0.4, 0.45, 0.42), "is better than the default: +12.7 points"),
        ((0.4, 0.45, 0.42), (0.5, 0.6, 0.55), "is worse than the default: −12.7 points"),
        ((0.5, 0.4, 0.45), (0.4, 0.5, 0.45), "not shown to differ from the default: +0.0"),
        ((0.5,), (0.4,), "no interval"),
    ],
)
def test_the_verdict_is_honest(
    winner: tuple[float, ...], default: tuple[float, ...], says: str
) -> None:
    text = verdict([*students(WINNER, *winner), *students(DEFAULT, *default)], "worst_group")
    assert says in text
    assert "worst_group" in text
    assert "one draw of data and teachers" in text


def test_there_is_no_verdict_without_students() -> None:
    assert verdict([], "worst_group") == ""


def test_a_winner_that_is_the_default_has_no_interval() -> None:
    text = verdict(students(WINNER, 0.5, 0.6), "worst_group")
    assert text == (
        "The winner (worst_group) is the default setting: trained once, with 2 fresh seeds."
    )


def test_ranks_are_of_trials_that_ran_equally_long() -> None:
    """Three that were stopped are worse on test than all others, and their scores are higher."""
    longest = [trial(n, 0.5 + 0.1 * n, worst_group=0.5 + 0.1 * n) for n in range(3)]
    stopped = [trial(n, 0.1, STOPPED, 1, worst_group=0.9 + 0.01 * n) for n in range(3, 6)]
    (rule,) = rule_reports([*longest, *stopped])
    assert (rule.correlation, rule.trials, rule.epochs) == (pytest.approx(1), 3, 3)
    assert rule.choice == 5  # what the search would have chosen, whenever it was stopped
    result = SearchResult("s", "/x", "worst_group", 5, [*longest, *stopped], [rule])
    screen = io.StringIO()
    show(result, Console(file=screen, width=120))
    assert "test WGA over 3 of 6 trials, those of 3 epochs" in screen.getvalue()
    # Where too few came to the end, those that came furthest together.
    (rule,) = rule_reports([*longest[:2], *stopped])
    assert (rule.trials, rule.epochs) == (3, 1)


@pytest.mark.parametrize("width", [70, 80, 100])
def test_no_word_of_a_setting_is_broken(width: int) -> None:
    paths = ("distillation.temperature", "student.training.learning_rate")
    setting = dict.fromkeys(paths, 0.123456) | {"distillation.agre_kd.fallback": "biased_alone"}
    trials = [
        replace(trial(n, 0.1 * n, worst_voted_class=0.1 * n), setting=setting) for n in range(4)
    ]
    result = SearchResult("s", "/x", "worst_voted_class", 3, trials, rule_reports(trials))
    screen = io.StringIO()
    show(result, Console(file=screen, width=width))
    table, _, winner = screen.getvalue().partition("winner ")
    for word in winner.partition(": ")[2].replace(",", "").split():
        assert word in table
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= width


def test_a_journal_outlives_its_driver(tmp_path: Path) -> None:
    journal = TrialStore(tmp_path)
    for number, name in enumerate("abc"):
        journal.put(name, trial(number, 0.1 * number, worst_group=0.3))
    again = TrialStore(tmp_path)
    assert again.all() == journal.all()
    assert (again.number(1), again.number(7)) == (3, 7)
    again.forget({"a"})
    assert list(TrialStore(tmp_path).all()) == ["b", "c"]


def test_a_result_survives_its_file() -> None:
    trials = [trial(0, 0.4, worst_group=0.5), replace(trial(1, 0.1), test=None, reason="diverged")]
    result = SearchResult(
        "s", "/x", "worst_group", 0, trials, rule_reports(trials), students(WINNER, 0.5), "so"
    )
    assert checked(SearchResult, json.loads(json.dumps(asdict(result)))) == result


@pytest.mark.parametrize("width", [80, 118])
def test_the_live_table_cuts_settings_and_nothing_else(width: int) -> None:
    trials = [
        trial(0, 0.1, worst_group=0.4),
        trial(1, 0.2, STOPPED, 2, worst_group=0.6),
        trial(2, 0.2, RUNNING, 1, worst_group=0.3),
    ]
    long = {f"student.training.parameter_{n}": 0.123456 for n in range(9)}
    trials = [replace(one, setting={**one.setting, **long}) for one in trials]
    screen = io.StringIO()
    console = Console(file=screen, width=width, height=20, force_terminal=True, color_system=None)
    with TrialTable(console, "worst_group", 8, 2, None) as table:
        table.show(trials, trials[1])
    text = screen.getvalue()
    for shown in ("trial-000", "trial-002", "stopped early", "running", "3/3", "60.0", "2/8"):
        assert shown in text
    assert "…" in text
    assert max(len(line) for line in text.splitlines() if "trial-0" in line) <= width + 20


def test_without_a_terminal_there_are_quiet_lines() -> None:
    screen = io.StringIO()
    over = trial(0, 0.1, worst_group=0.4)
    with TrialTable(Console(file=screen, width=100), "worst_group", 1, 2, None) as table:
        table.show([replace(over, state=RUNNING)])
        table.show([over], over)
    assert screen.getvalue().startswith("[00:00] trials   processes are starting\n")
    assert "trials   1/1" in screen.getvalue()
    assert "trial-000 finished, worst_group 40.0" in screen.getvalue()


def test_the_time_that_is_left_is_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the trials had ended before: four that are left take twice as long as these two."""
    now = 100.0
    monkeypatch.setattr(trial_table.time, "monotonic", lambda: now)
    screen = io.StringIO()
    earlier = [trial(n, 0.1, worst_group=0.3) for n in range(6)]
    with TrialTable(Console(file=screen, width=200), "worst_group", 12, 2, None) as shown:
        for number in (6, 7):
            shown.show([*earlier, replace(trial(number, 0.1), state=RUNNING)])
            now += 30
            earlier.append(trial(number, 0.1, worst_group=0.3))
            shown.show(earlier, earlier[-1])
    assert "trials   8/12 · about 02:00 left" in screen.getvalue()


@pytest.mark.parametrize("score", [0.1, 0.5, 0.9])
def test_the_best_so_far_is_of_trials_that_have_ended_and_never_falls(score: float) -> None:
    screen = io.StringIO()
    ended = [trial(n, 0.1, worst_group=0.3 + 0.1 * n) for n in range(2)]
    under_way = replace(trial(2, 0.1, worst_group=score), state=RUNNING)
    with TrialTable(Console(file=screen, width=200), "worst_group", 2, 2, None) as table:
        table.show([*ended, under_way], ended[1])
    assert "best that has ended trial-001 40.0" in screen.getvalue()


def test_a_verdict_over_some_groups_says_so() -> None:
    final = [*students(WINNER, 0.5, 0.6), *students(DEFAULT, 0.4, 0.45)]
    some = [
        replace(o, splits={s: replace(m, coverage={"groups": (2, 4)}) for s, m in o.splits.items()})
        for o in final
    ]
    text = verdict(some, "worst_group over 2 of 4 groups")
    assert "points of accuracy of the worst of 2 of 4 groups on the test split" in text
    assert "chosen by worst_group over 2 of 4 groups" in text
    assert "points of worst-group accuracy" in verdict(final, "worst_group")


def test_the_trials_file_says_over_what_they_are_measured(tmp_path: Path) -> None:
    some = trial(0, 0.4)
    some = replace(some, test=replace(metrics(0.4), coverage={"groups": (2, 4)}))
    write_trials(tmp_path / "trials.csv", [some, trial(1, 0.5)])
    rows = list(csv.DictReader((tmp_path / "trials.csv").open(newline="")))
    assert [row["test/measured_over"] for row in rows] == ["2 of 4 groups", ""]
    write_trials(tmp_path / "trials.csv", [trial(1, 0.5)])
    assert "measured_over" not in (tmp_path / "trials.csv").read_text()


def test_the_pictures_of_a_search_mark_what_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, str] = {}
    save = style.save

    def saved(figure: Figure, path: Path) -> None:
        texts = (text.get_text() for text in figure.findobj(Text))
        said[path.stem] = " ".join(" ".join(texts).split())
        save(figure, path)

    monkeypatch.setattr(style, "save", saved)
    # The rule's choice is the worst on test.
    trials = [
        replace(
            trial(n, 0.5 - 0.1 * n, worst_group=0.3 + 0.1 * n),
            setting={"distillation.alpha": 0.5 + 0.1 * n},
        )
        for n in range(4)
    ]
    winner = best(trials, "worst_group")
    assert winner is not None
    result = SearchResult("s", str(tmp_path), "worst_group", winner.number, trials)
    publish_search(tmp_path, result)
    for name in ("parameter_effects", "parallel_coordinates", "trial_history"):
        assert "the winner by worst_group" in said[name]
        assert "best on test" not in said[name]
        assert "accuracy (test" in said[name] or name == "trial_history"  # that is of the score


def test_what_was_searched_in_logarithms_has_a_logarithmic_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales: dict[str, str] = {}

    def saved(figure: Figure, path: Path) -> None:
        scales.update({axes.get_xlabel(): axes.get_xscale() for axes in figure.axes})

    monkeypatch.setattr(style, "save", saved)
    trials = [
        replace(
            trial(n, 0.1 * n, worst_group=0.1 * n),
            setting={"distillation.temperature": 2.0 + n, "distillation.alpha": 0.5 + 0.1 * n},
        )
        for n in range(4)
    ]
    space = {
        "distillation.temperature": {"loguniform": [1, 8], "uniform": None},
        "distillation.alpha": {"loguniform": None, "uniform": [0.5, 1]},
    }
    about = {"settings": {"space": space}}
    publish_search(tmp_path, SearchResult("s", "/x", "worst_group", 3, trials, about=about))
    assert (scales["temperature"], scales["alpha"]) == ("log", "linear")
