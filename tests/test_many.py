"""What is said of very many groups or teachers is bounded: in MLflow, tables, pages and plots."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.api import load
from agrekd_ray.errors import RunError
from agrekd_ray.report import job as report
from agrekd_ray.report.archive import read_job, write_results
from agrekd_ray.report.ensemble import agreement_groups, agreement_metrics, write_csv
from agrekd_ray.report.models import compared, students
from agrekd_ray.report.page import write_report
from agrekd_ray.report.plots import agreement_by_group
from agrekd_ray.results import (
    EnsembleCheck,
    TeacherCheck,
)
from agrekd_ray.results.arrays import (
    ARRAYS,
    read_arrays,
)
from agrekd_ray.results.frame import epochs, frame, last_weights
from agrekd_ray.results.many import are_many, ends, quantiles
from agrekd_ray.results.metrics import metric, worst_metric
from agrekd_ray.tracking.mlflow_runs import MlflowTracker
from agrekd_ray.tracking.mlflow_values import ends_metrics, epoch_metrics, split_metrics

from .many import FEW, agreeing, measured, named, student, trained, written

SPLIT_SCALARS = 6
"""Numbers that a split has on all samples."""


# --- what many are ---------------------------------------------------------------------------


def test_more_than_fifty_are_many():
    assert not are_many(50, 50)
    assert are_many(51)
    assert are_many(2, 51)


def test_ends_are_the_ten_lowest_and_the_ten_highest_in_order():
    values = {str(n): float((7 * n) % 101) for n in range(101)}
    by_value = {value: name for name, value in values.items()}
    assert ends(values) == [by_value[v] for v in [*range(10), *range(91, 101)]]
    few = {str(n): -float(n) for n in range(50)}
    assert ends(few) == list(few)
    unknown = values | {"nobody": math.nan}
    assert "nobody" not in ends(unknown)


def test_quantiles_are_those_of_numpy_and_leave_out_nan():
    values = np.random.default_rng(0).random(77)
    found = quantiles([*values, math.nan])
    expected = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
    assert list(found) == ["min", "p10", "p50", "p90", "max"]
    assert list(found.values()) == expected.tolist()
    assert quantiles([math.nan]) == {}


# --- MLflow ----------------------------------------------------------------------------------


def test_an_epoch_of_few_is_logged_by_name():
    epoch = trained(0, FEW, 20)
    logged = epoch_metrics(epoch)
    assert logged["weight/class 0049/erm-19"] == epoch.weights["class 0049"]["erm-19"]
    assert logged["val/class/class 0049"] == epoch.val.groups["class 0049"]
    assert not any("/p10" in name for name in logged)
    assert len(logged) == SPLIT_SCALARS + FEW + 4 + 20 + FEW + 2 * FEW * 20


def test_an_epoch_of_many_classes_is_logged_in_a_bounded_number():
    epoch = trained(0, 1000, 20)
    logged = epoch_metrics(epoch)
    # Split, its quantiles, loss and so on, influence, quantiles of fallback, of weights by teacher.
    assert len(logged) == SPLIT_SCALARS + 5 + 4 + 20 + 5 + 2 * 5 * 20
    assert len(logged) == len(epoch_metrics(trained(3, 51, 20)))
    of_erm_3 = [shares["erm-3"] for shares in epoch.weights.values()]
    assert logged["weight/groups/p10/erm-3"] == np.quantile(of_erm_3, 0.1)
    assert logged["val/classes/p90"] == np.quantile([*epoch.val.groups.values()], 0.9)
    assert logged["val/classes/min"] == logged["val/worst_group_accuracy"]
    assert logged["fallback/groups/max"] == max(epoch.fallback_by_group.values())
    assert next(reversed(logged)) == "train/loss"


def test_an_epoch_of_many_teachers_is_logged_in_a_bounded_number():
    epoch = trained(0, 4, 1000)
    logged = epoch_metrics(epoch)
    assert len(logged) == SPLIT_SCALARS + 4 + 4 + 5 + 4 + 2 * 5 * 4
    of_group = [*epoch.weights["class 0002"].values()]
    assert logged["weight/class 0002/teachers/p50"] == np.quantile(of_group, 0.5)
    both = trained(0, 300, 300)
    logged = epoch_metrics(both)
    assert len(logged) == SPLIT_SCALARS + 5 + 4 + 5 + 5 + 2 * 5
    means = np.mean([[*shares.values()] for shares in both.weights.values()], axis=0)
    assert logged["weight/teachers/max"] == pytest.approx(means.max(), abs=1e-15)


def test_the_split_of_a_finished_student_has_its_ends_by_name():
    metrics = replace(
        measured(1000),
        by_group={"confidence": dict.fromkeys(named("class", 1000), 0.5)},
    )
    logged = split_metrics("test", metrics)
    by_name = {name: value for name, value in logged.items() if name.startswith("test/class/")}
    assert sorted(by_name.values()) == [n / 1000 for n in [*range(10), *range(990, 1000)]]
    assert len(logged) == SPLIT_SCALARS + 2 * (20 + 5)
    assert logged["test/confidence/classes/p50"] == 0.5
    few = split_metrics("test", measured(FEW))
    assert len(few) == SPLIT_SCALARS + FEW


def test_ends_by_name_are_as_many_after_any_number_of_epochs():
    assert ends_metrics(student(FEW, 20)) == []
    short, long = (ends_metrics(student(1000, 20, count)) for count in (2, 9))
    names = {name for name, _, _ in short}
    assert names == {name for name, _, _ in long}
    assert len(names) == 20 + 2 * 20 * 20
    assert len(long) == 9 * 20 + 2 * 20 * 20
    outcome = student(1000, 20, 2)
    tested = outcome.splits["test"].groups
    worst = min(tested, key=tested.__getitem__)
    curve = [(v, e) for name, v, e in short if name == f"val/class/{worst}"]
    assert curve == [(epoch.val.groups[worst], epoch.epoch) for epoch in outcome.history]
    assert (f"weight/{worst}/erm-7", outcome.history[1].weights[worst]["erm-7"], 1) in short
    many = ends_metrics(student(4, 200, 3))
    assert len(many) == 2 * 4 * 20 + 20
    assert all(epoch == 2 for _, _, epoch in many)


def test_agreement_of_many_groups_is_bounded():
    few, many = agreement_metrics(agreeing(FEW)), agreement_metrics(agreeing(1000))
    assert len(few) == 2 * 4 * (1 + FEW)
    assert len(many) == 2 * 4 * (1 + 20 + 5)
    assert many["agreement/val/group/class 0999/contradicts_right"] == 0.999
    assert many["agreement/val/groups/max/contradicts_right"] == 0.999


def test_labels_of_quantiles():
    assert metric("test/classes/p10").label == "10th percentile of classes"
    assert metric("test/classes/p10").unit == "%"
    assert metric("val/groups/p50").label == "Median of groups"
    assert metric("fallback/groups/max").unit == "%"
    assert worst_metric("val", ["val/classes/p10"]) == "val/worst_class_accuracy"
    assert worst_metric("val", ["val/groups/p10"]) == "val/worst_group_accuracy"


def test_a_student_of_a_thousand_classes_in_mlflow(tmp_path, agrekd):
    tracker = MlflowTracker(None, "many", tmp_path)
    runs = {}
    job = tracker.start_job("many", {"data.name": "many"}, {})
    outcomes = written(tmp_path / "run", 1000, 20, "agre_kd", "aver")
    for outcome in outcomes:
        runs[outcome.method] = run = tracker.student(outcome.method, 0, {"teachers": "20"})
        tracker.log_epochs(run, outcome.history)
        tracker.finish_student(run, outcome)
        tracker.finish_student(run, outcome)  # of a job that is resumed: nothing twice
    tracker.finish_job(job, tmp_path / "run", report.summary_metrics(outcomes))
    client = MlflowClient(tracker.uri)
    tested = outcomes[0].splits["test"].groups
    worst = min(tested, key=tested.__getitem__)
    curve = client.get_metric_history(runs["agre_kd"], f"val/class/{worst}")
    ends_of = client.get_metric_history(runs["agre_kd"], "train/loss")
    assert [(m.step, m.value) for m in curve] == [
        (epoch.epoch, epoch.val.groups[worst]) for epoch in outcomes[0].history
    ]
    assert [m.timestamp for m in curve] == [m.timestamp for m in ends_of]
    assert len(client.get_run(runs["agre_kd"]).data.metrics) < 1200
    kept = [file.path for file in client.list_artifacts(job, "students/agre_kd-seed-0")]
    assert kept == [f"students/agre_kd-seed-0/{ARRAYS}"]
    local = Path(client.download_artifacts(job, "", str(tmp_path)))
    assert read_job(local).outcomes == outcomes
    code, shown, _ = agrekd("compare", "--runs", tmp_path, "--metric", "test/classes/p10")
    assert code == 0
    assert "10th percentile of classes" in " ".join(shown.split())
    assert "Worst class" in shown


# --- files, tables, page ---------------------------------------------------------------------


def test_results_hold_a_matrix_once(tmp_path):
    outcomes = written(tmp_path, 300, 20, "agre_kd")
    whole = read_job(tmp_path)
    assert whole.outcomes == outcomes
    assert whole.diagnostics == agreeing(300)
    assert whole.members[3].metrics["test"] == measured(300, 3)
    own = read_arrays(tmp_path / ARRAYS)
    assert not any(name.startswith("outcomes") for name in own)
    assert own["members/metrics/test/groups"].shape == (20, 300)
    assert (tmp_path / "results.json").stat().st_size < 60_000
    run = load(tmp_path)
    assert run.table.equals(frame(outcomes))
    assert run.epochs.equals(epochs(outcomes))
    assert run.weights.equals(last_weights(epochs(outcomes)))
    assert run.weights.shape == (300, 20)


def test_results_hold_what_no_student_has_left(tmp_path):
    outcomes = written(tmp_path, 300, 4, "agre_kd")
    other = replace(outcomes[0], history=outcomes[0].history[:1])
    report.write_json(tmp_path / "results.json", [other], [], None, {"settings": {}})
    assert "outcomes/history/weights" in read_arrays(tmp_path / ARRAYS)


def test_results_of_few_have_no_array_file(tmp_path):
    outcomes = written(tmp_path, FEW, 20, "agre_kd")
    assert [*tmp_path.rglob("*.npz")] == []
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["outcomes"][0]["splits"]["test"]["groups"] == outcomes[0].splits["test"].groups
    assert f"group/{named('class', FEW)[-1]}" in content["summary"][0]["mean"]


def test_results_whose_array_file_is_gone_are_damaged(tmp_path):
    written(tmp_path, 300, 4, "agre_kd")
    (tmp_path / "students" / "agre_kd-seed-0" / ARRAYS).unlink()
    with pytest.raises(RunError, match=r"results.json: damaged \(its figures by group"):
        read_job(tmp_path)


def test_a_search_or_study_has_an_array_file_of_its_own(tmp_path):
    values = {"trials": [{"history": [asdict(trained(n, 80, 3))]} for n in range(2)]}
    write_results(tmp_path / "results.json", values)
    arrays = read_arrays(tmp_path / ARRAYS)
    assert arrays["trials/history/weights"].shape == (2, 80, 3)


def test_tables_show_the_worst_and_the_best_ten(tmp_path):
    outcomes = [student(1000, 20), student(1000, 20, method="aver")]
    table = compared(outcomes, method="Method")
    over = "Accuracy by group, 10 worst and 10 best of 1,000"
    columns = table.blocks[over]
    shown = ends(outcomes[0].splits["test"].groups)
    assert [column.header for column in columns] == shown
    assert [column.cells[0].text for column in columns][::19] == ["0.0", "99.9"]
    tables = students(outcomes, [], str)
    weights = tables["weights"]
    assert weights.size == 2 * 20
    assert [cell.text for cell in weights.columns[1].cells] == 2 * shown
    assert [cell.text for cell in weights.columns[0].cells] == ["agre_kd"] * 20 + ["aver"] * 20
    last = outcomes[0].history[-1].weights[shown[0]]
    mean = sum(last.values()) / len(last)
    assert weights.columns[2].cells[0].text == f"{mean:.3f}"
    influence = tables["influence"]
    assert [cell.text for cell in influence.columns[1].cells][:21] == ["all samples", *shown]
    few = compared([student(FEW, 20)], method="Method")
    assert len(few.blocks["Accuracy by group"]) == FEW


def test_agreement_of_many_groups_is_shown_at_its_ends():
    groups = agreement_groups(agreeing(200))
    assert groups == ["all samples", *named("class", 200)[:10], *named("class", 200)[-10:]]
    figure = agreement_by_group(agreeing(200))
    assert len(figure.axes[0].get_yticks()) == 21
    assert "20 of 200 groups" in figure.get_suptitle()
    assert len(agreement_by_group(agreeing(FEW)).axes[0].get_yticks()) == 1 + FEW


def test_a_page_of_a_thousand_classes_is_readable(tmp_path):
    written(tmp_path, 1000, 4, "agre_kd", draw=True)
    page = write_report(tmp_path).read_text()
    assert "10 worst and 10 best of 1,000 groups are shown; all are in students/*/by_group.npz" in (
        page.replace("<wbr>", "")
    )
    assert page.count("<tr") < 200
    assert page.count("<th") < 400
    assert "Agreement of the teachers with the biased model, all samples" in page


def test_csv_files_of_many_classes_are_bounded(tmp_path):
    outcome = student(1000, 2, 1)
    report.write_csv([outcome], tmp_path / "results.csv")
    table = pd.read_csv(tmp_path / "results.csv")
    groups = outcome.splits["val"].groups
    assert json.loads(table.groups[0]) == {name: round(groups[name], 6) for name in ends(groups)}
    check = TeacherCheck("erm-0", "erm", 0.5, 0.5, measured(1000).groups)
    write_csv(EnsembleCheck(9, 0.1, [check], check, 0.1, 3, 0.1), tmp_path / "teachers.csv")
    teachers = pd.read_csv(tmp_path / "teachers.csv")
    assert not any(name.startswith("class/") for name in teachers.columns)
    assert teachers.worst_class_accuracy[0] == 0.0
    assert measured(1000).groups[teachers.worst_class[0]] == 0.0


def test_the_screen_names_few_of_many(tmp_path):
    outcomes = [student(1000, 20)]
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    report.render(outcomes, [], console)
    assert all(len(line) <= 120 for line in console.export_text().splitlines())
