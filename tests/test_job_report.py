"""The comparison table, the CSV and the JSON of a job."""

import csv
import io
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from statistics import stdev

import pandas as pd
import pytest
import torch
from rich.console import Console

from agrekd_ray.core import groups
from agrekd_ray.core.registry import Registry
from agrekd_ray.files import checked
from agrekd_ray.report import job as report
from agrekd_ray.report.ensemble import agreement_metrics
from agrekd_ray.results import (
    Agreement,
    Diagnostics,
    Epoch,
    Metrics,
    Span,
    SplitAgreement,
    StudentResult,
    TeacherCost,
    TeacherResult,
)
from agrekd_ray.results.frame import COLUMNS, difference, frame
from agrekd_ray.results.metrics import is_distilled, label, metric_label
from agrekd_ray.tracking.mlflow_values import split_metrics

METHODS = ("one_hot", "one_hot_dfr", "teacher_vote", "aver", "ae_kd", "agre_kd")
WHOLE = {"groups": (2, 2), "classes": (10, 10)}
WORST = dict(zip(METHODS, (0.20, 0.27, 0.40, 0.19, 0.21, 0.30), strict=True))


def metrics(worst: float) -> Metrics:
    return Metrics(
        accuracy=0.1 + 0.8 * worst,
        worst_group_accuracy=worst,
        weighted_accuracy=0.9,
        balanced_accuracy=0.1 + 0.7 * worst,
        worst_class_accuracy=worst / 2,
        ece=0.15,
        groups={"aligned": 0.97, "conflicting": worst},
        counts={"aligned": 100, "conflicting": 900},
    )


def outcome(method: str, seed: int, worst: float | None = None) -> StudentResult:
    worst = WORST[method] + 0.01 * seed if worst is None else worst
    history = [Epoch(0, 1.5, 0.1, 2.0, metrics(worst), {"a": {"erm-0": 1.0}})]
    return StudentResult(
        method=method,
        seed=seed,
        teachers="5 (2 debiased)" if is_distilled(method) else "-",
        splits={"val": metrics(worst + 0.02), "test": metrics(worst)},
        history=history if is_distilled(method) else [],
    )


def test_students_that_lost_teachers_are_named(job):
    assert report.degraded_lines(job) == []
    whole, hurt = outcome("aver", 0), outcome("aver", 1)
    (epoch,) = hurt.history
    hurt = replace(hurt, history=[replace(epoch, steps=9, lost_steps={"erm-0": 2})])
    (line,) = report.degraded_lines([whole, hurt])
    assert line == "AVER, seed 1: without erm-0 for 2 of 9 steps, from epoch 1"
    console = Console(record=True, width=40)
    report.render_degraded([line], console)
    assert console.export_text() == f"degraded    {line}\n"


@pytest.fixture
def job() -> list[StudentResult]:
    return [outcome(method, seed) for method in METHODS for seed in (0, 1, 2)]


@pytest.fixture
def ensemble() -> list[TeacherResult]:
    kinds = ("erm", "erm", "dfr")
    return [
        TeacherResult(f"{kind}-{n}", kind, "f", {"test": metrics(0.1 + 0.1 * n)})
        for n, kind in enumerate(kinds)
    ]


def printed(job: list[StudentResult], ensemble: list[TeacherResult], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.render(job, ensemble, console)
    return console.file.getvalue()


def test_summary_has_mean_and_sample_deviation_by_method_and_split(job):
    rows = report.summary(job)
    assert [row["method"] for row in rows if row["split"] == "test"] == list(METHODS)
    assert [row["split"] for row in rows[:2]] == ["val", "test"]
    ours = next(row for row in rows if (row["method"], row["split"]) == ("agre_kd", "test"))
    assert ours["seeds"] == [0, 1, 2]
    assert ours["mean"]["worst_group_accuracy"] == pytest.approx(0.31)
    assert ours["std"]["worst_group_accuracy"] == pytest.approx(stdev([0.30, 0.31, 0.32]))
    assert ours["mean"]["group/aligned"] == pytest.approx(0.97)


def test_everything_measured_is_a_row_of_one_tidy_table(job):
    table = frame(job, "debiased=2", draw=1)
    assert list(table.columns) == COLUMNS
    ours = table[(table["method"] == "agre_kd") & (table["seed"] == 1) & (table["split"] == "test")]
    assert set(ours["point"]) == {"debiased=2"}
    assert set(ours["draw"]) == {1}
    rows = ours.iloc[:, 4:].itertuples(index=False)
    values = {(name, group): value for _, name, group, value in rows}
    assert values["worst_group_accuracy", ""] == pytest.approx(0.31)
    assert values["accuracy", "group/conflicting"] == pytest.approx(0.31)
    assert values["accuracy", "group/aligned"] == 0.97


def test_a_new_measure_by_group_is_one_function(job, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "MEASURES", Registry("metric"))

    @groups.metric("Confidence")
    def confidence(probabilities_nC, labels_n):
        return probabilities_nC.amax(1).mean()

    probabilities_NC = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels_N, groups_N = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    measured = Metrics(
        **groups.group_metrics(probabilities_NC, labels_N, groups_N, ("a", "b"), (0.5, 0.5))
    )
    measured_job = [replace(o, splits={"test": measured}) for o in job]
    values = report.summary(measured_job)[0]["mean"]
    assert values["confidence/group/a"] == pytest.approx(0.85)
    assert split_metrics("test", measured)["test/confidence/group/b"] == pytest.approx(0.6)
    assert metric_label("test/confidence/group/b") == "Confidence, b"
    report.write_csv(measured_job, tmp_path / "results.csv")
    row = next(csv.DictReader((tmp_path / "results.csv").open(newline="")))
    assert json.loads(row["confidence_by_group"]) == pytest.approx({"a": 0.85, "b": 0.6})
    table = report.compared(measured_job, method="Method")
    assert [head for head, _ in table.heads] == ["Accuracy by group", "Confidence by group"]
    assert table.columns[-1].cells[0].text == "60.0"
    assert (
        checked(StudentResult, json.loads(json.dumps(asdict(measured_job[0])))) == measured_job[0]
    )


def test_one_seed_has_no_deviation(job, ensemble):
    single = [o for o in job if o.seed == 0]
    assert all(set(row["std"].values()) == {0.0} for row in report.summary(single))
    text = printed(single, ensemble, 80)
    assert "one seed" in text
    assert "±" not in text


def test_a_value_that_is_not_a_number_does_not_break_a_report(job, ensemble, tmp_path):
    bad = [replace(o, splits={"test": metrics(math.nan)}) for o in job[:2]] + job[3:]
    assert "–" in printed(bad, ensemble, 140)
    report.write_json(tmp_path / "results.json", bad, ensemble, None, {})
    first = json.loads((tmp_path / "results.json").read_text())["outcomes"][0]
    assert first["splits"]["test"]["worst_group_accuracy"] is None


def test_the_table_keeps_the_order_and_the_difference_to_aver(job, ensemble):
    text = printed(job, ensemble, 140)
    places = [text.index(f"\n{label(method)} ") for method in METHODS]
    assert places == sorted(places)
    assert "mean ± sd over 3 seeds, one draw of data and teachers" in " ".join(text.split())
    assert "2 biased (ERM) 10.0 … 20.0, 1 debiased (DFR) 30.0" in text
    assert (
        "AGRE-KD against AVER, worst group by seed: +11.0 points "
        "(95 % bootstrap interval +11.0 … +11.0, 3 seeds)" in text
    )


def test_a_method_with_one_seed_keeps_its_place_among_others(job, ensemble):
    lines = printed([*job[:3], outcome("teacher_vote", 0)], ensemble, 80).splitlines()
    trained, voted = (next(x for x in lines if x.startswith(n)) for n in ("One-hot", "Teachers,"))
    assert trained.index("21.0") == voted.index("40.0")


def test_no_line_of_a_difference_without_both_methods(job, ensemble):
    assert "against" not in printed([o for o in job if o.method != "aver"], ensemble, 100)


def test_the_difference_is_paired_by_common_seeds_only():
    students = [outcome("aver", 0, 0.2), outcome("aver", 1, 0.3), outcome("aver", 2, 0.0)]
    students += [outcome("agre_kd", 1, 0.5), outcome("agre_kd", 0, 0.3)]
    found = difference(students, "agre_kd", "aver")
    assert found is not None
    assert found.seeds == 2
    assert (found.mean, found.low, found.high) == pytest.approx((0.15, 0.1, 0.2))
    assert difference(students, "agre_kd", "one_hot") is None


@pytest.mark.parametrize("width", [50, 80, 100, 140])
def test_nothing_is_cut_or_wider_than_the_console(job, ensemble, width):
    text = printed(job, ensemble, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in "".join(line for line in text.splitlines() if "±" in line)
    assert "31.0 ± 1.0" in text


def test_unimportant_columns_give_way(job, ensemble):
    narrow, wide = printed(job, ensemble, 80), printed(job, ensemble, 140)
    for header in ("Method", "Teachers", "Worst group", "Accuracy"):
        assert header in narrow
    for header in ("conflicting", "Balanced", "Worst class"):
        assert header not in narrow
        assert header in wide


def test_the_best_distilled_student_is_bold(job, ensemble):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    report.render(job, ensemble, console)
    bold = [
        line for line in console.file.getvalue().splitlines() if re.search(r"\x1b\[1m *31.0", line)
    ]
    assert len(bold) == 1
    assert "AGRE-KD" in bold[0]


def test_a_job_without_students_says_so(ensemble):
    assert "No student" in printed([], ensemble, 80)
    assert report.description([], ensemble) == ""


def test_names_in_square_brackets_are_not_markup(ensemble):
    odd = replace(outcome("aver", 0), method="[bold]mine", teachers="[red]1")
    text = printed([odd], ensemble, 140)
    assert "[bold]mine" in text
    assert "[red]1" in text


def test_markdown_begins_with_the_difference(job, ensemble):
    text = report.description(job, ensemble)
    assert text.startswith("AGRE-KD against AVER")
    assert "| Method | Teachers | Worst group | Accuracy |" in text
    assert "| AGRE-KD | 5 (2 debiased) | 31.0 ± 1.0 |" in text


def test_summary_metrics_are_named_by_method(job):
    found = report.summary_metrics(job)
    assert found["test/worst_group_accuracy/agre_kd"] == pytest.approx(0.31)
    assert found["test/worst_group_accuracy_sd/agre_kd"] == pytest.approx(0.01)
    single = report.summary_metrics([outcome("aver", 0)])
    assert "test/worst_group_accuracy/aver" in single
    assert "test/worst_group_accuracy_sd/aver" not in single  # of one value there is none
    assert found["agre_kd_minus_aver/test/worst_group_accuracy"] == pytest.approx(0.11)


def test_csv_has_the_promised_header_and_a_row_for_each_split(job, tmp_path):
    path = tmp_path / "deep" / "results.csv"
    report.write_csv(job, path)
    header = "method,teachers,seed,split,accuracy,worst_group_accuracy,groups"
    assert path.read_text().splitlines()[0] == header
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(job) * 2
    assert {(r["method"], r["seed"], r["split"]) for r in rows} == {
        (o.method, str(o.seed), split) for o in job for split in ("val", "test")
    }
    row = next(r for r in rows if (r["method"], r["split"]) == ("agre_kd", "test"))
    assert row["teachers"] == "5 (2 debiased)"
    assert float(row["worst_group_accuracy"]) == pytest.approx(0.30)
    assert row["groups"] == '{"aligned":0.97,"conflicting":0.3}'


def test_json_holds_everything(job, ensemble, tmp_path):
    path = tmp_path / "results.json"
    report.write_json(path, job, ensemble, ensemble[0], {"name": "digits", "folder": tmp_path})
    content = json.loads(path.read_text())
    assert set(content) == {"job", "members", "biased", "outcomes", "summary", "diagnostics"}
    assert content["job"] == {"name": "digits", "folder": str(tmp_path)}
    assert [checked(StudentResult, o) for o in content["outcomes"]] == job
    assert content["biased"]["name"] == "erm-0"
    assert len(content["summary"]) == 2 * len(METHODS)
    assert content["diagnostics"] == {"agreement": {}, "ensemble": None}


def test_agreement_is_named_by_split_and_group():
    half = Agreement(10, 0.5, 0.1, 0.4, 0.0)
    found = Diagnostics({"test": SplitAgreement(half, {"minority": Agreement(2, 0, 0, 1.0, 0)})})
    metrics = agreement_metrics(found)
    assert metrics["agreement/test/contradicts_right"] == 0.4
    assert metrics["agreement/test/group/minority/contradicts_right"] == 1.0
    assert len(metrics) == 8


def test_a_failed_write_leaves_the_old_file_and_no_other(job, ensemble, tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    report.write_csv(job, path)
    before = path.read_text()

    def fail(table: object, path: Path, **_: object) -> None:
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="no space"):
        report.write_csv(job[:1], path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_labels_of_methods():
    assert label("deep_ensemble_dfr") == "Deep ensemble (DFR)"
    assert label("my_rule") == "my rule"
    assert is_distilled("my_rule")
    assert not is_distilled("one_hot_dfr")


def without_labels(found: Metrics) -> Metrics:
    return replace(found, groups_known=False, worst_group_accuracy=found.worst_class_accuracy)


def test_without_group_labels_it_speaks_of_the_worst_class(job, ensemble):
    classes = [
        replace(o, splits={split: without_labels(m) for split, m in o.splits.items()}) for o in job
    ]
    text = printed(classes, [], 200)
    assert "Worst class" in text
    assert text.count("Worst class") == 1
    assert "worst class by seed" in text
    assert "orst group" not in text
    assert "orst group" not in report.description(classes, [])
    assert "Worst group" in printed(job, ensemble, 200)


def test_overlapping_groups_have_columns_where_there_are_any(tmp_path, job):
    path = tmp_path / "results.csv"
    report.write_csv(job, path)
    assert "overlapping" not in path.read_text()
    further = {"overlapping": {"a": 0.5, "b": 0.25}, "worst_overlapping_group_accuracy": 0.25}
    some = [
        replace(o, splits={split: replace(m, **further) for split, m in o.splits.items()})
        for o in job
    ]
    report.write_csv(some, path)
    row = next(csv.DictReader(path.open()))
    assert row["worst_overlapping_group_accuracy"] == "0.25"
    assert json.loads(row["overlapping"]) == {"a": 0.5, "b": 0.25}
    assert "Worst overlapping" in printed(some, [], 200)
    assert checked(StudentResult, json.loads(json.dumps(asdict(some[0])))) == some[0]


def over_some(found: Metrics) -> Metrics:
    coverage = {"groups": (2, 4), "classes": (1, 2), "overlapping groups": (3, 5)}
    return replace(found, coverage=coverage, worst_overlapping_group_accuracy=0.3)


def test_what_is_over_some_groups_says_so_beside_the_figure(job, ensemble, tmp_path):
    some = [
        replace(o, splits={**o.splits, "test": over_some(o.splits["test"])})
        for o in job[3:]  # those before were measured by an earlier version
    ]
    some = [*job[:3], *some]
    text = printed(some, ensemble, 250)
    for words in (
        "Worst of 2 of 4 groups ",
        "Balanced over 1 of 2 classes ",
        "Worst of 1 of 2 classes ",
        "Worst of 3 of 5 overlapping groups ",
        "Teachers' worst of 2 of 4 groups:",
        "AGRE-KD against AVER, worst of 2 of 4 groups by seed",
    ):
        assert words in text
    assert "Worst of 2 of 4 groups" in printed(some, ensemble, 80)
    assert "| Worst of 2 of 4 groups |" in report.description(some, ensemble)
    metrics = report.summary_metrics(some)
    assert (metrics["test/groups_with_samples"], metrics["test/groups_in_all"]) == (2, 4)
    assert metrics["test/overlapping_groups_in_all"] == 5
    report.write_csv(some, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = "2 of 4 groups, 1 of 2 classes, 3 of 5 overlapping groups"
    assert {(row["split"], row["measured_over"]) for row in rows} == {
        ("val", ""),
        ("test", ""),  # nobody knows
        ("test", told),
    }


def test_nothing_is_said_where_all_groups_have_samples(job, ensemble, tmp_path):
    whole = [
        replace(o, splits={s: replace(m, coverage=WHOLE) for s, m in o.splits.items()}) for o in job
    ]
    assert printed(whole, ensemble, 200) == printed(job, ensemble, 200)
    assert report.description(whole, ensemble) == report.description(job, ensemble)
    assert report.summary_metrics(whole) == report.summary_metrics(job)
    for name, outcomes in (("whole", whole), ("old", job)):
        report.write_csv(outcomes, tmp_path / name)
    assert (tmp_path / "whole").read_text() == (tmp_path / "old").read_text()


def trained(method: str, teachers: str, replayed: int = 0, guided: float = 0.0) -> StudentResult:
    """A student of one epoch: 10 steps in 2 s."""
    epoch = Epoch(
        0, 1.0, 0.1, 2.0, metrics(0.5), steps=10, guidance_seconds=guided, replayed_steps=replayed
    )
    return StudentResult(method, 0, teachers, {"test": metrics(0.5)}, [epoch])


def test_where_the_time_of_students_and_their_guidance_went():
    students = [trained("one_hot", "-", guided=0.1), trained("aver", "3", 5, 0.5)]
    assert report.spent(students, None) == [
        ("students' steps", "20 × 200 ms = 4.0 s"),
        # A student of labels has no teachers to wait for.
        (
            "of them, guidance",
            "10 × 50 ms = 0.5 s (25% of the taught students' time; 50% replayed)",
        ),
    ]
    assert report.spent([], None) == []


def test_the_slowest_teachers_come_first_and_the_rest_together():
    forwards = {f"forward erm-{n}": Span(10, float(n)) for n in range(6)}
    effort = TeacherCost(
        spans={**forwards, "gather": Span(4, 1.0), "weigh": Span(4, 0.4)}, retries=2
    )
    lines = dict(report.spent([], effort))
    assert list(lines) == [
        "forward erm-5",
        "forward erm-4",
        "forward erm-3",
        "forward of 3 others",
        "waiting for teachers",
        "weighting",
    ]
    assert lines["forward of 3 others"] == "30 × 100 ms = 3.0 s"
    assert "(2 asked again)" in lines["waiting for teachers"]


def test_effort_adds_up():
    one = TeacherCost(1, 2, 30, 4.0, 0, {"gather": Span(1, 1.0)})
    other = TeacherCost(1, 1, 10, 1.0, 1, {"gather": Span(2, 0.5), "weigh": Span(1, 0.1)})
    assert one + other == TeacherCost(
        2, 3, 30, 5.0, 1, {"gather": Span(3, 1.5), "weigh": Span(1, 0.1)}
    )


def test_a_job_says_in_which_formats_its_pictures_are(job, ensemble, tmp_path):
    about = {"settings": {"plots": ["png", "pdf"], "data": {"name": "digits"}}}
    report.publish_job(tmp_path, job, ensemble, None, about, Diagnostics())
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"worst_group_by_method.png", "worst_group_by_method.pdf"} <= drawn
