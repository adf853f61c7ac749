"""Runs that are really in MLflow, compared: found, grouped, paired, sorted, written and drawn."""

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.image import imread
from matplotlib.text import Text
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.commands.compare import compare
from agrekd_ray.commands.compare import points as pictures_of
from agrekd_ray.errors import RunError, TrackingError
from agrekd_ray.report import settings_plots as pictures
from agrekd_ray.report.compare import Comparison
from agrekd_ray.report.settings_plots import Point, Scale
from agrekd_ray.report.style import save
from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.results.intervals import bootstrap_interval, paired_difference
from agrekd_ray.results.metrics import metric, metric_label
from agrekd_ray.results.runs import Child, Row, baselines, difference, rows, settings
from agrekd_ray.tracking.mlflow_runs import MlflowTracker
from agrekd_ray.tracking.mlflow_values import split_metrics
from agrekd_ray.tracking.tracker import KILLED

WORST = "test/worst_group_accuracy"
AGRE, AVER = {0: 0.30, 1: 0.34, 2: 0.35}, {0: 0.20, 1: 0.21, 2: 0.22}
BASE = {
    "data.name": "colored_digits",
    "data.aligned": 0.98,
    "teachers.count": 5,
    "ensemble.size": 5,
    "seeds": [0, 1, 2],
}


def metrics(worst: float) -> Metrics:
    return Metrics(worst + 0.1, worst, 0.9, 0.4, 0.1, 0.9 - worst, {"a": 0.9, "b": worst}, {})


def outcome(method: str, seed: int, worst: float, steps: int = 60) -> StudentResult:
    epochs = [Epoch(e, 2.0, 0.1, 1.5, metrics(worst / 2), steps=steps // 2) for e in range(2)]
    return StudentResult(method, seed, "5 (2 debiased)", {"test": metrics(worst)}, epochs)


@dataclass
class Written:
    """Where the runs are, and the ids of their jobs by name."""

    folder: Path
    client: MlflowClient
    jobs: dict[str, str]
    students: dict[str, str]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    """Four jobs in one experiment, a search in another, and a run of somebody else's."""
    folder = tmp_path_factory.mktemp("compared runs")
    tracker = MlflowTracker(None, "digits", folder)
    client = MlflowClient(tracker.uri)
    found = Written(folder, client, {}, {})

    def job(name: str, students: dict[str, dict[int, float]], tau: int = 4, **changed: object):
        found.jobs[name] = tracker.start_job(name, {**BASE, "name": name, **changed}, {})
        for method, by_seed in students.items():
            for seed, worst in by_seed.items():
                taught = {"distillation.strategy": method, "distillation.temperature": tau}
                params = {"teachers": "5 (2 debiased)", "student.training.epochs": 2}
                run_id = tracker.student(method, seed, params | taught)
                found.students[f"{name} {method} {seed}"] = run_id
                result = outcome(method, seed, worst)
                tracker.log_epochs(run_id, result.history)
                tracker.finish_student(run_id, result)
        tracker.finish_job(found.jobs[name], folder, {})

    job("first", {"agre_kd": AGRE, "aver": AVER})
    # The same job with other seeds: one row with the first.
    job("more seeds", {"agre_kd": {3: 0.40}, "aver": {3: 0.30}})
    job("warmer", {"agre_kd": {0: 0.36}, "aver": {0: 0.25}}, tau=8)
    # Other data, all else equal: never one row with the first.
    job("other data", {"agre_kd": {0: 0.70}, "aver": {0: 0.75}}, **{"data.aligned": 0.9})
    client.log_metric(found.jobs["first"], "cost/teacher_steps", 1234.0)
    stopped = tracker.start_job("stopped", {**BASE, "data.aligned": 0.5}, {})
    found.students["stopped"] = tracker.student("govern", 0, {})
    tracker.fail(stopped, "interrupted", KILLED)
    found.jobs["stopped"] = stopped

    search = MlflowTracker(None, "searches", folder)
    found.jobs["search"] = search.start_job("my search", BASE, {}, role="search")
    states = ["finished", "stopped early", "finished", "failed", "finished"]
    for number, state in enumerate(states):
        params = {
            "strategy": "agre_kd" if number % 2 else "aver",
            "distillation.temperature": 1.5 * 2**number,
            "distillation.alpha": 1.0,
        }
        run_id = search.trial(f"trial-{number:03}", number, params, [0, 1])
        searched = json.dumps(["strategy", "distillation.temperature", "distillation.alpha"])
        search.set_tags(run_id, {"agrekd.state": state, "agrekd.searched": searched})
        if state != "failed":
            search.log_test(run_id, metrics(0.2 + 0.05 * number))
            search.log_final(run_id, {"cost/steps": 200.0, "select/worst_group": 0.1 * number})
        search.end(run_id, "FAILED" if state == "failed" else "FINISHED", {})
    for method, worst in (("winner", 0.5), ("default", 0.4)):
        for seed in (10, 11):
            run_id = search.student(method, seed, {"distillation.temperature": 6.0})
            search.finish_student(run_id, outcome(method, seed, worst + 0.001 * seed))
    client.create_run(tracker.experiment_id, run_name="by hand")
    return found


@pytest.fixture
def shown(written) -> Callable[..., tuple[list[Row], str]]:
    """Compares, and returns the rows and what is on the screen."""

    def show(width: int = 160, **arguments: object) -> tuple[list[Row], str]:
        console = Console(file=io.StringIO(), width=width)
        found = compare(console, runs=written.folder, **arguments)
        return found, console.file.getvalue()

    return show


def by_label(found: list[Row]) -> dict[str, Row]:
    assert len({row.label for row in found}) == len(found)
    return {row.label: row for row in found}


def test_seeds_are_one_row_and_other_data_another(shown):
    found = by_label(shown(experiments=["digits"])[0])
    first = found["AGRE-KD temperature=4 aligned=0.98"]
    assert first.seeds == [0, 1, 2, 3]
    assert first.mean(WORST) == pytest.approx((0.30 + 0.34 + 0.35 + 0.40) / 4)
    assert first.spread(WORST) == pytest.approx(stdev([*AGRE.values(), 0.40]))
    assert found["AGRE-KD temperature=8 aligned=0.98"].seeds == [0]
    assert found["AGRE-KD temperature=8 aligned=0.98"].spread(WORST) is None
    assert found["AGRE-KD temperature=4 aligned=0.9"].mean(WORST) == pytest.approx(0.70)
    assert first.mean("cost/steps") == 60
    assert len(found) == 7


def test_rows_are_sorted_by_any_metric_the_best_first(shown):
    found, _ = shown(experiments=["digits"])
    worst = [row.mean(WORST) for row in found]
    assert worst[-1] is None
    assert worst[:-1] == sorted(worst[:-1], reverse=True)
    calibrated, text = shown(experiments=["digits"], sort="test/ece")
    errors = [row.mean("test/ece") for row in calibrated[:-1]]
    assert errors == sorted(errors)
    assert "by ece" in text


def test_the_difference_is_paired_within_a_job(shown):
    found, text = shown(experiments=["digits"], baseline="aver")
    named, base = by_label(found), baselines(found, "aver")
    first = difference(named["AGRE-KD temperature=4 aligned=0.98"], base, WORST)
    assert first is not None
    assert first.seeds == 4
    assert first.mean == pytest.approx((0.10 + 0.13 + 0.13 + 0.10) / 4)
    assert 0.10 <= first.low <= first.mean <= first.high <= 0.13
    # Each job against its own: 0.70 - 0.75, not 0.70 - 0.20.
    other = difference(named["AGRE-KD temperature=4 aligned=0.9"], base, WORST)
    assert (other.mean, other.low, other.seeds) == (pytest.approx(-0.05), None, 1)
    assert difference(named["Govern"], base, WORST) is None
    assert "+11.5 (+10.0 … +13.0)" in text
    assert "too narrow" in text


def test_one_row_as_baseline_serves_jobs_with_the_same_data_only(shown):
    found, _ = shown(experiments=["digits"])
    named = by_label(found)
    base = baselines(found, "agre-kd temperature=4 aligned=0.98")
    assert base == [named["AGRE-KD temperature=4 aligned=0.98"]]
    warmer = difference(named["AGRE-KD temperature=8 aligned=0.98"], base, WORST)
    assert warmer.mean == pytest.approx(0.06)
    assert difference(named["AGRE-KD temperature=4 aligned=0.9"], base, WORST) is None
    assert difference(base[0], base, WORST) is None


def test_a_search_has_its_trials_by_number_and_setting(shown):
    found, text = shown(experiments=["searches"])
    named = by_label(found)
    best = named["trial-004 strategy=aver temperature=24"]
    assert best.seeds == [0, 1]
    assert best.spread(WORST) is None
    assert best.mean("cost/steps") == 100  # of two seeds together, 200
    assert named["trial-001 strategy=agre_kd temperature=3"].state == "stopped early"
    assert found[-1].state == "failed"
    assert "stopped early" in text
    winner = difference(named["Winner"], baselines(found, None), WORST)
    assert (winner.mean, winner.seeds) == (pytest.approx(0.1), 2)
    assert difference(best, baselines(found, None), WORST) is None
    trial = difference(best, baselines(found, "trial-000"), WORST)
    assert (trial.mean, trial.low) == (pytest.approx(0.2), None)
    assert settings([r for r in found if r.first.number is not None])[best] == {
        "strategy": "aver",
        "distillation.temperature": 24.0,
    }


def test_without_a_word_each_job_and_search_has_its_usual_baseline(shown):
    found, text = shown()
    base = baselines(found, None)
    assert {row.name for row in base} == {"Default", "AVER"}
    named = by_label(found)
    assert difference(named["Winner"], base, WORST).mean == pytest.approx(0.1)
    warmer = difference(named["AGRE-KD temperature=8 aligned=0.98"], base, WORST)
    assert warmer.mean == pytest.approx(0.11)
    assert "AVER/Default" in text
    assert baselines([named["Govern"]], None) == []


def test_runs_are_chosen_by_id_and_a_parent_means_its_children(shown, written):
    chosen, _ = shown(ids=[written.jobs["warmer"]])
    assert {row.label for row in chosen} == {"AGRE-KD", "AVER"}
    assert {child.parent for row in chosen for child in row.children} == {written.jobs["warmer"]}
    student = written.students["first agre_kd 1"]
    (single,), _ = shown(ids=[student, student])
    assert [child.run_id for child in single.children] == [student]
    both, _ = shown(ids=[written.jobs["warmer"], student], filter="params.method = 'agre_kd'")
    assert sorted(row.seeds for row in both) == [[0], [1]]


def test_a_filter_is_met_by_students_or_else_by_their_jobs(shown, written):
    found, _ = shown(filter="params.method = 'aver' and metrics.`test/accuracy` > 0.4")
    assert [child.run_id for row in found for child in row.children] == [
        written.students["other data aver 0"]
    ]
    above, _ = shown(filter="params.`data.aligned` = '0.9'")
    assert {row.first.job for row in above} == {"other data"}
    assert len(above) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"experiments": ["digit"]}, "no experiment 'digit'.*Did you mean digits?"),
        (
            {"filter": "params.method == agre"},
            "does not take the filter.*(?s:.)*Write for instance",
        ),
        ({"filter": "params.method = 'a' or params.method = 'b'"}, "does not take the filter"),
        ({"filter": "params.method = 'nobody'"}, "meets the filter.*searches, digits"),
        ({"sort": "test/worst_group_acuracy"}, "Did you mean test/worst_group_accuracy"),
        ({"metrics": ["ece"]}, "Did you mean test/ece"),
        ({"baseline": "avr"}, "No row is called 'avr'.*Did you mean aver"),
        ({"ids": ["0123456789abcdef0123456789abcdef"]}, "no run '0123456789abcdef"),
        ({"ids": ["it's"]}, 'no run "it\'s"'),
        ({"uri": "runs/mlflow.db"}, "no tracking URI"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(shown, arguments, words):
    with pytest.raises(TrackingError, match=words):
        shown(**arguments)


def test_a_mistyped_id_or_a_name_finds_the_id(shown, written):
    run_id = written.jobs["first"]
    for typed in (run_id[:8], run_id[:-1] + ("0" if run_id[-1] != "0" else "1"), "first"):
        with pytest.raises(TrackingError, match=f"Did you mean {run_id}"):
            shown(ids=[typed])


def test_runs_of_others_and_deleted_ones_are_explained(shown, written):
    (other,) = written.client.search_runs(["1"], "attributes.run_name = 'by hand'")
    with pytest.raises(TrackingError, match=r"by hand.*is no job"):
        shown(ids=[other.info.run_id])
    gone = written.client.create_run("1", run_name="gone").info.run_id
    written.client.delete_run(gone)
    with pytest.raises(TrackingError, match=f"was deleted; `mlflow runs restore --run-id {gone}`"):
        shown(ids=[gone])


@pytest.mark.parametrize("given", [True, False])
def test_a_store_that_is_missing_is_one_error_and_stays_missing(tmp_path, given):
    place = tmp_path / "nothing" / "here"
    uri = f"sqlite:///{place}/mlflow.db" if given else None
    with pytest.raises(TrackingError, match=r"mlflow\.db does not exist"):
        compare(Console(file=io.StringIO()), uri=uri, runs=place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_table_fits_and_keeps_what_matters(shown, width):
    _, text = shown(width)
    table = text[: text.index("Δ: worst group")]
    assert max(len(line) for line in table.splitlines()) <= width
    assert "…" not in table.replace(" … ", " ")  # which stands in intervals; nothing is cut
    for words in ("Run", "Worst group", "70.0", "trial-004"):
        assert words in table
    assert ("State" in table) == (width >= 120)
    assert ("No room for" in text) == ("Teachers" not in table)


def test_names_in_brackets_and_missing_values_are_printed(shown, tmp_path, written):
    _, text = shown(experiments=["digits"], filter="params.method = 'govern'")
    row = next(line for line in text.splitlines() if line.startswith("Govern"))
    assert row.count("–") >= 3
    assert "interrupted" in row


def test_csv_and_markdown_say_the_same(shown, tmp_path):
    files = {"csv": tmp_path / "deep" / "runs.csv", "markdown": tmp_path / "runs.md"}
    found, text = shown(experiments=["digits"], metrics=["train/loss"], **files)
    with files["csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == [row.label for row in found]
    line = next(x for x in lines if x["label"] == "AGRE-KD temperature=4 aligned=0.98")
    assert float(line[WORST]) == pytest.approx(0.3475)
    assert line[f"{WORST}/seeds"] == line["seeds"] == "4"
    assert float(line["difference/low"]) <= float(line["difference"]) == pytest.approx(0.115)
    assert (line["distillation.temperature"], line["data.aligned"]) == ("4", "0.98")
    assert float(line["train/loss"]) == 2
    assert float(line["cost/steps"]) == 60
    assert len(line["runs"].split()) == 4
    assert lines[-1][WORST] == ""
    page = files["markdown"].read_text()
    assert "| AGRE-KD temperature=4 aligned=0.98 | 5 (2 debiased) | 4 | 34.8 ± 4.1 |" in page
    assert "Loss" in page
    assert "1,234" in page
    assert str(files["csv"]) in text


def test_a_place_that_cannot_be_written_is_one_error(shown, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"):
        shown(csv=tmp_path / "file" / "runs.csv")


def test_plots_are_those_that_show_something(shown, tmp_path):
    shown(experiments=["searches"], plots=tmp_path / "search")
    assert {path.name for path in (tmp_path / "search").iterdir()} == {
        "worst_against_accuracy.png",
        "parameter_effects.png",
        "parallel_coordinates.png",
        "trial_history.png",
    }
    shown(filter="params.method = 'aver'", sort="test/ece", plots=tmp_path / "jobs")
    assert "trial_history.png" not in {path.name for path in (tmp_path / "jobs").iterdir()}


def test_without_groups_the_worst_class_is_compared(tmp_path):
    tracker = MlflowTracker(None, "plain", tmp_path)
    job = tracker.start_job("plain", BASE, {})
    for method, worst in (("aver", 0.3), ("agre_kd", 0.4)):
        found = replace(metrics(worst), groups_known=False, worst_class_accuracy=worst)
        run_id = tracker.student(method, 0, {})
        result = replace(outcome(method, 0, worst), splits={"test": found}, history=[])
        tracker.finish_student(run_id, result)
    tracker.finish_job(job, tmp_path, {})
    console = Console(file=io.StringIO(), width=160)
    rows = compare(console, runs=tmp_path, baseline="aver", plots=tmp_path / "plots")
    screen = console.file.getvalue()
    assert [row.name for row in rows] == ["AGRE-KD", "AVER"]
    assert rows[0].mean("test/class/a") == 0.9
    assert "Worst class" in screen
    assert "Δ: worst class minus AVER" in screen
    assert "group" not in screen.partition("written")[0].lower()
    assert (tmp_path / "plots/worst_against_accuracy.png").exists()


def test_reading_takes_a_query_a_page_and_none_a_run(shown, monkeypatch):
    asked: list[str] = []
    search = MlflowClient.search_runs

    def counted(self, places, filter_string="", *rest):
        asked.append(filter_string)
        return search(self, places, filter_string, *rest)

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    monkeypatch.setattr(MlflowClient, "get_run", None)
    monkeypatch.setattr(MlflowClient, "get_metric_history", None)
    monkeypatch.setattr("agrekd_ray.tracking.mlflow_reader._PAGE", 7)
    small, _ = shown()
    pages = len(asked)
    monkeypatch.setattr("agrekd_ray.tracking.mlflow_reader._PAGE", 1000)
    asked.clear()
    large, _ = shown()
    assert len(asked) == 2
    assert pages > 3
    assert [row.label for row in small] == [row.label for row in large]


# --- without a store -------------------------------------------------------------------------


def child(method: str = "aver", **changes: object) -> Child:
    start = Child(
        "run", "job", "job", False, "digits", method, None, (0,), "-", "finished", {}, {}, (), {}
    )
    return replace(start, **changes)


def test_a_seed_that_was_trained_again_counts_once():
    again = [child(run_id=r, parent=r, metrics={WORST: w}) for r, w in (("a", 0.2), ("b", 0.4))]
    (row,) = rows([*again, child(run_id="c", seeds=(1,), metrics={WORST: 0.6})])
    assert row.seeds == [0, 1]
    assert row.mean(WORST) == pytest.approx(0.45)
    assert row.spread(WORST) == pytest.approx(stdev([0.3, 0.6]))


def laid_out(found: list[Row]) -> str:
    return Comparison(found, "test", WORST, WORST).markdown()


def test_a_part_of_the_groups_is_named_in_the_header_or_where_rows_differ_in_the_cell():
    def measured(method: str, some: int, every: int) -> Child:
        coverage = {"groups": (some, every), "classes": (2, 2)}
        values = split_metrics("test", replace(metrics(0.25), coverage=coverage))
        return child(method, run_id=method, metrics=values)

    alike = rows([measured("aver", 2, 4), measured("agre_kd", 2, 4)])
    assert "| Worst of 2 of 4 groups |" in laid_out(alike)
    mixed = rows([measured("aver", 2, 4), measured("agre_kd", 4, 4)])
    assert "| Worst group |" in laid_out(mixed)
    assert "| 25.0 over 2 of 4 groups |" in laid_out(mixed)
    assert "| 25.0 |" in laid_out(mixed)
    assert "over" not in laid_out(rows([measured("aver", 4, 4), child("agre_kd")]))


def test_the_store_keeps_over_how_much_a_run_is_measured(tmp_path):
    tracker = MlflowTracker(None, "some", tmp_path)
    job = tracker.start_job("some", BASE, {})
    coverage = {"groups": (2, 4), "classes": (1, 2)}
    test = replace(metrics(0.5), coverage=coverage)
    result = replace(outcome("aver", 0, 0.5), splits={"test": test}, history=[])
    tracker.finish_student(tracker.student("aver", 0, {}), result)
    tracker.finish_job(job, tmp_path, {})
    console = Console(file=io.StringIO(), width=160)
    compare(console, runs=tmp_path, csv=tmp_path / "runs.csv", metrics=["test/balanced_accuracy"])
    assert "Worst of 2 of 4 groups" in console.file.getvalue()
    assert "Balanced over 1 of 2 classes" in console.file.getvalue()
    (line,) = csv.DictReader((tmp_path / "runs.csv").open(newline=""))
    assert line[f"{WORST}/measured_over"] == "2 of 4 groups"


def test_winners_of_two_searches_stay_apart_and_say_where_they_are_from():
    found = rows([child("winner", parent=p, job=p, searches=True) for p in ("one", "two")])
    assert [row.label for row in found] == ["Winner (one)", "Winner (two)"]


def test_trials_of_two_searches_say_which():
    found = rows(
        child(f"trial-{n:03}", parent=p, job=f"search {p}", searches=True, number=n)
        for p, count in (("x", 2), ("y", 1))
        for n in range(count)
    )
    assert [row.label for row in found] == [
        "trial-000 (search x)",
        "trial-001 (search x)",
        "trial-000 (search y)",
    ]


def test_ambiguous_parameters_keep_more_of_their_path():
    models = [{"student.model.name": a, "teachers.model.name": b} for a, b in ("xy", "yz")]
    found = rows(child(run_id=str(n), settings=m) for n, m in enumerate(models))
    assert [row.label for row in found] == [
        "AVER student.model.name=x teachers.model.name=y",
        "AVER student.model.name=y teachers.model.name=z",
    ]


def test_values_that_are_no_numbers_are_left_out():
    values = (math.nan, 1.7976931348623157e308, 0.5)
    (row,) = rows(child(seeds=(n,), metrics={WORST: v}) for n, v in enumerate(values))
    assert (row.mean(WORST), row.spread(WORST)) == (0.5, None)
    assert metric(WORST).text(None) == metric(WORST).text(math.nan) == "–"


def test_the_interval_of_paired_differences():
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.1]) is None
    assert bootstrap_interval([0.1, 0.1, 0.1]) == (0.1, 0.1)
    low, high = bootstrap_interval([0.1, 0.2, 0.3, 0.25])
    assert 0.1 <= low < np.mean([0.1, 0.2, 0.3, 0.25]) < high <= 0.3
    assert (low, high) == bootstrap_interval([0.1, 0.2, 0.3, 0.25])
    narrow = bootstrap_interval([0.1, 0.2, 0.3, 0.25], confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_of_many_differences_is_that_of_the_normal_distribution():
    differences = np.random.default_rng(0).normal(1.0, 2.0, 400).tolist()
    low, high = bootstrap_interval(differences)
    assert (high - low) / 2 == pytest.approx(1.96 * stdev(differences) / 20, rel=0.05)


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.5), (3, 0.75)])
def test_the_interval_is_too_narrow_for_few_seeds_as_it_says(seeds, share):
    drawn = np.random.default_rng(1).normal(0, 1, (150, seeds)).tolist()
    held = [low <= 0 <= high for low, high in map(bootstrap_interval, drawn)]
    assert np.mean(held) == pytest.approx(share, abs=0.09)


def test_only_common_seeds_are_paired():
    found = paired_difference({0: 0.3, 1: 0.5, 2: math.nan}, {1: 0.2, 2: 0.1, 3: 0.9})
    assert (found.mean, found.low, found.high, found.seeds) == (pytest.approx(0.3), None, None, 1)
    assert paired_difference({0: 0.3}, {1: 0.2}) is None


def test_metrics_have_words_and_a_better_end():
    assert metric_label(WORST) == "Worst group"
    assert metric_label("val/ece") == "ECE (val)"
    assert metric_label("test/group/a, red") == "a, red"
    assert all(metric(n).less_is_better for n in ("test/ece", "train/loss", "cost/steps"))
    assert not metric(WORST).less_is_better


def points(count: int, **changes: object) -> list[Point]:
    rng = np.random.default_rng(0)
    made = [
        Point(
            label=f"trial-{n:03} a long label of a trial with temperature={n} and more",
            number=n,
            settings={
                "distillation.temperature": float(2 ** (n % 7)),
                "strategy": ("aver", "agre_kd")[n % 2],
                **(
                    {"distillation.agre_kd.fallback": ("uniform", None)[n % 3 // 2]}
                    if n % 2
                    else {}
                ),
            },
            metrics={WORST: float(rng.uniform()), "test/accuracy": float(rng.uniform())},
            spread={WORST: 0.02},
            state=("finished", "stopped early", "running")[n % 3],
        )
        for n in range(count)
    ]
    return [replace(point, **changes) for point in made]


DRAWINGS = (
    pictures.worst_against_accuracy,
    pictures.parameter_effects,
    pictures.parallel_coordinates,
    pictures.trial_history,
)


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("count", [2, 16])
def test_every_picture_is_drawn(draw, count, tmp_path):
    made = points(count)
    made.append(replace(made[0], number=count, metrics={}, state="failed"))
    save(draw(made), tmp_path / "new" / "plot.png")
    ink = 1 - imread(tmp_path / "new" / "plot.png")[..., :3].mean(axis=2)
    assert min(ink.shape) > 300
    assert (ink > 0.05).mean() > 0.005


@pytest.mark.parametrize("draw", DRAWINGS)
def test_nothing_to_draw_is_no_picture(draw):
    assert draw([]) is None
    assert draw(points(3, metrics={WORST: math.nan})) is None


def test_one_value_only_has_no_effect_to_draw(tmp_path):
    same = points(4, settings={"distillation.temperature": 4})
    assert pictures.parameter_effects(same) is None
    assert pictures.parallel_coordinates(same) is None
    equal = points(4, metrics={WORST: 0.5, "test/accuracy": 0.5})
    for draw in DRAWINGS:
        save(draw(equal), tmp_path / "plot.png")


@pytest.mark.parametrize("near", [0.005, 0.02, 0.2])
def test_every_point_that_is_named_has_its_label_and_none_covers_another(near):
    at = 0.4 + near * np.random.default_rng(0).normal(size=(11, 2))
    found = [
        Point(f"Method {n}", None, {}, {WORST: worst, "test/accuracy": accuracy}, {WORST: 0.02})
        for n, (worst, accuracy) in enumerate(at)
    ]
    figure = pictures.worst_against_accuracy(found)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {point.label for point in found}
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
    points = axes.transData.transform([(100 * accuracy, 100 * worst) for worst, accuracy in at])
    for n, words in enumerate(boxes):
        assert words.count_overlaps(boxes[n + 1 :]) == 0
        assert not any(words.contains(*point) for point in points)


def test_values_over_more_than_a_decade_have_a_logarithmic_axis():
    assert Scale([0.001, 0.1]).log
    assert not Scale([1, 2, 10]).log
    assert not Scale([0, 100]).log
    assert Scale([0.001, 0.1]).height(0.01) == pytest.approx(0.5)
    assert Scale(["uniform", None, True, 2]).categories == ["2", "null", "true", "uniform"]


def stands_out(figure) -> tuple[list[float], str]:
    """Heights of the orange points and widest lines of a figure, and all that it says."""
    heights = []
    for axes in figure.axes:
        for found in axes.collections:
            if isinstance(found, PathCollection) and len(found.get_offsets()) == 1:
                edges = found.get_edgecolors()
                if len(edges) and to_hex(edges[0]) == pictures.ORANGE:
                    heights.append(found.get_offsets()[0][1])
            widths = np.asarray(found.get_linewidths())
            if isinstance(found, LineCollection) and max(widths) == 2.8:
                heights += [path[-1][1] for path in np.array(found.get_segments())[widths == 2.8]]
    texts = [found.get_text() for found in figure.findobj(Text)]
    return heights, " ".join(" ".join(texts).split())


@pytest.mark.parametrize("draw", DRAWINGS[1:])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_who_was_chosen_stands_out_whoever_is_best_on_test(draw, place):
    made = points(5, state="finished")
    made = [
        replace(point, metrics={WORST: accuracy})
        for point, accuracy in zip(made, (0.3, 0.9, 0.4, 0.5, 0.6), strict=True)
    ]
    made[place] = replace(made[place], chosen="the winner by worst_class")
    heights, said = stands_out(draw(made))
    height = made[place].value(WORST)
    if draw is pictures.parallel_coordinates:
        height = (height - 30) / 60
    assert heights
    assert heights == pytest.approx([height] * len(heights))
    assert "the winner by worst_class" in said
    assert draw is pictures.trial_history or "best on test" not in said
    made[place] = replace(made[place], metrics={})
    heights, said = stands_out(draw(made))
    assert not heights  # it has nothing to be drawn by, and no other takes its place
    assert "the winner" not in said


@pytest.mark.parametrize("draw", DRAWINGS[1:])
@pytest.mark.parametrize(
    ("metric", "words"),
    [(WORST, "best on test"), ("val/worst_group_accuracy", "best on validation")],
)
def test_without_a_choice_it_is_said_what_is_best_by(draw, metric, words):
    made = [replace(point, metrics={metric: point.metrics[WORST]}) for point in points(5)]
    heights, said = stands_out(draw(made, metric))
    assert heights
    assert words in said


@pytest.mark.parametrize("baseline", ["aver", "teacher_vote"])
def test_what_has_no_seeds_is_held_against_every_seed_of_its_job(baseline):
    def run(parent: str, method: str, seed: int, worst: float) -> Child:
        metrics = {WORST: worst}
        return child(method, parent=parent, seeds=(seed,), metrics=metrics, world={"data": parent})

    found = rows(
        [
            *(run("one", "aver", n, worst) for n, worst in enumerate((0.2, 0.3, 0.7))),
            run("one", "teacher_vote", 0, 0.5),
            run("other", "aver", 0, 0.9),
            run("other", "teacher_vote", 0, 0.1),
        ]
    )
    base = baselines(found, baseline)
    one = next(r for r in found if r not in base and r.first.parent == "one")
    apart = difference(one, base, WORST)
    sign = 1 if baseline == "aver" else -1
    assert apart is not None
    assert apart.mean == pytest.approx(sign * (0.5 - 0.4))
    assert apart.seeds == 3
    other = next(r for r in found if r not in base and r.first.parent == "other")
    assert difference(other, base, WORST).mean == pytest.approx(sign * (0.1 - 0.9))
    text = Comparison(found, "test", WORST, WORST, baseline=base).markdown()
    assert "Teachers, vote has no seeds: Δ holds it against every seed" in text


def test_a_setting_that_only_one_run_has_is_shown():
    wide = child(run_id="b", settings={"student.model.args.width": "4"})
    found = rows([child(run_id="a"), wide])
    assert [row.label for row in found] == ["AVER", "AVER width=4"]
    drawn = pictures_of(found, [WORST])
    assert [point.settings["student.model.args.width"] for point in drawn] == ["–", 4]
    ours = child("agre_kd", settings={"distillation.agre_kd.normalize": "false"})
    own = settings(rows([child(), ours]))
    assert list(own.values()) == [{}, {"distillation.agre_kd.normalize": False}]
    assert [row.label for row in own] == ["AVER", "AGRE-KD"]


def test_where_things_lie_and_who_computes_is_no_setting(tmp_path):
    tracker = MlflowTracker(None, "places", tmp_path)
    for seed, place in enumerate("ab"):
        where = {"teachers.store": place, "data.prepared": place, "teachers.cpus": seed}
        tracker.start_job(place, {**BASE, **where}, {})
        tracker.finish_student(tracker.student("aver", seed, {}), outcome("aver", seed, 0.5))
    (row,) = compare(Console(file=io.StringIO()), runs=tmp_path)
    assert (row.label, row.seeds) == ("AVER", [0, 1])


def test_a_seed_and_a_name_say_whose_they_are():
    worlds = [{"data.seed": "0", "data.name": "x"}, {"data.seed": "1", "data.name": "y"}]
    found = rows(child(run_id=str(n), world=world) for n, world in enumerate(worlds))
    assert [row.label for row in found] == [
        "AVER data.seed=0 data.name=x",
        "AVER data.seed=1 data.name=y",
    ]


def test_of_many_settings_a_label_has_those_that_tell_rows_apart():
    def run(model: str, epochs: int, power: int) -> Child:
        follows = {"data.name": model, "student.model.args.width": f"{epochs}0"}
        named = {"student.training.epochs": str(epochs), "distillation.mine.power": str(power)}
        named |= {"student.model.name": model, "teachers.model.name": model}
        return child(run_id=f"{model}{epochs}{power}", settings={**named, **follows})

    found = rows([run("cnn", 5, 1), run("vit", 5, 2), run("vit", 6, 2), run("vit", 5, 3)])
    labels = [row.label for row in found]
    assert labels == [
        "AVER epochs=5 power=1 model.name=cnn",
        "AVER epochs=5 power=2 model.name=vit",
        "AVER epochs=6 power=2 model.name=vit",
        "AVER epochs=5 power=3 model.name=vit",
    ]
    assert "a CSV file (--csv) has all settings that vary" in laid_out(found)


def test_a_difference_says_its_seeds_where_others_are_shown():
    def run(method: str, seed: int, worst: float) -> Child:
        measured = {WORST: worst} if worst else {}
        return child(method, run_id=f"{method}{seed}", seeds=(seed,), metrics=measured)

    found = rows(
        [
            *(run("aver", seed, 0.2) for seed in range(3)),
            *(run("agre_kd", seed, 0.3) for seed in (1, 2, 3)),
            *(run("govern", seed, 0.4 * (seed < 2)) for seed in range(3)),
            *(run("ae_kd", seed, 0.3) for seed in range(3)),
        ]
    )
    text = Comparison(found, "test", WORST, WORST, baseline=baselines(found, None)).markdown()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "| +10.0 (+10.0 … +10.0, 2 seeds) |" in lines["AGRE-KD"]
    assert "| 2 of 3 |" in lines["Govern"]
    assert "| +20.0 (+20.0 … +20.0, 2 seeds) |" in lines["Govern"]
    assert "| +10.0 (+10.0 … +10.0) |" in lines["AE-KD"]
    assert "one draw of data and teachers" in text


def test_trials_stand_apart_from_students(shown, tmp_path):
    _, text = shown(csv=tmp_path / "runs.csv", plots=tmp_path / "plots")
    students, trials = text.split("5 trials")
    assert "AGRE-KD temperature=4" in students
    assert "trial-00" not in students
    assert "trial-004" in trials
    assert "AGRE-KD temperature=4" not in trials
    lines = csv.DictReader((tmp_path / "runs.csv").open(newline=""))
    kinds = {(line["kind"], line["label"].startswith("trial-")) for line in lines}
    assert kinds == {("student", False), ("trial", True)}
    drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert {"worst_against_accuracy", "worst_against_accuracy_of_students"} <= drawn


def test_a_trial_is_no_pair_of_a_student():
    trial = child("trial-000", run_id="t", number=0, metrics={WORST: 0.5})
    found = rows([child(metrics={WORST: 0.2}), trial])
    base = baselines(found, "aver")
    assert difference(next(row for row in found if row not in base), base, WORST) is None


def test_labels_in_pictures_break_between_words():
    long = "AVER teachers.training.learning_rate=0.1 student.training.batch_size=50 data.seed=1"
    several = [
        Point(f"{long}{n}", None, {}, {WORST: 0.1 * n, "test/accuracy": 0.1 * n}) for n in (1, 2)
    ]
    (axes,) = pictures.worst_against_accuracy(several).axes
    lines = axes.texts[0].get_text().splitlines()
    assert lines == [
        "AVER teachers.training.",
        "learning_rate=0.1 and 2",
        "more",
    ]


def test_pictures_of_a_comparison_are_vectors_where_asked_and_say_their_seeds(shown, tmp_path):
    shown(experiments=["searches"], plots=tmp_path, formats=["svg"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg"}
    made = [
        replace(p, number=None, method=method)
        for p, method in zip(points(3, state="finished"), ("aver", "mine", "agre_kd"), strict=True)
    ]
    note = "digits; 3 seeds a row"
    figure = pictures.worst_against_accuracy(made, note=note)
    faces = {
        to_hex(found.get_facecolors()[0])
        for found in figure.axes[0].collections
        if isinstance(found, PathCollection)
    }
    assert len(faces) == 3
    said = " ".join(text.get_text() for text in figure.findobj(Text))
    assert note in said
    assert all(words in said for words in ("AVER", "mine", "AGRE-KD"))
    long = [
        replace(p, settings={**p.settings, "method": f"Deep ensemble ({n})"})
        for n, p in enumerate(points(3, state="finished"))
    ]
    for picture in (pictures.parameter_effects, pictures.parallel_coordinates):
        figure = picture(long, note=note)
        said = [text.get_text() for text in figure.findobj(Text)]
        assert note in said
        # Broken between words, not cut within one; where it is slanted, in one line.
        assert {"Deep ensemble\n(2)", "Deep ensemble (2)"} & set(said)
    crowd = pictures.worst_against_accuracy(points(16))
    assert "named: 12 of 16" in " ".join(text.get_text() for text in crowd.findobj(Text))
