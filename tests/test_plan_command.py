"""`agrekd plan` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import TINY, Run, merged

GIVEN = ("--forward-ms", 20, "--step-ms", 5)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    places = {name: str(tmp_path / name) for name in ("runs", "pool", "outputs")}
    changes = {
        "runs": places["runs"],
        "teachers.store": places["pool"],
        "outputs.store": places["outputs"],
        "methods": ["one_hot", "agre_kd"],
        "seeds": [0, 1],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, changes)))
    return path


def planned(agrekd: Run, job: Path, *words: object) -> dict[str, Any]:
    """The JSON of a plan that succeeds."""
    path = job.with_name("plan.json")
    code, _, err = agrekd("plan", job, *words, "--json", path)
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_plan_is_shown_and_nothing_is_started(agrekd: Run, job: Path, tmp_path: Path) -> None:
    code, out, err = agrekd("plan", job, *GIVEN)
    assert (code, err) == (0, "")
    for words in (
        "tiny: 3 teachers in 3 actors, 1 student worker",
        "Part of a live step",
        "Bottleneck of a live step: ",
        "What would help most",
        "live step (agre_kd)",
        "GB + activations",
        "h:min:s",
    ):
        assert words in out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_gpus_are_used_unless_they_are_declined(agrekd: Run, job: Path) -> None:
    """What the job leaves open is what `run` would have; two students find room side by side."""
    given = (*GIVEN, "--cpus", 64, "student.at_once=2")
    for gpus, student, teachers in ((0, 0, 0), (1, 0.3333, 0.1111), (2, 0.5, 0.3333), (8, 1, 1)):
        setup = planned(agrekd, job, *given, "--gpus", gpus)["setup"]
        assert (setup["student_gpus"], setup["actor_gpus"]) == (student, teachers), gpus
    alone = planned(agrekd, job, *given, "--gpus", 1, "student.at_once=1")["setup"]
    assert (alone["student_gpus"], alone["actor_gpus"]) == (0.5, 0.1666)
    two = planned(agrekd, job, *given, "--gpus", 1, "--nodes", 2, "student.workers=2")
    assert (two["setup"]["student_gpus"], two["setup"]["actor_gpus"]) == (1, 0.5)
    assert two["shortage"] is None  # teachers record before the students begin
    declined = ("student.gpus=0", "fleet.gpus=0", *given)
    assert (
        "2 of 2 GPUs stay idle: student.gpus = 0 declines them; fleet.gpus = 0 declines them"
        in agrekd("plan", job, *declined, "--gpus", 2)[1]
    )
    assert "idle:" not in agrekd("plan", job, *given, "--gpus", 2)[1]
    assert (
        "3 of 8 GPUs stay idle: more student.workers" in agrekd("plan", job, *given, "--gpus", 8)[1]
    )
    assert "idle:" not in agrekd("plan", job, *declined)[1]


def test_the_forecast_follows_the_job_and_the_machines(agrekd: Run, job: Path) -> None:
    found = planned(agrekd, job, *GIVEN, "--cpus", 64)
    setup = found["setup"]
    assert setup["strategies"] == ["agre_kd", "agre_kd"]
    assert (setup["plain"], setup["teachers"], setup["classes"]) == (2, 3, 10)
    assert setup["student_bytes"] > 1000
    assert found["recording"]["bytes"] == 1 * setup["hosted"] * 160 * 10 * 4
    assert found["step"]["ms"] == pytest.approx(20 + found["times"]["costs"]["host_ms"])
    assert found["step"]["bottleneck"] == "teachers"
    assert found["times"]["forward_ms"] == 20
    many = planned(
        agrekd,
        job,
        *GIVEN,
        "--nodes",
        40,
        "--gpus",
        8,
        "--cpus",
        64,
        "--classes",
        100_000,
        "--samples",
        1_000_000,
        "teachers.count=1000",
        "ensemble.size=1000",
        "student.workers=256",
        "student.training.batch_size=2048",
    )
    assert many["setup"]["teachers"] == 1000
    assert many["setup"]["weighting_actors"] == 256
    assert many["single"]["ms"] > 10 * many["step"]["ms"]
    assert many["shortage"].endswith("of memory are wanted on the fullest node, 64 are there")


def test_a_file_of_times_counts_after_the_options(agrekd: Run, job: Path, tmp_path: Path) -> None:
    times = tmp_path / "times.yaml"
    times.write_text("forward_ms: 300\nstep_ms: 5\ncosts: {call_ms: 7, weigh_ns: {agre_kd: 2}}\n")
    found = planned(agrekd, job, "--times", times, "--cpus", 64)
    assert found["times"]["forward_ms"] == 300
    assert found["step"]["parts"]["messages"] >= 7
    found = planned(agrekd, job, "--times", times, "--forward-ms", 2, "--cpus", 64)
    assert (found["times"]["forward_ms"], found["times"]["step_ms"]) == (2, 5)
    times.write_text("forward_ms: 300\nstep_ms: -5\ncosts: {call: 7}\n")
    code, _, err = agrekd("plan", job, "--times", times)
    assert code == 2
    assert "step_ms = -5: must be greater than 0" in err
    assert "costs.call = 7: unknown key" in err
    assert "Did you mean costs.call_ms?" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "forward_ms: is not known; give --forward-ms"),
        ((), "step_ms: is not known; give --step-ms"),
        ((*GIVEN, "--nodes", 0), "nodes = 0: must be greater than or equal to 1"),
        ((*GIVEN, "--gpus", -1), "gpus = -1: must be greater than or equal to 0"),
        ((*GIVEN, "--network-gbit", 0), "gbit = 0.0: must be greater than 0"),
        ((*GIVEN, "--disk-mb", "nan"), "disk_mb = nan: must be a finite number"),
        ((*GIVEN, "--forward-busy", 2), "forward_busy = 2.0: must be less than or equal to 1"),
        (("--forward-ms", -1, "--step-ms", 2), "forward_ms = -1.0: must be greater than"),
        ((*GIVEN, "--weighting-actors", 3), "--weighting-actors = 3: must be 1"),
        ((*GIVEN, "methods=[one_hot]"), "no method has teachers that distil"),
        ((*GIVEN, "guidance=local"), "has no actors to plan for; set guidance=auto or live"),
        ((*GIVEN, "student.worker=2"), "Did you mean student.workers?"),
        ((*GIVEN, "--samples", 10), "more than the 10 training samples"),
    ],
)
def test_impossible_values_are_named(
    agrekd: Run, job: Path, words: tuple[object, ...], told: str
) -> None:
    code, out, err = agrekd("plan", job, *words)
    assert (code, out) == (2, "")
    assert told in err


def test_a_json_file_that_cannot_be_written_is_told_first(agrekd: Run, job: Path) -> None:
    code, out, err = agrekd("plan", job, *GIVEN, "--json", job.parent / "none" / "plan.json")
    assert (code, out) == (1, "")
    assert "its folder does not exist; nothing was planned" in err


def test_data_that_are_not_here_may_be_given_in_numbers(agrekd: Run, tmp_path: Path) -> None:
    job = Path("jobs/paper/table2_waterbirds.yaml")
    places = [f"{key}={tmp_path}" for key in ("runs", "teachers.store", "outputs.store")]
    code, _, err = agrekd("plan", job, *GIVEN, *places)
    assert code == 2
    assert "--classes, --samples: stand for data that are not here; give both" in err
    words = (*GIVEN, *places, "--classes", 2, "--samples", 4795)
    code, out, err = agrekd("plan", job, *words, "--gpus", 8, "--json", tmp_path / "plan.json")
    assert (code, err) == (0, "")
    assert "this is one of its points" in out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["setup"]["views"] == 100  # a new one in every epoch
    assert found["setup"]["teacher_bytes"] > 90e6


@pytest.mark.chaos
def test_times_are_measured_here(agrekd: Run, job: Path, ray_session: Any) -> None:
    """The job's own models, and real actors."""
    found = planned(agrekd, job, "--measure")
    times, costs = found["times"], found["times"]["costs"]
    assert times["forward_ms"] > 0
    assert times["step_ms"] > 0
    assert times["inputs_ms"] > 0
    assert 0 < times["forward_busy"] <= 1
    assert costs["call_ms"] > 0
    assert costs["copy_gb"] > 0
    assert set(costs["weigh_ns"]) == {"agre_kd"}
    given = planned(agrekd, job, "--measure", "--forward-ms", 1000)
    assert given["times"]["forward_ms"] == 1000
