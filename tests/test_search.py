"""Searches on a real Ray: what they find, what they leave behind, and what dies in between."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.cluster.events import GroupPlaced
from agrekd_ray.config.search import Planned
from agrekd_ray.data import SELECT, open_dataset
from agrekd_ray.distillation import LocalTeachers, TeacherHost
from agrekd_ray.errors import RunError
from agrekd_ray.files import checked
from agrekd_ray.report.page import write_report
from agrekd_ray.results import EnsembleCheck, Epoch, Metrics
from agrekd_ray.results.search import FAILED, FINISHED, STOPPED, SearchResult, TrialResult
from agrekd_ray.search import nested
from agrekd_ray.search import trial as trials
from agrekd_ray.search.folder import SearchFolder, TrialStore
from agrekd_ray.search.trial import Shared, Trial, opened
from agrekd_ray.training import Judge

from .shared import pool_of, until
from .test_run import AGREKD, agrekd
from .test_search_space import planned, write_search

STUDENT_ONLY = {
    "strategy": {"choice": ["agre_kd", "aver"]},
    "distillation.temperature": {"loguniform": [1, 16]},
}


def search(folder: Path, store: Path, **changes: Any) -> SearchResult:
    """A search in this process, on the suite's Ray session."""
    from agrekd_ray.search.driver import run_search

    places = {"outputs.store": str(store.with_name("outputs"))}
    shared = {"concurrency": 2, "final": {"seeds": []}}
    wanted = {**shared, **changes, "changes": {**places, **changes.get("changes", {})}}
    with (folder / "screen.txt").open("w") as screen:
        return run_search(
            SearchFolder.create(planned(folder, **wanted)), Console(file=screen, width=160)
        )


def undisturbed(found: Planned, result: TrialResult, make_job: Any) -> list[Epoch]:
    """The history of the same trial in this process, with its teachers."""
    data, checkpoints, _ = pool_of(make_job())
    answers_N = data.labels(data.splits[SELECT]).numpy()
    judge = Judge(data, SELECT, answers_N, answers_N)
    trial = Trial(found.trial(result.setting), data, Local(checkpoints)(data), judge)
    while not trial.done:
        trial.epoch()
    return trial.history


_TRAINS_OWN = "TrainController"
"""An actor that Ray Train keeps until the session ends."""


@dataclass(frozen=True)
class Local:
    """Opens teachers in whichever process asks."""

    checkpoints: dict[str, Path]

    def __call__(self, samples: Any) -> LocalTeachers:
        return LocalTeachers(TeacherHost(self.checkpoints, samples))


def leftovers(ray: Any, *, wait: bool = True) -> dict[str, list[Any]]:
    """Actors of trials and teachers that live, and placement groups that exist, in the cluster.

    What ends takes its time to be seen as ended: by default it waits until nothing is left.
    """
    from ray._private.state import actors
    from ray.util import placement_group_table

    while True:
        alive = [
            actor
            for actor in actors().values()
            if actor["State"] != "DEAD" and not actor["ActorClassName"].startswith(_TRAINS_OWN)
        ]
        groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
        if not (wait and (alive or groups)):
            return {"actors": alive, "groups": groups}
        time.sleep(0.2)


def refuse_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, no trial is tested anywhere but where it was trained."""
    from agrekd_ray.search import driver

    def test_all(planned: Planned, trials: Any, *others: Any) -> None:
        raise AssertionError(f"{trials} left no test behind")

    monkeypatch.setattr(driver, "test_all", test_all)


def judged_here(result: SearchResult, trial: TrialResult) -> Metrics:
    """What the students that a trial left behind are worth on the test split."""
    folder = SearchFolder.open(Path(result.folder))
    (trial_id,) = [
        i for i, t in TrialStore(folder.trials).all().items() if t.number == trial.number
    ]
    state = trials.last_state(folder.states / trial_id)
    assert state is not None
    dataset = open_dataset(folder.planned.base.data)
    return trials.test_metrics(folder.planned, trial.setting, state, dataset, "cpu")


def test_a_search_from_nothing_to_its_winner(
    ray_session: Any, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASHA stops trials; nothing of them is left; the winner is trained again and registered."""
    refuse_tasks(monkeypatch)
    result = search(
        tmp_path,
        store,
        space=STUDENT_ONLY,
        trials=5,
        seeds=[0, 1],
        scheduler={"name": "asha", "grace": 1, "reduction": 2},
        changes={"student.training.epochs": 3},
        final={"seeds": [7], "default": {"distillation.temperature": 2}},
    )
    assert leftovers(ray_session) == {"actors": [], "groups": []}
    assert len(result.trials) == 5
    states = [trial.state for trial in result.trials]
    assert set(states) == {FINISHED, STOPPED}
    for trial in result.trials:
        assert (len(trial.history) == 3) == (trial.state == FINISHED)
        assert trial.test == judged_here(result, trial)
        assert [epoch.epoch for epoch in trial.history] == list(range(len(trial.history)))
        worst = trial.history[-1].val.worst_group_accuracy
        assert trial.score("worst_group") == pytest.approx(worst)
    best = max(trial.score(result.select) or 0 for trial in result.trials)
    winner = next(trial for trial in result.trials if trial.number == result.winner)
    assert winner.score(result.select) == best
    assert {outcome.method for outcome in result.final} == {"winner", "default"}
    assert {outcome.seed for outcome in result.final} == {7}
    assert {rule.rule for rule in result.rules} >= {"worst_group", "contradicted"}
    folder = Path(result.folder)
    assert checked(SearchResult, json.loads((folder / "results.json").read_text())) == result
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [trial.name for trial in result.trials]
    assert float(rows[0]["select/worst_group"]) == pytest.approx(
        result.trials[0].score("worst_group"), abs=1e-6
    )
    screen = (tmp_path / "screen.txt").read_text()
    for words in ("winner", "worst_group", "rank correlation", "mlflow ui"):
        assert words in screen
    assert "Warning" not in screen
    check = checked(EnsembleCheck, result.about["ensemble"])
    assert screen.index("Teachers on 100 validation samples") < screen.index("winner")
    assert all(f"warning: {warning}" in screen for warning in check.warnings)
    with (folder / "teachers.csv").open() as file:
        taught = [row["teacher"] for row in csv.DictReader(file) if row["role"] == "teacher"]
    assert taught == [one.name for one in check.teachers]
    assert taught == [member["name"] for member in result.about["members"]]
    assert "The ensemble before the first student" in write_report(folder).read_text()
    _mlflow_holds_the_search(tmp_path / "runs", result)


def test_a_winner_that_is_the_default_is_trained_once(
    ray_session: Any, tmp_path: Path, store: Path
) -> None:
    """The base job's own setting is the first trial, and here the only one."""
    result = search(
        tmp_path,
        store,
        space=STUDENT_ONLY,
        trials=1,
        changes={"student.training.epochs": 1},
        final={"seeds": [7, 8]},
    )
    assert [outcome.name for outcome in result.final] == ["winner-seed-7", "winner-seed-8"]
    assert "is the default setting: trained once, with 2 fresh seeds" in result.verdict
    screen = (tmp_path / "screen.txt").read_text()
    assert result.verdict in screen
    assert "winner   2/2 epochs" in screen
    page = write_report(Path(result.folder)).read_text()
    assert "Winner (trial 0, the default setting)" in page
    assert "interval" not in page.partition("Winner and default")[2].partition("</table>")[0]
    assert not (Path(result.folder) / "plots" / "winner_against_default.png").exists()


def _mlflow_holds_the_search(runs: Path, result: SearchResult) -> None:
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    by_role: dict[str, list[Any]] = {}
    for run in found:
        by_role.setdefault(run.data.tags["agrekd.role"], []).append(run)
    (parent,) = by_role["search"]
    assert parent.info.status == "FINISHED"
    trials = {int(run.data.tags["agrekd.trial"]): run for run in by_role["trial"]}
    assert sorted(trials) == [trial.number for trial in result.trials]
    for trial in result.trials:
        run = trials[trial.number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["agrekd.state"] == trial.state
        assert run.info.status == ("FINISHED" if trial.state == FINISHED else "KILLED")
        temperature = trial.setting["distillation.temperature"]
        assert float(run.data.params["distillation.temperature"]) == pytest.approx(temperature)
        history = client.get_metric_history(run.info.run_id, "val/worst_group_accuracy")
        assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
            (epoch.epoch, pytest.approx(epoch.val.worst_group_accuracy)) for epoch in trial.history
        ]
        assert trial.test is not None
        assert run.data.metrics["test/worst_group_accuracy"] == pytest.approx(
            trial.test.worst_group_accuracy
        )
    tagged = [n for n, run in trials.items() if run.data.tags.get("agrekd.winner") == "true"]
    assert tagged == [result.winner]
    version = client.get_model_version_by_alias(result.name, "winner")
    (winner,) = [run for run in by_role["student"] if run.data.params["method"] == "winner"]
    assert version.run_id == winner.info.run_id


@pytest.mark.parametrize("links", [True, False])
def test_a_groups_state_is_put_elsewhere_and_never_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """As PBT does: what was saved stays as it was when another state takes its place."""
    if not links:
        monkeypatch.setattr(nested, "linked", lambda file, wanted: False)
    states, one, two = (tmp_path / name for name in ("states", "one", "two"))
    for folder, text in ((states, "first"), (two, "second")):
        folder.mkdir()
        (folder / "0.pt").write_text(text)
    put = nested._linked_or_copied
    shutil.copytree(states, one, copy_function=put)
    put(str(one / "0.pt"), str(states / "0.pt"))  # the same file: nothing to do
    put(str(two / "0.pt"), str(states / "0.pt"))
    assert [(f / "0.pt").read_text() for f in (states, one, two)] == ["second", "first", "second"]
    assert [path.name for path in states.iterdir()] == ["0.pt"]


@pytest.mark.chaos
def test_students_with_several_workers_are_stopped_early_and_leave_nothing(
    ray_session: Any, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker group a trial: ASHA stops the one that learns nothing; the other ends its epochs."""
    refuse_tasks(monkeypatch)
    result = search(
        tmp_path,
        store,
        space={"student.training.learning_rate": {"choice": [0.05, 1e-7]}},
        searcher={"name": "grid"},
        trials=None,
        select="accuracy",
        scheduler={"name": "asha", "grace": 2, "reduction": 2},
        concurrency=1,
        changes={"student.workers": 2, "student.cpus": 0.5, "student.training.epochs": 3},
    )
    assert leftovers(ray_session) == {"actors": [], "groups": []}
    assert [(trial.state, len(trial.history)) for trial in result.trials] == [
        (FINISHED, 3),
        (STOPPED, 2),
    ]
    assert not list((Path(result.folder) / "groups").glob("*"))
    for trial in result.trials:
        assert trial.test == judged_here(result, trial)


def test_a_trial_whose_process_dies_at_its_end_is_tested_by_a_task(
    ray_session: Any, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.search.callback import TuneCallback

    ended = TuneCallback.on_trial_complete

    def kill(self: Any, iteration: int, trials: Any, trial: Any) -> None:
        ended(self, iteration, trials, trial)
        os.kill(trial.last_result["pid"], signal.SIGKILL)

    monkeypatch.setattr(TuneCallback, "on_trial_complete", kill)
    result = search(tmp_path, store, trials=1, searcher={"name": "random"})
    (trial,) = result.trials
    assert trial.state == FINISHED
    assert not list((Path(result.folder) / "states").rglob(trials.TESTED))
    assert trial.test == judged_here(result, trial)


@pytest.mark.chaos
def test_trials_that_time_ends_are_tested_where_they_were(
    ray_session: Any, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is in the middle of an epoch: its last saved students are meant."""
    from ray.tune.stopper.timeout import TimeoutStopper

    from agrekd_ray.search.callback import TuneCallback

    refuse_tasks(monkeypatch)
    epochs: dict[str, int] = {}
    heard = TuneCallback.on_trial_result

    def count(self: Any, iteration: int, trials: Any, trial: Any, result: Any) -> None:
        heard(self, iteration, trials, trial, result)
        epochs[trial.trial_id] = result["epochs"]

    def up(self: Any) -> bool:
        return len(epochs) == 2 and min(epochs.values()) >= 2

    monkeypatch.setattr(TuneCallback, "on_trial_result", count)
    monkeypatch.setattr(TimeoutStopper, "stop_all", up)
    changes = {"student.training.epochs": 100_000}
    result = search(tmp_path, store, space=STUDENT_ONLY, trials=2, minutes=60, changes=changes)
    for trial in result.trials:
        assert trial.state == STOPPED
        assert trial.test == judged_here(result, trial)


@pytest.mark.chaos
def test_trials_go_where_students_labels_say(
    ray_session: Any, add_node: Any, tmp_path: Path, store: Path
) -> None:
    """Each in a worker group of its own, since Tune places nothing by label."""
    from ray.util import placement_group_table

    add_node(num_cpus=1, labels={"zone": "b"})
    earlier = placement_group_table().keys()  # removed ones of the session stay in it
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for name, group in placement_group_table().items():
                # Tune's own group for a trial's shell, of memory alone, may be anywhere.
                cpus = any("CPU" in bundle for bundle in group["bundles"].values())
                if cpus and name not in earlier:
                    seen.update(node for node in group["bundles_to_node_id"].values() if node)

    looking = threading.Thread(target=look)
    looking.start()
    result = search(
        tmp_path,
        store,
        trials=2,
        concurrency=1,
        searcher={"name": "random"},
        changes={"student.labels": {"zone": "b"}, "student.training.epochs": 2},
    )
    over.set()
    looking.join()
    assert [trial.state for trial in result.trials] == [FINISHED] * 2
    (zone_b,) = [n["NodeID"] for n in ray_session.nodes() if n["Labels"].get("zone") == "b"]
    assert seen == {zone_b}
    assert leftovers(ray_session) == {"actors": [], "groups": []}


@pytest.mark.chaos
def test_a_killed_trial_is_retried_and_a_diverged_one_is_not(
    ray_session: Any, tmp_path: Path, store: Path, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.search.callback import TuneCallback

    killed: list[int] = []
    heard = TuneCallback.on_trial_result

    def kill_once(self: Any, iteration: int, trials: Any, trial: Any, result: Any) -> None:
        heard(self, iteration, trials, trial, result)
        rate = trial.config["setting"]["student.training.learning_rate"]
        if not killed and result["training_iteration"] == 2 and rate < 1:
            killed.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(TuneCallback, "on_trial_result", kill_once)
    result = search(
        tmp_path,
        store,
        space={"student.training.learning_rate": {"choice": [0.05, 1e30]}},
        searcher={"name": "grid"},
        trials=None,
        changes={"student.training.epochs": 6},
    )
    assert killed
    sound, wild = sorted(result.trials, key=lambda trial: str(trial.reason or ""))
    assert (sound.state, len(sound.history)) == (FINISHED, 6)
    assert [epoch.epoch for epoch in sound.history] == list(range(6))
    assert wild.state == FAILED
    assert "diverged" in str(wild.reason)
    assert result.winner == sound.number
    whole = undisturbed(planned(tmp_path, changes={"student.training.epochs": 6}), sound, make_job)
    losses = [epoch.loss for epoch in whole]  # as if nothing had been killed
    assert [epoch.loss for epoch in sound.history] == pytest.approx(losses, rel=1e-3)


def test_without_records_one_fleet_serves_all_trials(
    ray_session: Any, tmp_path: Path, store: Path, make_job: Any
) -> None:
    changes = {"guidance": "live", "fleet.cpus": 0.1}
    kinds: dict[str, Any] = {"space": STUDENT_ONLY, "trials": 3}
    live = search(tmp_path, store, **kinds, changes=changes)
    assert leftovers(ray_session) == {"actors": [], "groups": []}
    for trial in live.trials:
        alone = undisturbed(planned(tmp_path), trial, make_job)
        for mine, theirs in zip(trial.history, alone, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-3)


@pytest.mark.chaos
def test_population_based_training_hands_states_on(
    ray_session: Any, tmp_path: Path, store: Path
) -> None:
    result = search(
        tmp_path,
        store,
        space={
            "distillation.temperature": {"loguniform": [1, 16]},
            "distillation.alpha": {"uniform": [0.9, 1]},  # varied by a fifth: kept inside
            "student.training.learning_rate": {"choice": [1e-5, 0.05]},
        },
        scheduler={"name": "pbt", "grace": 1},
        trials=4,
        changes={"student.training.epochs": 4},
    )
    assert [trial.state for trial in result.trials] == [FINISHED] * 4
    for trial in result.trials:
        assert [epoch.epoch for epoch in trial.history] == list(range(4))
        assert 0.9 <= trial.setting["distillation.alpha"] <= 1


@pytest.mark.chaos
def test_a_worker_group_keeps_step_with_its_trial_and_leaves_nothing(
    ray_session: Any, tmp_path: Path, make_job: Any
) -> None:
    """Two workers: the same epoch as one; ended after it, as by a scheduler; nothing is held."""
    from agrekd_ray.cluster.channel import Channel
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.search.nested import GroupTrial

    found = planned(tmp_path, changes={"student.training.epochs": 3, "student.cpus": 0.5})
    data, checkpoints, _ = pool_of(make_job())
    answers_N = data.labels(data.splits[SELECT]).numpy()
    told: list[Any] = []
    channel = Channel()
    shared = Shared(
        found,
        DriverData.of(found.base.data),
        Local(checkpoints),
        answers_N,
        answers_N,
        channel.emit,
        tmp_path / "trials",
        tmp_path / "states",
        tmp_path / "groups",
    )
    setting = {"strategy": "ae_kd", "student.workers": 2}
    group = GroupTrial(found.trial(setting), shared, "one", tmp_path / "groups/one")
    epoch = group.epoch()
    assert not group.done
    (tmp_path / "state").mkdir()
    group.save(tmp_path / "state")
    told += channel.take()
    assert [event.trial_id for event in told if isinstance(event, GroupPlaced)] == ["one"]
    assert leftovers(ray_session, wait=False)["groups"] != []
    group.close()
    channel.close()
    assert leftovers(ray_session) == {"actors": [], "groups": []}
    assert not (tmp_path / "groups/one").exists()
    dataset, source, judge = opened(shared)
    alone = Trial(found.trial({"strategy": "ae_kd"}), dataset, source, judge)
    assert epoch.loss == pytest.approx(alone.epoch().loss, rel=1e-4)
    other = Trial(found.trial({"strategy": "ae_kd"}), dataset, source, judge)
    other.load(tmp_path / "state")  # a state is a state, however many workers wrote it
    assert alone.epoch().loss == pytest.approx(other.epoch().loss, rel=1e-3)


def test_a_placement_group_that_a_dead_trial_left_is_given_back(ray_session: Any) -> None:
    from ray.util import placement_group

    from agrekd_ray.search.callback import Groups

    groups = Groups()
    for trial in ("a", "b"):
        left = placement_group([{"CPU": 0.1}])
        ray_session.get(left.ready())
        groups.placed(GroupPlaced(trial, left.id.hex()))
    groups.release("a")
    groups.release("nobody")
    groups.release()
    assert leftovers(ray_session)["groups"] == []


def test_what_does_not_fit_is_one_error(
    ray_session: Any, add_node: Any, tmp_path: Path, store: Path
) -> None:
    """More trials than there is room for; a student that all nodes together have room for."""
    add_node(num_cpus=3, labels={"zone": "b"})
    with pytest.raises(RunError, match="500 trials at once do not fit; 9 would"):
        search(tmp_path, store, concurrency=500, trials=1)
    with pytest.raises(RunError, match="do not fit; 3 would"):
        search(tmp_path, store, concurrency=500, changes={"student.labels": {"zone": "b"}})
    with pytest.raises(RunError, match="no node has room for it: 8 CPU wanted"):
        search(tmp_path, store, changes={"student.cpus": 8})
    state = next((tmp_path / "runs/tiny_search").glob("*/state.json")).read_text()
    assert json.loads(state)["status"] == "failed"


REPORTS = ("results.json", "trials.csv", "attempts.json")


@pytest.mark.chaos
def test_a_killed_search_goes_on(tmp_path: Path, store: Path) -> None:
    """SIGKILL of the driver in the middle; no finished trial again, as many trials in the end."""
    changes = {
        "teachers.store": str(store),
        "outputs.store": str(store.with_name("outputs")),
        "student.training.epochs": 60,  # longer than the second by which Tune's snapshots lag
    }
    search = {"searcher": {"name": "optuna"}, "trials": 6, "final": {"seeds": []}}
    path = write_search(tmp_path, changes=changes, **search)
    driver = subprocess.Popen([*AGREKD, "tune", str(path)], stdout=subprocess.DEVNULL)
    latest = tmp_path / "runs/tiny_search/latest"
    until(lambda: sum(trial.state == FINISHED for trial in _trials(latest)) >= 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {trial.number: trial for trial in _trials(latest) if trial.state == FINISHED}
    assert len(before) < 6
    screen = agrekd("tune", path, "--resume")
    assert "winner" in screen
    after = {trial.number: trial for trial in _trials(latest)}
    assert len(after) == 6
    assert all(trial.state == FINISHED for trial in after.values())
    for number, trial in before.items():
        assert after[number].history == trial.history
        assert after[number].seconds == trial.seconds
    about = json.loads((latest / "results.json").read_text())["about"]
    first, second = json.loads((latest / "attempts.json").read_text())
    assert about["attempts"] == 2
    assert about["seconds"] > first["seconds"]
    assert second["seconds"] > 0
    before_again = {name: (latest / name).read_bytes() for name in REPORTS}
    (latest / "trials.csv").unlink()
    assert "winner" in agrekd("resume", latest)  # nothing is left: MLflow gets what it missed
    assert {name: (latest / name).read_bytes() for name in REPORTS} == before_again
    for trial in after.values():  # what Optuna proposed keeps to the conditions
        assert ("distillation.ae_kd.box" in trial.setting) == (trial.setting["strategy"] == "ae_kd")
        weighted = trial.setting["distillation.sample_weighting"] == {}
        assert ("distillation.sample_weighting.exponent" in trial.setting) == weighted


def _trials(folder: Path) -> list[Any]:
    trials = folder / "trials"
    return list(TrialStore(trials).all().values()) if trials.exists() else []


def test_resume_without_a_run_is_one_error(tmp_path: Path, store: Path) -> None:
    path = write_search(tmp_path)
    assert "no run of this search" in agrekd("tune", path, "--resume", code=1)


@pytest.fixture
def shell(ray_session: Any, tmp_path: Path, make_job: Any) -> Any:
    """Makes trials' actors without Tune around them: `shell("name", scheduler={...})`."""
    from agrekd_ray.cluster.nodes import DriverData
    from agrekd_ray.search.trainable import SETTING, TrialActor

    class Shell(TrialActor):
        def __init__(self, name: str, shared: Shared) -> None:
            self.name = name
            self.setup({SETTING: {"distillation.temperature": 4.0}}, shared)

        @property
        def trial_id(self) -> str:
            return self.name

    def make(name: str, **changes: Any) -> Shell:
        found = planned(
            tmp_path,
            space={"distillation.temperature": {"loguniform": [1, 16]}},
            changes={"student.training.epochs": 5, "methods": ["aver"]},
            **changes,
        )
        data, checkpoints, _ = pool_of(make_job())
        answers_N = data.labels(data.splits[SELECT]).numpy()
        places = (tmp_path / name for name in ("trials", "states", "groups"))
        source = Local(checkpoints)
        shown = DriverData.of(found.base.data)
        return Shell(
            name,
            Shared(found, shown, source, answers_N, answers_N, lambda event: None, *places),
        )

    return make


def test_a_trial_that_takes_over_anothers_state_tells_all_its_epochs(
    tmp_path: Path, shell: Any
) -> None:
    """As population based training has it do; the other may be several epochs ahead."""
    ahead, behind = (shell(name, scheduler={"name": "pbt"}) for name in ("ahead", "behind"))

    def metrics(name: str) -> Metrics | None:
        state = trials.last_state(tmp_path / "states" / name)
        return None if state is None else trials.read_test(state)

    def epochs(told: dict[str, Any]) -> list[int]:
        return [epoch["epoch"] for epoch in json.loads(told["news"])]

    assert [epochs(ahead.step()) for _ in range(3)] == [[0], [1], [2]]
    assert epochs(behind.step()) == [0]
    (tmp_path / "checkpoint").mkdir()
    ahead.save_checkpoint(str(tmp_path / "checkpoint"))
    behind.load_checkpoint(str(tmp_path / "checkpoint"))
    assert epochs(behind.step()) == [0, 1, 2, 3]
    assert epochs(behind.step()) == [4]
    ahead.cleanup()  # put down by the scheduler, to be taken up again
    assert metrics("ahead") is None
    (tmp_path / "last").mkdir()
    behind.save_checkpoint(str(tmp_path / "last"))
    behind.cleanup()
    assert metrics("behind") is not None


def test_a_trial_that_fails_is_tested_as_it_last_was_sound(tmp_path: Path, shell: Any) -> None:
    trial = shell("one")
    trial.step()
    (tmp_path / "checkpoint").mkdir()
    trial.save_checkpoint(str(tmp_path / "checkpoint"))
    for weights in trial._trial._students[0].model.parameters():
        weights.data.fill_(float("nan"))
    told = trial.step()
    assert "no longer finite" in told["reason"]
    assert told["done"]
    trial.save_checkpoint(str(tmp_path / "checkpoint"))  # as Tune has it do
    trial.cleanup()
    state = trials.last_state(tmp_path / "states/one")
    assert state is not None
    assert state.name == "00001"
    test = trials.read_test(state)
    assert test is not None
    assert test.accuracy > 0
    again = shell("one")  # whatever is saved anew is tested anew
    again.step()
    again.save_checkpoint(str(tmp_path / "checkpoint"))
    state = trials.last_state(tmp_path / "states/one")
    assert state is not None
    assert (state.name, trials.read_test(state)) == ("00002", None)
