"""Studies: points that share what they can, and come to what each would have come to alone."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.config import Job, check_job
from agrekd_ray.config.points import points_of
from agrekd_ray.config.sweep import changes, settings_of
from agrekd_ray.experiment import study as driver
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.experiment.study import run_study
from agrekd_ray.report.page import write_report
from agrekd_ray.report.study import (
    _group_tables,
    gains_plot,
    markdown,
    show,
    study_plots,
    sweep_plot,
    verdict,
)
from agrekd_ray.report.style import draw_plots
from agrekd_ray.results import Metrics, StudentResult
from agrekd_ray.results.points import Published, in_words
from agrekd_ray.results.study import PointResult, StudyResult
from agrekd_ray.settings import Settings
from agrekd_ray.teachers import KINDS

METHODS = ["one_hot", "aver", "agre_kd"]
SWEEP = {"distillation.temperature": [2.0, 4.0]}


def test_every_combination_is_a_point_with_a_label_of_its_own() -> None:
    sweep = {
        "ensemble.debiased": [1, "all"],
        "student.model": [{"name": "torchvision/resnet18"}, {"name": "cnn", "args": {"width": 8}}],
        "teachers.model": [{"name": "cnn"}],
    }
    settings = settings_of(sweep, [0, 3])
    assert len(settings) == len({s.label for s in settings}) == len({s.folder for s in settings})
    assert len(settings) == 8
    assert settings[-1].label == (
        "debiased=all student.model=cnn width=8 teachers.model=cnn draw=3"
    )
    assert "/" not in settings[0].folder
    ensembles = [{}, {"debiased": 0}, {"size": 6, "debiased": {"dfr": 2}}]
    assert [s.label for s in settings_of({"ensemble": ensembles}, [])] == [
        "ensemble=default",
        "ensemble=debiased=0",
        "ensemble=size=6 dfr=2",
    ]
    assert in_words({"biased": None, "normalize": False}) == "normalize=false"
    assert [s.label for s in settings_of({}, [])] == ["job"]


def test_kinds_of_data_are_swept_with_what_each_knows(make_job: Callable[..., Job]) -> None:
    sweep = {"data.name": ["colored_digits", "textured_digits"], "data.aligned": [0.9]}
    job = make_job(**{"data.seed": 3, "sweep": sweep})
    resumed = Job.model_validate(job.model_dump(mode="json"))  # as a run's folder has it
    for study in (job, resumed):
        colored, textured = (point.data for _, point in points_of(study))
        assert (colored.name, textured.name) == ("colored_digits", "textured_digits")
        assert colored.severity == 4
        assert textured.size == 16
        assert [(each.seed, each.train, each.aligned) for each in (colored, textured)] == (
            [(3, 160, 0.9)] * 2
        )


def test_draws_share_no_model_and_no_split(make_job: Callable[..., Job]) -> None:
    job = make_job(draws=[0, 1, 2], sweep={"teachers.count": [3, 5]})
    points = points_of(job)
    for count in (3, 5):
        mine = [point for setting, point in points if setting.at["teachers.count"] == count]
        assert [point.data.seed for point in mine] == [0, 1, 2]
        assert [point.ensemble.seed for point in mine] == [0, 1, 2]
        assert [point.teachers.seed for point in mine] == [0, count, 2 * count]
    first = points[0][1]
    assert first == make_job(**{"teachers.count": 3})
    assert changes(points[0][0], job.model_dump(mode="json")) == {"teachers.count": 3}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sweep": {"ensemble.debiasd": [1]}}, "sweep.ensemble.debiasd = 1: unknown key"),
        ({"sweep": {"ensemble.debiased": [1, 9]}}, "sweep.ensemble.debiased = 9: more debiased"),
        ({"sweep": {"ensemble.debiased": [1, 1]}}, "without the same value twice"),
        ({"sweep": {"ensemble.debiased": 1}}, "a list of the values"),
        ({"sweep": {"ensemble.debiased": []}}, "at least 1 entry"),
        ({"sweep": {"seeds": [[1], [2]]}}, "is the same at every point"),
        ({"sweep": {"runs": ["a"]}}, "is the same at every point"),
        ({"draws": [1, 1]}, "names the same thing twice"),
        ({"draws": [-1]}, "greater than or equal to 0"),
        ({"sweep": {"data.train": [160, 10**6]}}, "sweep.data.train = 1000000"),
        (
            {"sweep": SWEEP, "published": {"source": "x", "figures": [{"at": {"alpha": 1}}]}},
            "published.figures.0.at.alpha: is no key of the sweep",
        ),
        (
            {
                "sweep": SWEEP,
                "published": {
                    "source": "x",
                    "figures": [{"at": {"distillation.temperature": 3.0}}],
                },
            },
            "is none of the swept values",
        ),
        (
            {"published": {"source": "x", "figures": [{"groups": {"a": {"agrekd": 1}}}]}},
            "published.figures.0.groups.a.agrekd: is no method. Did you mean agre_kd",
        ),
        (
            {"published": {"source": "x", "figures": [{"accuracy": {"agrekd": 1}}]}},
            "Did you mean agre_kd",
        ),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(
    make_job: Callable[..., Job], wrong: dict[str, Any], said: str
) -> None:
    job, faults = check_job({**make_job().model_dump(mode="json"), **wrong})
    assert job is None
    assert said in "\n".join(map(str, faults))


def test_faults_of_a_study_come_with_those_of_its_job(make_job: Callable[..., Job]) -> None:
    raw = make_job().model_dump(mode="json") | {
        "sweep": {
            "distillation.temprature": [1, 2],
            "student.training.epochs": [1, 0],
            "methods": [["aver"], ["agre_kd"]],
        },
        "draws": [1, 1],
        "published": {"source": "x", "figures": [{"accuracy": {"agrekd": 1}}]},
    }
    expected = {
        "sweep.methods",
        "draws",
        "published.figures.0.accuracy.agrekd",
        "sweep.distillation.temprature",
        "sweep.student.training.epochs",
    }
    assert {fault.key for fault in check_job(raw)[1]} == expected
    raw["distillation"]["alpha"] = 2
    raw["student"] = {**raw["student"], "worker": 1}
    both = {fault.key for fault in check_job(raw)[1]}
    assert both == expected | {"distillation.alpha", "student.worker"}


def study_of(make_job: Callable[..., Job], **changed: Any) -> Job:
    wanted = {"guidance": "local", "methods": METHODS, "sweep": SWEEP, "tracking.models": False}
    return make_job(**{**wanted, **changed})


def test_a_point_comes_to_what_its_job_alone_comes_to(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = study_of(make_job, draws=[0, 1])
    with (tmp_path / "screen.txt").open("w") as screen:
        result = run_study(RunFolder.create(job), Console(file=screen, width=120))
    assert [point.label for point in result.points] == [
        "temperature=2 draw=0",
        "temperature=2 draw=1",
        "temperature=4 draw=0",
        "temperature=4 draw=1",
    ]
    alone = run_job(RunFolder.create(points_of(job)[3][1]), Console(quiet=True))
    for mine, theirs in zip(result.points[3].outcomes, alone, strict=True):
        assert (mine.method, mine.splits) == (theirs.method, theirs.splits)
    folder = Path(result.folder)
    read = json.loads((folder / "results.json").read_text())
    assert len(read["figures"]) == 2 * len(METHODS)
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(METHODS) * 2
    assert {row["distillation.temperature"] for row in rows} == {"2", "4"}
    assert {row["draw"] for row in rows} == {"0", "1"}
    assert (folder / "plots" / "sweep_temperature.png").stat().st_size > 5000
    assert (folder / "plots" / "gains.png").exists()
    text = (tmp_path / "screen.txt").read_text()
    assert "temperature 2" in text
    assert "AGRE-KD against AVER" in text
    assert "2 draws" in text
    page = write_report(folder).read_text()
    for words in ("AGRE-KD − AVER", "Draws of data and teachers", "temperature 2"):
        assert words in page
    _mlflow_holds_the_study(job.runs, result)


def _mlflow_holds_the_study(runs: Path, result: StudyResult) -> None:
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    places = [e.experiment_id for e in client.search_experiments()]
    (parent,) = client.search_runs(places, "tags.`agrekd.role` = 'study'")
    assert parent.info.status == "FINISHED"
    jobs = client.search_runs(places, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["agrekd.point"] for run in jobs} == {p.label for p in result.points}
    for run in jobs:
        students = client.search_runs(places, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        assert {s.data.params["method"] for s in students} == set(METHODS)
        for student in students:
            assert student.info.status == "FINISHED"
            points = client.get_metric_history(student.info.run_id, "train/loss")
            assert sorted(point.step for point in points) == [0, 1]


def test_a_student_that_several_points_need_is_trained_once(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    handle = driver._StudyDriver.handle

    def watched(self: Any, event: Any) -> None:
        if getattr(event, "student", None) and event.student not in trained:
            trained.append(event.student)
        handle(self, event)

    monkeypatch.setattr(driver._StudyDriver, "handle", watched)
    result = run_study(RunFolder.create(study_of(make_job)), Console(quiet=True))
    assert [name.rpartition("/")[2] for name in trained] == [
        "one_hot-seed-0",
        "aver-seed-0",
        "agre_kd-seed-0",
        "aver-seed-0",
        "agre_kd-seed-0",
    ]
    first, second = (point.outcomes[0] for point in result.points)
    assert first.splits == second.splits
    for point in (Path(result.folder) / "points").iterdir():
        assert (point / "students" / "one_hot-seed-0" / "model.safetensors").is_file()


def test_an_interrupted_study_goes_on_where_it_was(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = study_of(make_job)
    folder = RunFolder.create(job)
    handle = driver._StudyDriver.handle
    told: list[str] = []

    def stopped(self: Any, event: Any) -> None:
        handle(self, event)
        if getattr(event, "student", "").endswith("agre_kd-seed-0"):
            raise KeyboardInterrupt

    monkeypatch.setattr(driver._StudyDriver, "handle", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(folder, Console(quiet=True))
    assert folder.state().status == "interrupted"

    def watched(self: Any, event: Any) -> None:
        if getattr(event, "student", None):
            told.append(f"{event.student} {event.epoch.epoch}")
        handle(self, event)

    monkeypatch.setattr(driver._StudyDriver, "handle", watched)
    result = run_study(RunFolder.open(folder.path), Console(quiet=True))
    assert [name.rpartition("/")[2] for name in told] == [
        "agre_kd-seed-0 1",
        "aver-seed-0 0",
        "aver-seed-0 1",
        "agre_kd-seed-0 0",
        "agre_kd-seed-0 1",
    ]
    _attempts_add_up_and_nothing_changes_any_more(folder, result)
    undisturbed = run_study(RunFolder.create(job), Console(quiet=True))
    assert result.effort is not None
    assert undisturbed.effort is not None
    assert undisturbed.attempts == 1
    # What was asked for the student that was stopped in mid-training is asked again, no more.
    assert result.effort.forwards >= undisturbed.effort.forwards > 0
    assert [p.outcomes for p in result.points] != []
    for mine, theirs in zip(result.points, undisturbed.points, strict=True):
        for one, other in zip(mine.outcomes, theirs.outcomes, strict=True):
            assert one.splits == other.splits


def _attempts_add_up_and_nothing_changes_any_more(folder: RunFolder, result: StudyResult) -> None:
    first, second = json.loads((folder.path / "attempts.json").read_text())
    assert result.attempts == 2
    assert result.effort is not None
    assert result.effort.forwards == first["effort"]["forwards"] + second["effort"]["forwards"]
    assert "in 2 attempts" in write_report(folder.path).read_text()
    reports = ("results.json", "results.csv", "results.md", "attempts.json")
    before = {name: (folder.path / name).read_bytes() for name in reports}
    (folder.path / "results.md").unlink()
    again = run_study(RunFolder.open(folder.path), Console(quiet=True))
    assert again.cost == result.cost
    assert {name: (folder.path / name).read_bytes() for name in reports} == before


CARRIED = ("student.model", "student.training", "ensemble", "distillation", "methods", "seeds")
SHARED = ("model", "others", "training", "count", "seed")
POOL = tuple(f"teachers.{name}" for name in (*SHARED, *KINDS))
REPORTED = ("name", "sweep", "draws", "published", "tracking", "runs")
"""Blocks of a job that points of one cohort may differ in: the rest places their students."""


def settings_within(block: Settings, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a job by its path, with its value."""
    for name in type(block).model_fields:
        value, place = getattr(block, name), f"{path}{name}"
        if isinstance(value, Settings) and place not in (*CARRIED, *POOL, *REPORTED):
            yield from settings_within(value, f"{place}.")
        else:
            yield place, value


def replaced(block: Settings, path: str, value: Any) -> Any:
    """A copy of a block with another value, unchecked."""
    name, _, rest = path.partition(".")
    inner = replaced(getattr(block, name), rest, value) if rest else value
    return block.model_copy(update={name: inner})


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_whatever_places_a_student_parts_the_points(make_job: Callable[..., Job]) -> None:
    """Every setting that no point brings along in its specs, recipes and reports."""
    job = make_job()
    paths = dict(settings_within(job))
    placing = [path for path in paths if path not in (*CARRIED, *POOL, *REPORTED)]
    student = {f"student.{path}" for path in ("workers", "cpus", "gpus", "resources", "labels")}
    others = {"teachers.gpus", "fleet.teachers", "fleet.look_ahead", "outputs.store", "guidance"}
    assert student | others <= set(placing)
    for path in placing:
        assert driver.placement(replaced(job, path, "other")) != driver.placement(job), path
    for path in (*CARRIED, *POOL, *REPORTED):
        assert path in paths, path
        assert driver.placement(replaced(job, path, "other")) == driver.placement(job), path


@pytest.mark.parametrize(
    "change",
    [
        {"student.model.args.width": 8},
        {"student.training.epochs": 3},
        {"distillation.temperature": 2},
        {"distillation.sample_weighting": {}},
        {"ensemble.debiased": 0},
        {"ensemble.seed": 1},
        {"seeds": [1]},
        {"methods": ["agre_kd"]},
        {"teachers.model.args.width": 8},
        {"teachers.training.epochs": 3},
        {"teachers.seed": 100},
        {"teachers.dfr.retrainings": 3},
    ],
)
def test_what_does_not_part_points_is_in_what_they_bring_along(
    make_job: Callable[..., Job], change: dict[str, Any]
) -> None:
    plain, other = make_plan(make_job()), make_plan(make_job(**change))
    brought = [(plan.specs, plan.recipes) for plan in (plain, other)]
    assert brought[0] != brought[1]
    assert driver.placement(make_job()) == driver.placement(make_job(**change))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("student.resources", [{}, {"fast": 1}]),
        ("student.labels", [{"zone": "a"}, {"zone": "b"}]),
        ("student.cpus", [1, 2]),
        ("teachers.cpus", [1, 2]),
        ("fleet.look_ahead", [1, 2]),
        ("fleet.cpus", [1, 2]),
    ],
)
def test_points_that_sweep_a_placement_train_apart_each_with_its_own(
    make_job: Callable[..., Job], key: str, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = study_of(make_job, methods=["one_hot"], sweep={key: values})
    opened: list[Job] = []
    start = driver.open_engine

    def watched(given: Job, handle: Any) -> Any:
        opened.append(given)
        return start(given, handle)

    monkeypatch.setattr(driver, "open_engine", watched)
    run_study(RunFolder.create(job), Console(quiet=True))
    block, _, name = key.partition(".")
    assert [getattr(getattr(given, block), name) for given in opened] == values


def test_on_ray_one_session_and_one_fleet_serve_all_points(
    ray_session: Any, make_job: Callable[..., Job]
) -> None:
    job = study_of(
        make_job,
        guidance="auto",
        methods=["aver"],
        sweep={"ensemble.debiased": [0, 1]},
        **{"student.training.epochs": 1},
    )
    result = run_study(RunFolder.create(job), Console(quiet=True))
    reference = [
        run_job(
            RunFolder.create(point.model_copy(update={"guidance": "local"})), Console(quiet=True)
        )
        for _, point in points_of(job)
    ]
    for mine, theirs in zip(result.points, reference, strict=True):
        accuracy = [o.splits["test"].accuracy for o in (*mine.outcomes, *theirs)]
        assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)


def outcome(method: str, seed: int, worst: float) -> StudentResult:
    metrics = Metrics(worst + 0.1, worst, 0.5, 0.5, 0.1, 0.2, {"a": worst}, {"a": 10})
    return StudentResult(method, seed, "5 (2 debiased)", {"test": metrics})


def made_up(draws: list[int | None], published: Published | None = None) -> StudyResult:
    """Two places; the gain over AVER is 0.1 in even draws and 0.2 in odd ones, seeds differ."""
    points = []
    for share in (1, 2):
        for draw in draws:
            gain = 0.1 + 0.1 * ((draw or 0) % 2)
            outcomes = [outcome("aver", seed, 0.2 + 0.01 * seed) for seed in (0, 1)]
            outcomes += [outcome("agre_kd", seed, 0.2 + 0.01 * seed + gain) for seed in (0, 1)]
            points.append(
                PointResult(f"{share}-{draw}", {"ensemble.debiased": share}, draw, outcomes)
            )
    sweep = {"ensemble.debiased": [1, 2]}
    return StudyResult("made_up", "folder", sweep, ["aver", "agre_kd"], published, points)


def test_gains_are_paired_by_draw_and_by_seed_where_there_is_one_draw() -> None:
    by_draw = made_up([0, 1, 2, 3])
    gain = by_draw.gain({"ensemble.debiased": 1}, "aver")
    assert gain is not None
    assert gain.difference.seeds == 4
    assert gain.difference.mean == pytest.approx(0.15)
    assert gain.by_draw == pytest.approx([0.1, 0.2, 0.1, 0.2])
    by_seed = made_up([None]).gain({"ensemble.debiased": 2}, "aver")
    assert by_seed is not None
    assert by_seed.by_draw == pytest.approx([0.1, 0.1])
    row = by_draw.row({"ensemble.debiased": 1}, "agre_kd")
    assert row is not None
    figure = row["worst_group_accuracy"]
    assert figure.count == 8
    assert figure.mean == pytest.approx(0.355)


def test_a_verdict_and_its_pictures_say_what_they_are_over() -> None:
    assert verdict(made_up([0, 1])).endswith("; over 2 draws of data and teachers.")
    by_seed = made_up([None])
    assert verdict(by_seed).endswith("; over 2 seeds, one draw of data and teachers.")
    assert by_seed.heading().endswith("mean ± sd over 2 seeds, one draw of data and teachers")
    figure = gains_plot(by_seed)
    assert figure is not None
    words = " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())
    assert "test split" in words
    assert "over 2 seeds, one draw of data and teachers" in words


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    published = Published.model_validate(
        {
            "source": "Paper, Figure 3",
            "figures": [
                {"at": {"ensemble.debiased": 2}, "worst_group_accuracy": {"agre_kd": 59.9}}
            ],
        }
    )
    result = made_up([0, 1], published)
    assert "35.5 ± 5.8 [59.9]" in markdown(result)
    assert markdown(result).count("[59.9]") == 1
    with (tmp_path / "screen").open("w") as screen:
        show(result, Console(file=screen, width=100))
    assert "[59.9]" in (tmp_path / "screen").read_text()
    assert "Paper, Figure 3" in (tmp_path / "screen").read_text()
    drawn = draw_plots(tmp_path, study_plots(result))
    assert [path.name for path in drawn] == ["sweep_debiased.png", "gains.png"]
    assert result.metrics()["debiased=1/agre_kd_minus_aver/test/worst_group_accuracy"] == (
        pytest.approx(0.15)
    )


def test_published_figures_by_group_stand_beside_ours(tmp_path: Path) -> None:
    at = {"ensemble.debiased": 2}
    figures = {"at": at, "groups": {"a": {"aver": 12.3, "agre_kd": 59.9}}}
    result = made_up([0, 1], Published.model_validate({"source": "Table 7", "figures": [figures]}))
    with (tmp_path / "screen").open("w") as screen:
        show(result, Console(file=screen, width=100))
    for text in (markdown(result), (tmp_path / "screen").read_text()):
        assert text.count("debiased=2. Accuracy by group on the test split") == 1
        assert text.count("[12.3]") == text.count("[59.9]") == 1
    assert "Accuracy by group" not in markdown(made_up([0, 1]))
    assert result.published_at(at, "agre_kd", "group/a") == 59.9
    assert result.published_at(at, "agre_kd", "group/b") is None
    (table,) = _group_tables(result)
    assert [column.header for column in table.columns] == ["Method", "a"]
    (narrow,) = _group_tables(result, width=table.width - 1)
    assert [column.header for column in narrow.columns] == ["Group", "Method", "Accuracy"]
    assert [cell.text for cell in narrow.columns[0].cells] == ["a", ""]
    assert [cell.words for cell in narrow.columns[2].cells] == [
        cell.words for cell in table.columns[1].cells
    ]


def test_each_swept_key_has_a_plot_with_a_line_a_method() -> None:
    sweep = {"ensemble.debiased": [1, 2], "distillation.alpha": [0.5, 1.0]}
    points = [
        PointResult("p", dict(zip(sweep, at, strict=True)), None, [outcome("aver", 0, 0.3)])
        for at in itertools.product(*sweep.values())
    ]
    result = StudyResult("made_up", "folder", sweep, ["aver"], None, points)
    for key in sweep:
        figure = sweep_plot(result, key)
        assert figure is not None
        assert len(figure.axes) == 4
        assert all(len(axes.lines[0].get_xdata()) == 2 for axes in figure.axes)


def test_a_map_colours_every_place_by_the_gain() -> None:
    sweep = {"data.name": ["colored_digits", "table"], "ensemble.debiased": [1, 2, 3]}
    gains = iter([0.3, 0.2, 0.0, 0.1, -0.1, 0.05])
    points = []
    for at in itertools.product(*sweep.values()):
        gain = next(gains)
        for draw, more in ((0, 0.01), (1, -0.01)):
            outcomes = [outcome("aver", 0, 0.3), outcome("agre_kd", 0, 0.3 + gain + more)]
            points.append(PointResult("p", dict(zip(sweep, at, strict=True)), draw, outcomes))
    result = StudyResult("made_up", "folder", sweep, ["aver", "agre_kd"], None, points)
    figure = study_plots(result)["map"]()
    assert figure is not None
    axes = figure.axes[0]
    heights = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(heights, [[30, 20, 0], [10, -10, 5]], atol=1e-9)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3"]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert ["colored_digits" in rows[0], "table" in rows[1]] == [True, True]
    shown = {text.get_text(): text.get_fontweight() for text in axes.texts}
    assert shown["+30.0"] == shown["−10.0"] == "bold"
    assert shown["+0.0"] == "normal"  # its interval holds 0
    assert shown["+29.0 … +31.0"] == "normal"
    words = " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())
    assert "colored_digits, table, test split" in words
    assert "over 2 draws of data and teachers" in words
    assert study_plots(made_up([0, 1]))["map"]() is None  # one key: its own plot says it all


def test_a_narrow_screen_gets_a_row_a_place(tmp_path: Path) -> None:
    with (tmp_path / "screen").open("w") as screen:
        show(made_up([0, 1]), Console(file=screen, width=30))
    text = (tmp_path / "screen").read_text()
    assert "AGRE-KD" in text
    assert "Worst-group accuracy" in text


def test_what_is_finished_of_a_stopped_study_can_be_seen(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped in the second draw: the points of the first stand, and the rest follows."""
    folder = RunFolder.create(study_of(make_job, draws=[0, 1]))
    train = driver._StudyDriver._train_cohort

    def stopped(self: Any, cohort: Any, name: str) -> None:
        if cohort.job.data.seed:
            raise KeyboardInterrupt
        train(self, cohort, name)

    monkeypatch.setattr(driver._StudyDriver, "_train_cohort", stopped)
    with (tmp_path / "screen.txt").open("w") as file, pytest.raises(KeyboardInterrupt):
        run_study(folder, Console(file=file, width=200))
    assert f"unfinished: 2 of 4 points; to see them: agrekd report {folder.path}" in (
        tmp_path / "screen.txt"
    ).read_text().replace("\n", " ")
    page = write_report(folder.path).read_text()
    assert "Unfinished: 2 of 4 points." in page
    assert (folder.path / "results.md").read_text().count("*Unfinished: 2 of 4 points.*") == 1
    assert (folder.path / "plots/sweep_temperature.png").exists()
    monkeypatch.undo()
    whole = run_study(folder, Console(quiet=True))
    assert [point.draw for point in whole.points] == [0, 1, 0, 1]
    assert "Unfinished" not in write_report(folder.path).read_text()


def over_some(result: StudyResult, places: int) -> StudyResult:
    """A study whose first places are measured on some of the groups."""

    def some(outcome: StudentResult) -> StudentResult:
        test = replace(outcome.splits["test"], coverage={"groups": (1, 2), "classes": (3, 3)})
        return replace(outcome, splits={"test": test})

    points = [
        replace(point, outcomes=[some(o) if number < places else o for o in point.outcomes])
        for number, point in enumerate(result.points)
    ]
    return replace(result, points=points)


def test_a_study_over_some_groups_says_so_in_its_title_or_where_places_differ_in_the_cell() -> None:
    everywhere = over_some(made_up([None]), 2)
    assert everywhere.worst == "worst of 1 of 2 groups"
    assert "Accuracy of the worst of 1 of 2 groups on the test split" in markdown(everywhere)
    assert "over 1 of 2 groups" not in markdown(everywhere)
    partly = over_some(made_up([None]), 1)
    assert partly.worst == "worst group"
    lines = markdown(partly).split("Accuracy on the test")[0].splitlines()
    (ours,) = [line for line in lines if line.startswith("| AGRE-KD")]
    assert [cell.count("over 1 of 2 groups") for cell in ours.split("|")[2:4]] == [1, 0]
    assert "over" not in markdown(made_up([None])).replace("sd over", "")
    assert StudyResult.from_json(json.loads(json.dumps(partly.to_json()))).rows == partly.rows
