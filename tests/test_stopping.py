"""Ways in which a run is stopped, or loses whoever reads its output."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from agrekd_ray.config import Job
from agrekd_ray.errors import TrackingError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from agrekd_ray.experiment.study import run_study
from agrekd_ray.search.driver import run_search
from agrekd_ray.search.folder import SearchFolder
from agrekd_ray.stops import STOPS
from agrekd_ray.tracking.mlflow_experiment import Experiment

from .shared import AGREKD, under_way, until
from .test_run import write_job
from .test_search_space import planned

WAITS = """
import sys, threading
from agrekd_ray import cli
@cli.teachers.command("wait")
def wait():
    print("up", flush=True)
    threading.Event().wait()
sys.argv = ["agrekd", "teachers", "wait"]
cli.main()
"""
SENDS_HANGUP = 'import os, signal; os.kill(os.getpid(), signal.SIGHUP); print("still here")'


def waiting(*before: str, **settings: Any) -> subprocess.Popen[str]:
    """A process of the command line that is up, and waits."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.parametrize("name", [*STOPS, "SIGINT"])
def test_every_signal_that_would_end_it_is_an_interruption(name: str) -> None:
    process = waiting()
    process.send_signal(signal.Signals[name])
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "interrupted\n")


def test_what_was_ignored_before_stays_ignored() -> None:
    process = waiting("nohup")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    done = subprocess.run(
        ["nohup", sys.executable, "-c", WAITS.replace("threading.Event().wait()", SENDS_HANGUP)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "up\nstill here\n")


def relatives(mark: str) -> list[int]:
    """Processes that were started by one with this mark in its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("guidance", ["local", "auto"])
def test_a_run_whose_terminal_is_closed_is_interrupted_and_leaves_nothing_behind(
    tmp_path: Path, store: Path, guidance: str
) -> None:
    job = write_job(tmp_path, store, **{"student.training.epochs": 5000, "guidance": guidance})
    mark = f"AGREKD_TEST={uuid.uuid4().hex}"
    driver = subprocess.Popen(
        [*AGREKD, "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **dict([mark.split("=")])},
    )
    run = tmp_path / "runs/tiny/latest"
    until(lambda: under_way(run), driver, lambda: driver.communicate()[0])
    for _ in range(2):  # once by the shell, once by the kernel
        driver.send_signal(signal.SIGHUP)
    screen, _ = driver.communicate()
    assert driver.returncode == 130, screen
    assert f"Interrupted. To go on where it stopped: agrekd resume {run.resolve()}" in screen
    assert "Traceback" not in screen
    state = json.loads((run / "state.json").read_text())
    assert (state["status"], state["reason"]) == ("interrupted", "stopped by SIGHUP")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert client.get_run(state["tracking_run"]).info.status == "KILLED"
    until(lambda: not relatives(mark))  # what ends takes its time


EARLY = {
    "MLflow is opened": "__init__",
    "its run is made": "create",
    "its run has been made": "set_tags",
}
"""Moments of a run's beginning, and what of `Experiment` is at work then."""


@pytest.mark.parametrize("kind", ["job", "study", "search"])
@pytest.mark.parametrize("moment", EARLY)
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), ("interrupted", "stopped by the user")),
        (ValueError("no answer"), ("failed", "no answer")),
    ],
)
def test_what_ends_a_run_before_it_has_begun_is_told(
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    moment: str,
    error: BaseException,
    state: tuple[str, str],
) -> None:
    folder: RunFolder | SearchFolder
    if kind == "search":
        folder = SearchFolder.create(planned(tmp_path))
    else:
        points = {"sweep": {"distillation.temperature": [2, 4]}} if kind == "study" else {}
        folder = RunFolder.create(make_job(guidance="local", **points))

    def ended(*_: Any, **__: Any) -> None:
        patch.undo()
        raise error

    def go() -> None:
        if isinstance(folder, SearchFolder):
            run_search(folder, Console(quiet=True))
        else:
            {"job": run_job, "study": run_study}[kind](folder, Console(quiet=True))

    patch = monkeypatch
    patch.setattr(Experiment, EARLY[moment], ended)
    with pytest.raises(type(error)):
        go()
    told = folder.state()
    assert (told.status, told.reason) == state
    if moment == "its run has been made":
        assert told.tracking_run is not None
        client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
        run = client.get_run(told.tracking_run)
        assert run.info.status == ("KILLED" if state[0] == "interrupted" else "FAILED")
        assert run.data.tags["agrekd.reason"] == state[1]


def test_a_finished_run_stays_finished_when_a_later_look_at_it_fails(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, None)  # type: ignore[arg-type]
    folder.update(status="finished")
    with pytest.raises(OSError, match="data have gone"), folder.claimed():
        raise OSError("data have gone")
    assert (folder.state().status, folder.state().reason) == ("finished", None)


@pytest.mark.parametrize("moment", ["MLflow is opened", "its run is looked up"])
def test_a_finished_run_stays_finished_when_mlflow_is_away(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    job = make_job(guidance="local", methods=["one_hot"], **{"tracking.models": False})
    folder = RunFolder.create(job)
    run_job(folder, Console(quiet=True))
    before = folder.state()
    assert before.status == "finished"

    def away(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        raise ConnectionError("no answer")

    name = {**EARLY, "its run is looked up": "lookup"}[moment]
    monkeypatch.setattr(Experiment, name, away)
    with pytest.raises((ConnectionError, TrackingError)):
        run_job(RunFolder.open(folder.path), Console(quiet=True))
    assert folder.state() == before
    client = MlflowClient(f"sqlite:///{job.runs}/mlflow.db")
    assert client.get_run(str(before.tracking_run)).info.status == "FINISHED"


def reader_ends(command: list[str]) -> tuple[int, str]:
    """`command | head -1`."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=0
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    return process.wait(), err


def terminal_goes(command: list[str]) -> tuple[int, str]:
    """Standard output and error to a terminal that is closed, which has sent no signal."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    os.read(master, 1)
    os.close(master)
    return process.wait(), ""


def test_a_terminal_that_goes_takes_both_streams(tmp_path: Path) -> None:
    program = (
        "import sys; from agrekd_ray.streams import outlive_readers, say_when_lost;"
        "outlive_readers(); say_when_lost('It goes on.'); print('begun', flush=True);"
        "[stream.reconfigure(line_buffering=True) for stream in (sys.stdout, sys.stderr)];"
        f"sys.stdin.read(); print('lost', flush=True); open({str(tmp_path / 'end')!r}, 'w').close()"
    )
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    os.read(master, 1)
    os.close(master)
    process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "end").exists()


def redirected(how: str) -> Callable[[list[str]], tuple[int, str]]:
    """As a shell does it."""

    def run(command: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {how}', "sh", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize(
    ("loses", "said"),
    [
        (reader_ends, "The standard output is lost (Broken pipe). It goes on: "),
        (terminal_goes, ""),
        (redirected(">&-"), ""),
        (redirected(">&- 2>&- <&-"), ""),
        (redirected(">/dev/full"), "The standard output is lost (No space left on device). It"),
        (redirected(">/dev/full 2>&1"), ""),
    ],
)
def test_a_run_without_a_reader_goes_on(
    tmp_path: Path,
    store: Path,
    loses: Callable[[list[str]], tuple[int, str]],
    said: str,
) -> None:
    job = write_job(tmp_path, store, guidance="local", methods=["one_hot"])
    code, err = loses([*AGREKD, "run", str(job)])
    assert (code, err[: len(said)]) == (0, said), err
    assert len(err.splitlines()) == bool(said), err
    state = json.loads((tmp_path / "runs/tiny/latest/state.json").read_text())
    assert state["status"] == "finished"
    assert state["reason"] is None


def test_a_short_command_whose_reader_has_enough_says_nothing(tmp_path: Path, store: Path) -> None:
    job = write_job(tmp_path, store)
    assert reader_ends([*AGREKD, "validate", str(job)]) == (0, "")
    code, err = redirected(">/dev/full")([*AGREKD, "validate", str(job)])
    assert err == "The standard output is lost (No space left on device).\n"
    assert code == 0
