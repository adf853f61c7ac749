"""What a run has cost, over all attempts at it, however they ended."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.config import Job
from agrekd_ray.errors import RunError
from agrekd_ray.experiment import account as module
from agrekd_ray.experiment.account import Account
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.report.page import write_report
from agrekd_ray.results import ATTEMPTS, Attempt, Cost, Span, TeacherCost
from agrekd_ray.student import Student

ONE = TeacherCost(1, 10, 500, 2.0, 1, {"weigh": Span(4, 0.5)})
TWO = TeacherCost(2, 5, 700, 1.0, 0, {"weigh": Span(6, 1.5)})


def written(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / ATTEMPTS).read_text()))


def test_attempts_add_up(tmp_path: Path) -> None:
    with Account(tmp_path) as first:
        first.add(ONE)
        first.so_far(TeacherCost(forwards=3))  # replaced by what follows
        first.add(TWO)
    assert first.cost.effort == TeacherCost(3, 15, 700, 3.0, 1, {"weigh": Span(10, 2.0)})
    with Account(tmp_path) as second:
        assert second.cost.effort == first.cost.effort
        second.add(ONE)
    assert second.cost.effort == TeacherCost(4, 25, 700, 5.0, 2, {"weigh": Span(14, 2.5)})
    assert second.cost.attempts == 2
    assert second.cost.seconds >= first.cost.seconds
    with Account(tmp_path) as third:
        pass  # nobody was taught, and that takes away nothing
    assert third.cost.effort == second.cost.effort
    assert [attempt["effort"] is None for attempt in written(tmp_path)] == [False, False, True]


def test_an_attempt_that_is_killed_counts_as_far_as_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_WRITES", 0.01)
    killed = Account(tmp_path)
    with killed:
        killed.add(ONE)
        killed.so_far(TWO)
        killed.so_far(TeacherCost(forwards=1))  # some teachers did not answer in time
        while not (tmp_path / ATTEMPTS).exists() or not written(tmp_path)[0]["effort"]:
            time.sleep(0.01)
        (tmp_path / "left").mkdir()
        (tmp_path / ATTEMPTS).rename(tmp_path / "left" / ATTEMPTS)  # as where it ends now
    with Account(tmp_path / "left") as later:
        later.add(ONE)
    assert later.cost.effort == ONE + TWO + ONE
    assert later.cost.attempts == 2


def test_an_attempt_with_nothing_to_do_leaves_no_trace(tmp_path: Path) -> None:
    with Account(tmp_path) as first:
        first.add(ONE)
    before, cost = (tmp_path / ATTEMPTS).read_bytes(), first.cost
    with Account(tmp_path) as second:
        second.forget()
    assert (tmp_path / ATTEMPTS).read_bytes() == before
    assert second.cost.attempts == cost.attempts == 1


@pytest.mark.parametrize(
    "around",
    [
        lambda told: {"job": {"name": "a job", **told}},
        lambda told: {"name": "a search", "about": {"job": {}, **told}},
        lambda told: {"study": "a study", **told},
    ],
)
def test_a_run_of_an_earlier_version_has_its_account_in_its_results(
    tmp_path: Path, around: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    told = {"seconds": 40.5, "effort": asdict(ONE)}
    (tmp_path / "results.json").write_text(json.dumps(around(told)))
    with Account(tmp_path) as later:
        later.add(TWO)
    assert later.cost.effort == ONE + TWO
    assert later.cost.seconds >= 40.5
    assert later.cost.attempts == 2


@pytest.mark.parametrize("results", ["", "[]", "{}", '{"job": 3}', '{"job": {"seconds": "x"}}'])
def test_results_that_say_nothing_of_the_cost_count_for_nothing(
    tmp_path: Path, results: str
) -> None:
    (tmp_path / "results.json").write_text(results)
    assert Account(tmp_path).cost.attempts == 1


def test_a_damaged_account_is_one_error(tmp_path: Path) -> None:
    (tmp_path / ATTEMPTS).write_text('[{"seconds": "long"}]')
    with pytest.raises(RunError, match=r"attempts\.json: damaged .*remove it"):
        Account(tmp_path)


def test_a_cost_in_words() -> None:
    assert Cost(187.2).in_words == "3 min 7 s"
    assert Cost(187.2, attempts=3).in_words == "3 min 7 s, in 3 attempts"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_stopped_run_adds_up_and_a_finished_one_stays_as_it_is(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(guidance="local", methods=["aver", "agre_kd"], **{"tracking.models": False})
    folder, console = RunFolder.create(job), Console(quiet=True)
    finish = Student.finish

    def stopped(self: Student, students: Path) -> Any:
        if self.spec.method == "agre_kd":
            raise KeyboardInterrupt
        return finish(self, students)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_job(folder, console)
    run_job(RunFolder.open(folder.path), console)
    about = json.loads((folder.path / "results.json").read_text())["job"]
    first, second = written(folder.path)
    assert about["attempts"] == 2
    assert about["seconds"] >= first["seconds"] > 0
    # Both students were taught in the first attempt; the second one asks for the votes again.
    assert first["effort"]["forwards"] > second["effort"]["forwards"] > 0
    for name in ("forwards", "seconds"):
        assert about["effort"][name] == pytest.approx(
            first["effort"][name] + second["effort"][name]
        )
    assert ", in 2 attempts" in write_report(folder.path).read_text()

    client = MlflowClient(f"sqlite:///{job.runs / 'mlflow.db'}")

    def runs() -> list[Any]:
        places = [e.experiment_id for e in client.search_experiments()]
        return [
            (
                run.info.status,
                run.info.start_time,
                run.info.end_time,
                {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics},
            )
            for run in client.search_runs(places, order_by=["attributes.run_id"])
        ]

    before, tracked = files(folder.path), runs()
    (parent,) = [metrics for *_, metrics in tracked if "cost/seconds" in metrics]
    assert [point.value for point in parent["cost/seconds"]] == [about["seconds"]]
    assert [p.value for p in parent["teachers/forwards"]] == [about["effort"]["forwards"]]
    for name in ("plots/training_curves.png", "results.csv"):
        (folder.path / name).unlink()
    run_job(RunFolder.open(folder.path), console)
    assert files(folder.path) == before
    assert str(runs()) == str(tracked)

    (folder.path / "results.json").write_text("{")  # which its page tells to resume
    run_job(RunFolder.open(folder.path), console)
    again = json.loads((folder.path / "results.json").read_text())["job"]
    assert again["attempts"] == 3  # who is not recorded is asked for the votes once more
    assert again["effort"]["forwards"] > about["effort"]["forwards"]


def test_no_state_of_a_student_outlives_its_run(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even that of one who was killed when it was finished, and its state still there."""
    job = make_job(guidance="local", methods=["one_hot"], **{"tracking.models": False})
    folder, console = RunFolder.create(job), Console(quiet=True)
    finish = Student.finish

    def stopped(self: Student, students: Path) -> Any:
        finish(self, students)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Student, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_job(folder, console)
    (state,) = folder.training.rglob("*.pt")
    run_job(RunFolder.open(folder.path), console)
    assert not state.exists()


def test_what_a_run_took_stands_still_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Account(tmp_path) as account:
        now += 185
        of_results = account.cost  # plots, and MLflow's last models, are still to come
        now += 11
    now += 1000
    assert of_results.seconds == 185
    assert account.cost.seconds == written(tmp_path)[0]["seconds"] == 196


def test_screen_and_page_say_alike_what_all_attempts_took(make_job: Callable[..., Job]) -> None:
    job = make_job(guidance="local", methods=["one_hot"], **{"tracking.models": False})
    folder = RunFolder.create(job)
    run_job(folder, Console(quiet=True))
    # The last attempt was stopped after the results were written, with MLflow still to be told.
    attempts = [asdict(Attempt(58.0)), asdict(Attempt(11.2))]
    (folder.path / ATTEMPTS).write_text(json.dumps(attempts))
    screen = io.StringIO()
    run_job(RunFolder.open(folder.path), Console(file=screen, width=100))
    assert "finished in 1 min 9 s, in 2 attempts\n" in screen.getvalue()
    assert "1 min 9 s, in 2 attempts" in write_report(folder.path).read_text()
