"""The planner: limits where the answer is known, directions that must hold, real message sizes."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agrekd_ray.capacity.costs import Costs, Times
from agrekd_ray.capacity.forecast import PARTS, PATH, Forecast, forecast
from agrekd_ray.capacity.placing import Machines
from agrekd_ray.capacity.plan import WORTH, advise, merged
from agrekd_ray.capacity.size import (
    COPIES,
    FLOAT,
    NAME,
    JobSize,
)
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.distillation import DistillationSpec, GradientRequest
from agrekd_ray.distillation.spec import combine_gradients, teacher_gradients

from .shared import told

FREE = Costs(
    call_ms=0,
    actor_ms=0,
    host_ms=0,
    backbone_ms=0,
    copy_gb=1e9,
    reply_ms=0,
    reply_ns=0,
    weigh_ms=0,
    seal_gb=1e9,
    start_s=0,
).model_copy(update={"weigh_ns": dict.fromkeys(STRATEGIES, 0.0)})
"""Nothing between student and teachers takes any time."""
ROOMY = Machines(nodes=1, cpus=4096, memory_gb=1e9, gbit=1e9, latency_us=0, disk_mb=1e12)


def job(teachers: int = 8, **changes: Any) -> JobSize:
    """Of teachers on GPUs, each with an actor of its own."""
    values: dict[str, Any] = {
        "strategies": ("agre_kd",),
        "plain": 0,
        "at_once": 1,
        "members": teachers,
        "name_bytes": 8 * teachers,
        "teachers": teachers,
        "hosted": teachers,
        "backbones": teachers,
        "batch": 64,
        "workers": 1,
        "classes": 10,
        "samples": 6400,
        "evaluated": 0,
        "epochs": 4,
        "views": 1,
        "look_ahead": 2,
        "backbones_per_actor": 1,
        "actor_gpus": 1,
        **changes,
    }
    return JobSize(**values)


def step_of(setup: JobSize, machines: Machines = ROOMY, times: Times | None = None) -> Forecast:
    times = times or Times(forward_ms=20, step_ms=5, costs=FREE)
    return whole(dataclasses.replace(setup, weighting_actors=1), machines, times)


def whole(setup: JobSize, machines: Machines = ROOMY, times: Times | None = None) -> Forecast:
    times = times or Times(forward_ms=20, step_ms=5)
    return forecast(setup, machines.model_copy(update={"gpus": 1000}), times)


def test_one_teacher_and_nothing_between_takes_the_longer_of_the_two() -> None:
    assert step_of(job(1)).ms == pytest.approx(20)
    slow = Times(forward_ms=20, step_ms=50, costs=FREE)
    assert step_of(job(1), times=slow).ms == pytest.approx(50)
    assert step_of(job(1)).step["teacher_idle"] == pytest.approx(0)
    assert step_of(job(1), times=slow).step["teacher_idle"] == pytest.approx(0.6)
    assert step_of(job(1)).step["student_waits"] == pytest.approx(0.75)


def test_without_look_ahead_teachers_and_student_take_turns() -> None:
    step = step_of(job(1, look_ahead=0))
    assert step.ms == pytest.approx(25)
    assert step.step["teacher_idle"] == pytest.approx(0.2)
    assert sum(step.step["shares"].values()) == pytest.approx(1)
    assert step.step["shares"]["teachers"] == pytest.approx(0.8)


def test_the_round_trip_adds_to_the_students_step_alone() -> None:
    """With look-ahead it is hidden behind slow teachers, and seen behind fast ones."""
    costs = FREE.model_copy(update={"call_ms": 2.0, "actor_ms": 1.0})
    fast = Times(forward_ms=1, step_ms=5, costs=costs)
    assert step_of(job(8), times=fast).ms == pytest.approx(5 + 2 + 7)
    assert step_of(job(8), times=fast).step["bottleneck"] == "messages"
    slow = Times(forward_ms=100, step_ms=5, costs=costs)
    assert step_of(job(8), times=slow).ms == pytest.approx(100, rel=1e-3)
    assert step_of(job(8), times=slow).step["bottleneck"] == "teachers"


def test_a_shared_actor_takes_turns_unless_its_backbones_sleep() -> None:
    shared = job(8, backbones_per_actor=8)
    times = Times(forward_ms=20, step_ms=5, costs=FREE)
    assert step_of(shared, times=times).ms == pytest.approx(160)
    asleep = times.model_copy(update={"forward_busy": 0})
    assert step_of(shared, times=asleep).ms == pytest.approx(160)
    at_once = dataclasses.replace(shared, concurrent=8)
    assert step_of(at_once, times=asleep).ms == pytest.approx(20)
    assert step_of(at_once, times=times).ms == pytest.approx(160)


def test_teachers_without_a_gpu_share_the_cores() -> None:
    few = Machines(cpus=4)
    times = Times(forward_ms=20, step_ms=5, costs=FREE)
    setup = job(8, actor_gpus=0)
    step = forecast(setup, few, times)
    assert step.ms == pytest.approx((8 * 20 + 5) / 4, rel=1e-3)
    assert step.step["bottleneck"] == "cores"
    assert step.step["shares"] == {"cores": 1.0}


def test_a_gpu_is_filled_before_the_next() -> None:
    times = Times(forward_ms=20, step_ms=5)
    placed = forecast(job(8, actor_gpus=0.25), Machines(nodes=1, gpus=4), times)
    assert placed.placing.actors_per_gpu == 4
    assert placed.shortage is None
    few = forecast(job(8, actor_gpus=1), Machines(nodes=1, gpus=4), times)
    assert few.placing.actors_per_gpu == 2
    assert few.shortage == "8 GPUs are wanted, 4 are there"
    spread = forecast(job(8, actor_gpus=0.25), Machines(nodes=4, gpus=1), times)
    at = spread.placing
    assert (at.actors_here, at.actors_per_gpu, at.far) == (2, 2, 0.75)


def test_an_infinite_bandwidth_leaves_what_is_computed() -> None:
    large = job(50, classes=10_000, batch=256, samples=25_600)
    machines = Machines(nodes=10, cpus=64, gbit=10, latency_us=0)
    times = Times(forward_ms=20, step_ms=50, costs=FREE)
    slow = step_of(large, machines, times)
    assert slow.step["bottleneck"] == "network"
    # 9 of 10 nodes send their teachers' gradients over one link of 10 Gbit/s
    sent = 0.9 * 50 * 256 * 10_000 * 4
    assert slow.step["parts"]["network"] == pytest.approx(1e3 * sent / 1.25e9, rel=1e-3)
    endless = step_of(large, machines.model_copy(update={"gbit": 1e12}), times)
    assert endless.ms == pytest.approx(50, rel=1e-3)
    assert endless.step["bottleneck"] == "student"


@settings(max_examples=60, deadline=None)
@given(
    teachers=st.integers(1, 1000),
    workers=st.sampled_from([1, 2, 16, 256]),
    classes=st.sampled_from([2, 10, 1000, 100_000]),
    ahead=st.integers(0, 4),
    nodes=st.integers(1, 64),
    strategy=st.sampled_from(sorted(STRATEGIES)),
    forward=st.floats(0, 1e3),
)
def test_more_of_anything_never_takes_less(
    teachers: int,
    workers: int,
    classes: int,
    ahead: int,
    nodes: int,
    strategy: str,
    forward: float,
) -> None:
    setup = job(
        teachers,
        workers=workers,
        classes=classes,
        look_ahead=ahead,
        strategies=(strategy,),
        batch=512,
        samples=51_200,
        student_bytes=10**7,
    )
    machines = Machines(nodes=nodes, cpus=32)
    times = Times(forward_ms=forward, step_ms=5)
    found = whole(setup, machines, times)
    step = found
    assert 0 <= step.step["teacher_idle"] <= 1
    assert 0 <= step.step["student_waits"] < 1
    assert sum(step.step["shares"].values()) == pytest.approx(1)
    assert step.step["bottleneck"] in PARTS
    assert step.ms >= max(step.step["parts"]["student"], step.step["parts"]["teachers"])
    assert found.bottleneck in PARTS
    assert found.seconds > 0
    one = dict.fromkeys(("members", "teachers", "hosted", "backbones"), teachers + 1)
    more = (
        dataclasses.replace(setup, name_bytes=8 * (teachers + 1), **one),  # type: ignore[arg-type]
        dataclasses.replace(setup, classes=2 * classes),
    )
    alone = step_of(setup, machines, times).memory["weighting_actor"]
    for other in more:
        # a node fewer far from the weighting actor may outweigh an actor more
        assert step_of(other, machines, times).ms >= step_of(setup, machines, times).ms * 0.97
        # with one weighting actor: a plan that chooses more of them gives each of them less
        assert step_of(other, machines, times).memory["weighting_actor"] > alone
    if workers > 1:
        fewer = dataclasses.replace(setup, workers=workers // 2)
        same_part = dataclasses.replace(fewer, batch=setup.batch // 2)
        assert step_of(setup, machines, times).ms >= step_of(same_part, machines, times).ms


def test_the_bottleneck_moves_where_it_must() -> None:
    costs = Costs(weigh_ns={"agre_kd": 40.0})
    times = Times(forward_ms=1, step_ms=5, costs=costs)
    cases = {
        "student": (job(1), times.model_copy(update={"step_ms": 50})),
        "teachers": (job(8), times.model_copy(update={"forward_ms": 500})),
        "messages": (job(200), times),
        "weighting": (job(50, classes=1000), times),
        "bytes": (
            job(50, classes=1000),
            times.model_copy(update={"costs": costs.model_copy(update={"copy_gb": 0.01})}),
        ),
        "gradients": (
            job(50, classes=1000, backbones_per_actor=50),
            times.model_copy(update={"costs": costs.model_copy(update={"reply_ns": 1000.0})}),
        ),
    }
    for name, (setup, given_times) in cases.items():
        assert step_of(setup, times=given_times).step["bottleneck"] == name
    slow_disk = ROOMY.model_copy(update={"disk_mb": 0.01, "memory_gb": 64})
    found = whole(job(8, classes=1000), slow_disk, times)
    assert found.recording is not None
    assert (found.recording["bottleneck"], found.bottleneck) == ("disk", "disk")


def test_a_weighting_actor_for_each_worker_is_chosen_where_one_holds_up_the_step() -> None:
    large = job(50, workers=8, classes=1000, batch=512, samples=51_200)
    found = whole(large)
    assert found.size.weighting_actors == 8
    assert found.single is not None
    assert found.single.step["bottleneck"] == "weighting"
    one, several = found.single.step["parts"]["weighting"], found.step["parts"]["weighting"]
    assert one / several == pytest.approx(8, rel=0.01)
    assert found.ms < found.single.ms / 3
    batchwise = dataclasses.replace(large, strategies=("ae_kd",))
    assert whole(batchwise).size.weighting_actors == 1
    weighted = dataclasses.replace(large, sample_weighting=True)
    assert whole(weighted).size.weighting_actors == 1
    slow = Times(forward_ms=1e5, step_ms=5)
    assert whole(large, times=slow).size.weighting_actors == 1


def test_recording_and_the_whole_job_in_figures() -> None:
    times = Times(forward_ms=20, step_ms=5, inputs_ms=4, costs=FREE)
    setup = job(8, strategies=("agre_kd",) * 3, plain=2, views=2, epochs=4)
    found = whole(setup, times=times)
    recording = found.recording
    assert recording is not None
    assert recording["bytes"] == 2 * 8 * 6400 * 10 * 4
    assert recording["peak_bytes"] == 3 * 8 * 6400 * 10 * 4
    assert recording["seconds"] == pytest.approx(2 * 100 * 0.024, rel=1e-3)
    assert found.whole["live"] == pytest.approx(2 * 100 * 0.024, rel=1e-3)
    assert found.whole["replayed"] == pytest.approx((3 * 4 - 2) * 100 * 0.005, rel=1e-3)
    assert found.whole["plain"] == pytest.approx(2 * 4 * 100 * 0.005)
    assert sum(found.spent.values()) == pytest.approx(found.seconds)
    live = whole(dataclasses.replace(setup, records=False), times=times)
    assert live.recording is None
    assert live.whole["live"] == pytest.approx(3 * 4 * 100 * 0.024, rel=1e-3)
    auto = dataclasses.replace(setup, at_once=None)
    for side, start_s, cpus in ((5, 0, 4096), (3, 0, 3), (4, 0.6, 4096), (1, 100, 4096)):
        machines = ROOMY.model_copy(update={"cpus": cpus})
        costs = FREE.model_copy(update={"start_s": start_s})
        slow = times.model_copy(update={"costs": costs})
        alone, shared = (whole(given, machines, slow) for given in (setup, auto))
        assert shared.whole["live"] == alone.whole["live"]
        for part in ("replayed", "plain"):
            assert shared.whole[part] == pytest.approx(alone.whole[part] / side)
        assert sum(shared.spent.values()) == pytest.approx(shared.seconds - start_s)
    half = whole(dataclasses.replace(setup, dtype="float16"), times=times)
    assert half.recording is not None
    assert half.recording["bytes"] == recording["bytes"] / 2


def test_memory_counts_weights_kept_logits_and_held_gradients() -> None:
    costs = Costs(process_mb=0)
    times = Times(forward_ms=20, step_ms=5, costs=costs)
    setup = job(4, classes=10_000, teacher_bytes=10**8, backbones_per_actor=2)
    memory = whole(setup, times=times).memory
    numbers = 64 * 10_000 * 4
    assert memory["teacher_weights"] == 2 * 10**8
    kept = (2 + 2) * 2 * 2 * numbers
    assert memory["teacher_actor"] == pytest.approx(
        2 * 10**8 + kept + numbers + 4 * numbers, rel=0.01
    )
    assert memory["weighting_actor"] > 5 * numbers
    assert memory["object_store"] == pytest.approx(7 * numbers, rel=0.01)
    assert whole(job(4), times=times).memory["object_store"] == 0
    small = ROOMY.model_copy(update={"memory_gb": 0.1})
    shortage = whole(setup, small, times).shortage
    assert shortage is not None
    assert "memory are wanted on the fullest node" in shortage


def test_advice_names_what_helps_and_what_it_brings() -> None:
    times = Times(forward_ms=500, step_ms=5, costs=FREE)
    setup = job(8, backbones_per_actor=8, records=False)
    room = ROOMY.model_copy(update={"gpus": 1000})
    found = forecast(setup, room, times)
    advice = advise(found, setup)
    assert any("guidance=auto" in change for change, _ in advice)
    (more,) = [after for change, after in advice if "backbones_per_actor=4" in change]
    assert more.ms == pytest.approx(found.ms / 2, rel=0.01)
    assert more.seconds < found.seconds


@pytest.mark.parametrize("cpus", [2, 4, 16])
@pytest.mark.parametrize("hosted", [2, 5, 10])
def test_no_advice_makes_one_thing_slower_for_another_that_is_short(cpus: int, hosted: int) -> None:
    """Small teachers on a small machine: messages cost more than forward passes."""
    times = Times(forward_ms=5, step_ms=16)
    setup = job(10, backbones_per_actor=hosted, actor_gpus=0, samples=1000, epochs=15)
    room = Machines(nodes=1, cpus=cpus, memory_gb=16)
    found = forecast(setup, room, times)
    for change, after in advise(found, setup, most=50):
        if after.seconds > WORTH * found.seconds:
            assert after.ms <= 1.01 * found.ms, change


@pytest.mark.parametrize("strategy", ["agre_kd", "ca_mkd", "agre_kd_guarded"])
@pytest.mark.parametrize(
    ("teachers", "samples", "classes", "ahead"),
    [
        (1, 8, 2, 0),
        (5, 64, 10, 2),
        (32, 128, 1000, 4),
        (300, 16, 10, 2),
    ],
)
def test_messages_are_as_large_as_the_real_ones(
    strategy: str, teachers: int, samples: int, classes: int, ahead: int
) -> None:
    """The real arrays, pickled as messages are."""
    names = tuple(f"erm-{number}" for number in range(teachers))
    spec = told(DistillationSpec(strategy, names, names[0], 4.0), classes)
    ids = np.arange(samples)
    coming = tuple((0, ids + n) for n in range(ahead))
    logits_BC = np.random.default_rng(0).normal(size=(samples, classes)).astype(np.float32)
    request = GradientRequest(spec, 3, 0, ids, logits_BC, coming)

    class Labelled:
        def labels(self, ids: np.ndarray) -> torch.Tensor:
            return torch.zeros(len(ids), dtype=torch.int64)

    logits_mBC = torch.randn(teachers, samples, classes)
    reply = teacher_gradients(request, names, logits_mBC, Labelled())  # type: ignore[arg-type]
    answer = combine_gradients(request, [reply])
    size = job(
        teachers,
        strategies=(strategy,),
        name_bytes=sum(len(name) + NAME for name in names),
        backbones_per_actor=teachers,
        batch=samples,
        classes=classes,
        look_ahead=ahead,
    )
    for counted, real in (
        (size.traffic.request, request),
        (size.traffic.replies, reply),
        (size.traffic.answer, answer),
    ):
        assert counted == pytest.approx(len(pickle.dumps(real, protocol=5)), rel=0.005, abs=60)


PEAK = """
import re, torch
from pathlib import Path
from agrekd_ray.distillation.spec import combine_gradients
from agrekd_ray.capacity.measure import request_of, replies_to

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
small = request_of("agre_kd", 4, 8, 10)
combine_gradients(small, [replies_to(small)])
request = request_of("agre_kd", 8, 64, 8000)
told = [replies_to(request)]
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
combine_gradients(request, told)
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_weighing_takes_at_its_peak_what_is_forecast() -> None:
    """In a process of its own, whose peak is its own, and which gives back what it frees."""
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    ended = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=given
    )
    assert int(ended.stdout) == pytest.approx(COPIES * FLOAT * 8 * 64 * 8000, rel=0.2)


def test_what_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Times(forward_ms=1, step_ms=0)
    with pytest.raises(ValueError, match="agre_kdd is no strategy"):
        Costs.model_validate({"weigh_ns": {"agre_kdd": 3}})
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert set(PATH) < set(PARTS)
