"""Runs in a real SQLite store: written, found again, and models that load and predict."""

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from rich.console import Console

from agrekd_ray.errors import TrackingError
from agrekd_ray.experiment import job as job_module
from agrekd_ray.experiment.engine import LocalEngine
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.student import Student
from agrekd_ray.tracking.mlflow_runs import MlflowTracker
from agrekd_ray.tracking.tracker import KILLED

EXAMPLE = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
CLASSES = [str(digit) for digit in range(10)]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()
        )
        self.head = torch.nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Branching(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum().item() > 0 else super().forward(-x)


def metrics(worst: float) -> Metrics:
    groups = {"aligned": 0.97, "y=1, a<2": worst}
    return Metrics(0.4, worst, 0.9, 0.35, 0.2, 0.15, groups, dict.fromkeys(groups, 10))


def epochs(count: int, teachers: int = 5, groups: int = 2) -> list[Epoch]:
    weights = {
        f"group {g}": {f"erm-{t}": 1 / teachers for t in range(teachers)} for g in range(groups)
    }
    return [
        Epoch(
            e,
            3.0 / (e + 1),
            0.1,
            2.5,
            metrics(0.01 * e),
            weights,
            0.25,
            fallback_by_group=dict.fromkeys(weights, 0.25),
            influence=weights["group 0"],
            influence_by_group=weights,
        )
        for e in range(count)
    ]


def outcome(method: str = "agre_kd", history: int = 3) -> StudentResult:
    splits = {"val": metrics(0.28), "test": metrics(0.30)}
    return StudentResult(
        method, 0, "5 (2 debiased)", splits, epochs(history), "students/agre_kd-seed-0"
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A folder whose name needs quoting in addresses and in the shell."""
    return tmp_path_factory.mktemp("runs of the job")


@pytest.fixture(scope="module")
def opened(store) -> MlflowTracker:
    return MlflowTracker(None, "digits", store)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """What went to the global store would land here, and not in the checkout."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/global/mlflow.db")
    yield
    assert not (tmp_path / "global").exists()


@pytest.fixture
def reader(opened, monkeypatch):
    """A process whose MLflow looks at the job's store, as a person's does."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", opened.uri)


@pytest.fixture
def tracker(store, opened) -> MlflowTracker:
    """A driver of its own on the store that exists already."""
    tracker = MlflowTracker(None, "digits", store)
    tracker.start_job("job", {}, {})
    return tracker


@pytest.fixture
def client(opened) -> MlflowClient:
    return MlflowClient(opened.uri)


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_a_new_store_is_made_quietly_and_inside_its_folder(tmp_path, capfd, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    logging.getLogger().setLevel(logging.INFO)
    tracker = MlflowTracker(None, "digits", tmp_path / "runs")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())
    found = MlflowClient(tracker.uri).get_experiment(tracker.experiment_id)
    assert found.name == "digits"
    assert found.artifact_location == str(tmp_path / "runs" / "mlartifacts")


def test_a_store_whose_maker_was_killed_is_made_again(tmp_path):
    """SIGKILL at some moments of its making; what is there in the end opens."""
    make = "import sys; from pathlib import Path; "
    make += "from agrekd_ray.tracking.mlflow_runs import MlflowTracker; "
    make += "MlflowTracker(None, 'made', Path(sys.argv[1]))"
    for seconds in (0.0, 0.3, 0.8):
        maker = subprocess.Popen([sys.executable, "-c", make, str(tmp_path)])
        while not list(tmp_path.glob(".mlflow.db.draft-*")):
            assert maker.poll() is None
            time.sleep(0.01)  # polls for the moment
        time.sleep(seconds)  # the moment itself
        maker.kill()
        maker.wait()
    made = MlflowTracker(None, "made", tmp_path)
    assert made.start_job("job", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_the_command_for_the_interface_is_quoted_and_keeps_secrets(opened, store):
    command, _, page = opened.ui_command().partition(", then ")
    assert command == f"mlflow ui --backend-store-uri 'sqlite:///{store}/mlflow.db'"
    assert page.endswith("/#/experiments/1/runs?workflowType=machine_learning")
    with pytest.raises(TrackingError) as caught:
        MlflowTracker("http://me:secret@127.0.0.1:9", "digits", store)
    assert "secret" not in str(caught.value)


def test_a_job_and_its_students(tracker, client):
    params, marks = {"data.aligned": 0.98, "methods": ["a"]}, {"team": "vision"}
    job = tracker.start_job("digits-98", params, {"host": "here"}, marks=marks)
    run_id = tracker.student("agre_kd", 0, {"teachers": "5"})
    run = client.get_run(run_id)
    assert run.info.run_name == "agre_kd-seed-0"
    assert run.info.status == "RUNNING"
    assert run.data.tags["mlflow.parentRunId"] == job
    # What all students of a job share is on each of them, to filter and compare by.
    shared = {"data.aligned": "0.98"}
    assert run.data.params == {"method": "agre_kd", "seed": "0", "teachers": "5", **shared}
    assert run.data.tags["team"] == "vision"
    parent = client.get_run(job)
    assert parent.info.run_name == "digits-98"
    assert parent.data.params == {"data.aligned": "0.98", "methods": '["a"]'}
    assert parent.data.tags["host"] == "here"
    assert parent.data.tags["team"] == "vision"
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() != tracker.uri


def test_resume_finds_the_same_runs(store, opened, client):
    first = MlflowTracker(None, "digits", store)
    job = first.start_job("job", {"epochs": 3, "name": "x"}, {})
    mine = first.student("agre_kd", 1, {"epochs": 3})
    others = {first.student("agre_kd", 0, {}), first.student("aver", 1, {})}
    first.log_epochs(mine, epochs(2))
    first.fail(job, "interrupted by the user", KILLED)
    for run_id in (job, mine, *others):
        ended = client.get_run(run_id)
        assert ended.info.status == "KILLED"
        assert ended.data.tags["agrekd.reason"] == "interrupted by the user"

    second = MlflowTracker(None, "digits", store)
    assert second.start_job("job", {"epochs": 5, "name": "x"}, {}, run_id=job) == job
    assert second.student("agre_kd", 1, {"epochs": 5}) == mine
    second.log_epochs(mine, epochs(4))
    assert [step for step, _ in history(client, mine, "train/loss")] == [0, 1, 2, 3]
    for run_id in (job, mine):
        run = client.get_run(run_id)
        assert run.info.status == "RUNNING"
        assert "agrekd.reason" not in run.data.tags
        assert run.data.params["epochs"] == "3"
        assert json.loads(run.data.tags["agrekd.changed_params"]) == {"epochs": "5"}
    second.finish_student(mine, outcome())
    assert second.student("agre_kd", 1, {}) == mine
    assert client.get_run(mine).info.status == "FINISHED"


@pytest.mark.parametrize("gone", ["0123456789abcdef0123456789abcdef", "not an id!", "deleted"])
def test_a_run_that_is_gone_is_made_anew(tracker, client, gone):
    if gone == "deleted":
        gone = tracker.start_job("old", {}, {})
        client.delete_run(gone)
    job = tracker.start_job("job", {}, {}, run_id=gone)
    assert job != gone
    assert client.get_run(job).info.status == "RUNNING"


def test_a_student_needs_a_job(store, opened):
    with pytest.raises(TrackingError, match="start_job"):
        MlflowTracker(None, "digits", store).student("aver", 0, {})


def test_methods_with_quotes_are_told_apart(tracker):
    first, second = tracker.student("it's", 0, {}), tracker.student('it"s', 0, {})
    assert first != second
    assert tracker.student("it's", 0, {}) == first
    assert tracker.student('it"s', 0, {}) == second


def test_odd_and_long_parameters_do_no_harm(tracker, client, capfd):
    params = {
        "long": "x" * 20_000,
        "none": None,
        "flag": True,
        "empty": "",
        "path": Path("/data"),
        "nested": {"a": [1, 2.5]},
        "umlaut ü": "größe",
        "a,b": 1,
        "a;b": 2,
        "../up": 3,
        "a//b": 4,
        "": 5,
        "k" * 400: 6,
        "not a number": math.nan,
        **{f"many.{n}": n for n in range(230)},
    }
    run_id = tracker.start_job("odd", params, {"tag": "y" * 9000, "we;ird": "z"})
    found = client.get_run(run_id).data
    assert len(found.params) == len(params)
    assert len(found.params["long"]) == 6000
    assert found.params["long"].endswith("…")
    assert found.params["none"] == "null"
    assert found.params["flag"] == "true"
    assert found.params["empty"] == ""
    assert found.params["path"] == '"/data"'
    assert found.params["nested"] == '{"a": [1, 2.5]}'
    assert {found.params["a_b"], found.params["a_b-2"]} == {"1", "2"}
    assert len(found.tags["tag"]) == 8000
    assert capfd.readouterr().err == ""
    tracker.start_job("odd", params, {}, run_id=run_id)
    assert "agrekd.changed_params" not in client.get_run(run_id).data.tags


def test_epochs_are_written_once_with_their_steps_and_times(tracker, client):
    run_id = tracker.student("agre_kd", 0, {})
    tracker.log_epochs(run_id, epochs(2))
    tracker.log_epochs(run_id, epochs(4))
    tracker.log_epochs(run_id, [])
    assert history(client, run_id, "val/worst_group_accuracy") == [
        (e, pytest.approx(0.01 * e)) for e in range(4)
    ]
    for name in ("weight/group 1/erm-4", "influence_by_group/group 1/erm-4", "influence/erm-4"):
        assert history(client, run_id, name)[-1] == (3, 0.2)
    assert history(client, run_id, "fallback/group 1")[-1] == (3, 0.25)
    assert history(client, run_id, "val/group/y_1_ a_2")[-1] == (3, pytest.approx(0.03))
    found = client.get_run(run_id).data.metrics
    assert found["train/fallback_share"] == 0.25
    assert found["train/learning_rate"] == 0.1
    assert found["train/seconds"] == 2.5
    times = [m.timestamp for m in client.get_metric_history(run_id, "train/loss")]
    assert times[1] - times[0] == 2500
    assert times == sorted(set(times))


def test_many_epochs_of_many_teachers_and_a_diverged_loss(tracker, client):
    run_id = tracker.student("agre_kd", 0, {})
    several = epochs(6, teachers=50, groups=6)
    worst = epochs(1, teachers=50, groups=25)
    tracker.log_epochs(run_id, [*several, replace(worst[0], epoch=6, loss=math.nan)])
    assert [step for step, _ in history(client, run_id, "train/loss")] == list(range(7))
    assert math.isnan(history(client, run_id, "train/loss")[-1][1])
    assert len(history(client, run_id, "weight/group 24/erm-49")) == 1


def test_groups_whose_names_fall_together_stay_apart(tracker, client):
    run_id = tracker.student("aver", 0, {})
    odd = replace(metrics(0.5), groups={"<5": 0.25, ">5": 0.75, "a/b": 0.5, "..": 1.0})
    splits = {"val": odd, "test": odd}
    tracker.finish_student(run_id, replace(outcome(history=0), splits=splits))
    found = client.get_run(run_id).data.metrics
    groups = {name: value for name, value in found.items() if name.startswith("test/group")}
    assert groups == {
        "test/group/_5": 0.25,
        "test/group/_5-2": 0.75,
        "test/group/a/b": 0.5,
        "test/group/_": 1.0,
    }


def test_a_finished_student(tracker, client):
    trained, voted = tracker.student("agre_kd", 0, {}), tracker.student("teacher_vote", 0, {})
    tracker.log_epochs(trained, epochs(3))
    for _ in range(2):
        tracker.finish_student(trained, outcome())
    tracker.finish_student(voted, outcome("teacher_vote", history=0))
    run = client.get_run(trained)
    assert run.info.status == "FINISHED"
    assert run.data.tags["agrekd.checkpoint"] == "students/agre_kd-seed-0"
    assert run.data.metrics["test/group/aligned"] == 0.97
    assert run.data.metrics["val/worst_group_accuracy"] == pytest.approx(0.02)
    assert history(client, trained, "test/worst_group_accuracy") == [(0, 0.30)]
    assert client.get_run(voted).data.metrics["val/worst_group_accuracy"] == 0.28


@pytest.fixture(scope="module")
def logged(opened) -> tuple[str, str, Net]:
    """A student's run, its logged model's id, and the student."""
    opened.start_job("models", {}, {})
    run_id = opened.student("agre_kd", 0, {})
    opened.finish_student(run_id, outcome())
    torch.manual_seed(0)
    student = Net().train()
    return run_id, opened.log_model(run_id, student, EXAMPLE, CLASSES), student


@pytest.mark.usefixtures("reader")
def test_a_logged_model_loads_and_predicts_for_any_batch(logged):
    _, model_id, student = logged
    assert student.training
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    student.eval()
    for size in (1, 2, 7):
        inputs = np.random.default_rng(size).random((size, 3, 8, 8), dtype=np.float32)
        logits = loaded.predict(inputs)
        assert logits.shape == (size, 10)
        assert logits.dtype == np.float32
        expected = student(torch.from_numpy(inputs)).detach().numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    student.train()


@pytest.mark.usefixtures("reader")
def test_a_logged_model_says_what_it_is(logged, client):
    run_id, model_id, _ = logged
    model = client.get_logged_model(model_id)
    assert model.status == LoggedModelStatus.READY
    assert model.name == "agre_kd-seed-0"
    assert model.source_run_id == run_id
    assert {m.key: m.value for m in model.metrics}["test/worst_group_accuracy"] == 0.30
    info = mlflow.models.get_model_info(f"models:/{model_id}")
    assert info.metadata["classes"] == CLASSES
    assert info.signature.inputs.inputs[0].shape == (-1, 3, 8, 8)
    output = info.signature.outputs.inputs[0]
    assert (output.shape, output.type) == ((-1, 10), np.dtype(np.float32))
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    assert loaded.input_example.shape == (2, 3, 8, 8)
    run = client.get_run(run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model_id]
    assert history(client, run_id, "test/worst_group_accuracy") == [(0, 0.30)]


def test_a_model_is_logged_once(logged, opened):
    run_id, model_id, student = logged
    assert opened.log_model(run_id, student, EXAMPLE, CLASSES) == model_id


def test_logging_a_model_is_quiet_and_leaves_no_run_open(tracker, capfd):
    run_id = tracker.student("aver", 0, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        tracker.log_model(run_id, Net(), EXAMPLE, CLASSES)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert mlflow.active_run() is None


@pytest.mark.usefixtures("reader")
def test_large_and_integer_examples(tracker, client):
    run_id = tracker.student("ca_mkd", 0, {})
    pooled = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    large = np.zeros((4, 3, 224, 224))
    model_id = tracker.log_model(run_id, pooled, large, ["a", "b"])
    files = client.list_logged_model_artifacts(model_id)
    assert "input_example.json" not in {file.path for file in files}

    words = torch.nn.Sequential(
        torch.nn.Embedding(50, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    )
    run_id = tracker.student("govern", 0, {})
    model_id = tracker.log_model(run_id, words, np.zeros((3, 4), dtype=np.int64), ["a", "b"])
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    assert loaded.predict(np.ones((5, 4), dtype=np.int64)).shape == (5, 2)


def test_a_model_that_cannot_be_exported_is_an_error_and_nothing_more(tracker, client):
    run_id = tracker.student("random", 0, {})
    with pytest.raises(TrackingError, match="Branching cannot be exported"):
        tracker.log_model(run_id, Branching(), EXAMPLE, CLASSES)
    assert client.get_run(run_id).outputs.model_outputs == []
    assert tracker.log_model(run_id, Net(), EXAMPLE, CLASSES)


def test_a_finished_job_has_its_reports(tracker, client, tmp_path):
    job = tracker.start_job("job", {}, {})
    (tmp_path / "plots").mkdir()
    (tmp_path / "students" / "x").mkdir(parents=True)
    for name in ("results.json", "results.csv", "job.yaml", "plots/weights.png", ".draft.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "students" / "x" / "model.safetensors").write_text("x")
    summary = {"agre_kd/test/worst_group_accuracy/mean": 0.3}
    tracker.finish_job(job, tmp_path, summary, "**good**")
    tracker.finish_job(job, tmp_path, summary)
    run = client.get_run(job)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == summary
    assert run.data.tags["mlflow.note.content"] == "**good**"
    files = {file.path for file in client.list_artifacts(job)}
    assert files == {"results.json", "results.csv", "job.yaml", "plots"}
    assert [file.path for file in client.list_artifacts(job, "plots")] == ["plots/weights.png"]


def test_a_degraded_run_is_marked(tracker, client):
    whole, degraded = tracker.student("agre_kd", 0, {}), tracker.student("agre_kd", 1, {})
    tracker.finish_student(whole, outcome())
    first, *later = (replace(epoch, steps=10) for epoch in epochs(3))
    history = [first, *(replace(epoch, lost_steps={"erm-3": 4}) for epoch in later)]
    tracker.finish_student(degraded, replace(outcome(), seed=1, history=history))
    assert "agrekd.degraded" not in client.get_run(whole).data.tags
    tag = client.get_run(degraded).data.tags["agrekd.degraded"]
    assert tag == "without erm-3 for 8 of 30 steps, from epoch 2"


def test_failing_one_student_leaves_the_others(tracker, client):
    job = tracker.start_job("job", {}, {})
    bad, good = tracker.student("aver", 0, {}), tracker.student("aver", 1, {})
    tracker.fail(bad, "loss is not a number")
    assert client.get_run(bad).info.status == "FAILED"
    assert client.get_run(good).info.status == "RUNNING"
    assert client.get_run(job).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (None, "not a database"),
        ("runs/mlflow.db", "sqlite:///"),
        ("file:///tmp/mlruns", "sqlite:///"),
        ("http://127.0.0.1:9", "server answers"),
        ("nonsense://place", "nonsense://place"),
    ],
)
def test_a_store_that_cannot_be_used_says_what_to_do(tmp_path, uri, says):
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    with pytest.raises(TrackingError, match=says):
        MlflowTracker(uri, "digits", tmp_path)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(TrackingError, match="Check that the place exists"):
        MlflowTracker(None, "digits", tmp_path / "runs")


def test_a_deleted_experiment_says_how_to_take_it_back(store, opened, client):
    tracker = MlflowTracker(None, "thrown away", store)
    client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match=f"restore -x {tracker.experiment_id}"):
        MlflowTracker(None, "thrown away", store)


def test_a_run_that_vanished_is_a_tracking_error(tracker):
    with pytest.raises(TrackingError, match="log epochs"):
        tracker.log_epochs("0123456789abcdef0123456789abcdef", epochs(1))


def test_students_become_models_while_the_next_ones_train(make_job, monkeypatch):
    """In this process, as if it were on a cluster: only who trains elsewhere exports meanwhile."""
    job = make_job(methods=["aver", "agre_kd"])
    monkeypatch.setattr(job_module, "open_engine", LocalEngine)
    first = threading.Event()
    log, epoch = MlflowTracker.log_model, Student.epoch

    def logged(self, *given):
        found = log(self, *given)
        first.set()
        return found

    def trained(self, *given):
        assert self.spec.method == "aver" or first.wait(120)
        return epoch(self, *given)

    monkeypatch.setattr(MlflowTracker, "log_model", logged)
    monkeypatch.setattr(Student, "epoch", trained)
    screen = StringIO()
    run_job(RunFolder.create(job), Console(file=screen, width=120))
    assert "MLflow   0/2 models" not in screen.getvalue()
    assert "MLflow   2/2 models" in screen.getvalue()


def test_a_stopped_run_leaves_its_models_to_the_next_attempt(make_job, monkeypatch):
    job = make_job(methods=["aver", "govern", "agre_kd"])
    monkeypatch.setattr(job_module, "open_engine", LocalEngine)
    busy, stopped = threading.Event(), threading.Event()
    log, epoch, names = MlflowTracker.log_model, Student.epoch, []

    def logged(self, run_id, *given):
        names.append(run_id)
        if not stopped.is_set():
            busy.set()
            assert stopped.wait(120)
        return log(self, run_id, *given)

    def trained(self, *given):
        if self.spec.method == "agre_kd":
            assert busy.wait(120)
            raise KeyboardInterrupt
        return epoch(self, *given)

    write = RunFolder.write_state

    def written(self, state):
        write(self, state)
        if state.status == "interrupted":
            stopped.set()

    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "log_model", logged)
        patch.setattr(Student, "epoch", trained)
        patch.setattr(RunFolder, "write_state", written)
        folder = RunFolder.create(job)
        with pytest.raises(KeyboardInterrupt):
            run_job(folder, Console(quiet=True))
    assert len(names) == 1  # not that of `govern`, which was finished, too
    run_job(RunFolder.open(folder.path), Console(quiet=True))
    client = MlflowClient(f"sqlite:///{job.runs / 'mlflow.db'}")
    places = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(places, "tags.mlflow.parentRunId != ''")
    assert [len(run.outputs.model_outputs) for run in runs] == [1, 1, 1]
