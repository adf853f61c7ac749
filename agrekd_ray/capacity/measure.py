"""Times of a job's own models, of weighing, and of requests to a fleet, taken on this machine."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from agrekd_ray.capacity.costs import Costs
from agrekd_ray.capacity.size import JobSize
from agrekd_ray.cluster.fleet_settings import FleetSettings
from agrekd_ray.cluster.session import here
from agrekd_ray.config import Job
from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.quadratic import shortest_mixture
from agrekd_ray.data import TRAIN, Dataset, open_dataset
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.devices import device_of
from agrekd_ray.distillation import DistillationSpec, GradientRequest, TeacherGradients
from agrekd_ray.distillation.spec import combine_gradients
from agrekd_ray.fleet.fleet import Fleet
from agrekd_ray.models import Classifier, Manifest, Model, build, save
from agrekd_ray.numerics import computing_in, numbers_on, training_kernels
from agrekd_ray.settings import Precision, Training, fingerprint
from agrekd_ray.training import Labels, Loader, Trainer

WARM, COUNTED = 2, 7
SMALL, LARGE = (8, 64, 10), (8, 64, 2000)
"""Teachers, samples and classes at which weighing is timed."""
PROGRAMME = 256
"""Teachers for whom AE-KD's quadratic programme is timed."""
TEMPERATURE = 4.0
CPU = torch.device("cpu")
STRATEGY = "agre_kd"
ACTORS, DEEP, SLEEP_MS = 3, 4, 1
"""The fleet that is measured: actors, teachers of each, and how long a teacher sleeps."""
ASKED = 15
"""Requests of a round, whose mean counts, as the mean of an epoch's steps does."""
LARGE_MESSAGE = 4_000_000
"""Numbers of a message that shows what its bytes cost, float32."""


def model_times(job: Job, dataset: Dataset, size: JobSize) -> dict[str, float]:
    """What `Times` needs to know of a job's student, teachers and data; on this machine's devices.

    Weights are fresh: costs do not depend on them.

    Args:
        job: the job.
        dataset: its data.
        size: of the job.
    """
    fleet, student = job.fleet, job.student
    threads = max(1, int(fleet.cpus or 1))
    ids = np.resize(dataset.splits[TRAIN], size.batch)
    inputs_ms = reading_ms(dataset, ids, threads)
    teaching = torch.device(device_of(fleet.gpus, "fleet.gpus"))
    learning = torch.device(device_of(student.gpus, "student.gpus"))
    each = [
        forward_times(model, dataset, ids, teaching, fleet.precision, threads)
        for model in (job.teachers.model, *job.teachers.others)
    ]
    with _threads(max(1, int(student.cpus))):
        step_ms = student_step(student.model, dataset, student.training, size.part, learning)
    return {
        "forward_ms": statistics.mean(wall for wall, _ in each),
        "forward_busy": statistics.mean(busy for _, busy in each),
        "inputs_ms": inputs_ms,
        "step_ms": step_ms,
    }


def student_step(
    model: Model, dataset: Dataset, training: Training, samples: int, device: torch.device
) -> float:
    """Milliseconds of a training step on labels alone."""
    settings = training.model_copy(update={"batch_size": samples, "epochs": 1_000})
    built = build(model, dataset.shape, len(dataset.classes), 0).to(device)
    trainer = Trainer(built, dataset, settings, Labels(), seed=0, loader=Loader(dataset, device))
    built.train()
    steps = trainer.loaded(map(trainer.plan.batch, range(len(trainer.plan))))
    kernels = training_kernels(device, deterministic=training.deterministic)
    with contextlib.closing(steps), kernels:
        return timed(lambda: trainer.step(*next(steps)), device)[0]


def reading_ms(dataset: Dataset, ids: np.ndarray, threads: int = 1) -> float:
    """Milliseconds in which a teachers' actor reads a batch."""
    with _threads(threads):
        return timed(lambda: dataset.inputs(ids, 0))[0]


def forward_times(
    model: Model,
    dataset: Dataset,
    ids: np.ndarray,
    device: torch.device = CPU,
    precision: Precision = "auto",
    threads: int = 1,
) -> tuple[float, float]:
    """Milliseconds of a forward pass as a `TeacherHost` makes it, and how busy its device is.

    Args:
        model: fresh weights of it.
        dataset: the data.
        ids: of the batch.
        device: that it is put on.
        precision: of the pass.
        threads: of a pass without a GPU.
    """
    built = build(model, dataset.shape, len(dataset.classes), 0).to(device).eval()
    inputs = dataset.inputs(ids, 0).to(device)
    if inputs.ndim == 4:
        built = built.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    numbers = numbers_on(precision, device)

    @torch.inference_mode()
    def forward() -> None:
        with computing_in(numbers, device):
            built(inputs).float().cpu()

    with _threads(threads):
        wall, cores = timed(forward, device)
    return wall, 1.0 if device.type == "cuda" else min(1.0, cores / wall / threads)


def weighing_costs(strategies: Collection[str]) -> dict[str, Any]:
    """What `Costs` needs to know of weighing and of the teachers' gradients."""

    def weighing_of(strategy: str, *size: int) -> Callable[[], object]:
        request = request_of(strategy, *size)
        return partial(combine_gradients, request, [replies_to(request)])

    def reply_of(*size: int) -> Callable[[], object]:
        return partial(kd_gradient, torch.randn(size[1:]), torch.randn(size), TEMPERATURE)

    with _threads(1):
        reply_ms, reply_ns = _line(reply_of)
        lines = {name: _line(partial(weighing_of, name)) for name in sorted(strategies)}
        costs: dict[str, Any] = {
            "reply_ms": reply_ms,
            "reply_ns": reply_ns,
            "weigh_ms": statistics.median(fixed for fixed, _ in lines.values()),
            "weigh_ns": {name: slope for name, (_, slope) in lines.items()},
        }
        if "ae_kd" in lines:
            vectors_MC = torch.randn(PROGRAMME, 100, dtype=torch.float64)
            gram_MM = vectors_MC @ vectors_MC.T
            milliseconds = timed(lambda: shortest_mixture(gram_MM, 0.6))[0]
            costs["programme_us"] = 1e3 * milliseconds / PROGRAMME**2
    return costs


def timed(
    work: Callable[[], object], device: torch.device = CPU, times: int = 1
) -> tuple[float, float]:
    """Milliseconds of some work and of the process's cores meanwhile: medians over rounds.

    Args:
        work: that is timed.
        device: that it uses; it has ended when that has.
        times: that it is done in a round, whose mean counts.
    """
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    walls, cores = [], []
    for _ in range(WARM + COUNTED):
        wait()
        start, used = time.perf_counter(), time.process_time()
        for _ in range(times):
            work()
        wait()
        walls.append(1e3 * (time.perf_counter() - start) / times)
        cores.append(1e3 * (time.process_time() - used) / times)
    return statistics.median(walls[WARM:]), statistics.median(cores[WARM:])


def _line(work_of: Callable[[int, int, int], Callable[[], object]]) -> tuple[float, float]:
    """Milliseconds of work at no numbers, and nanoseconds for each, through the two sizes."""
    small, large = (timed(work_of(*size), times=10)[0] for size in (SMALL, LARGE))
    few, many = (math.prod(size) for size in (SMALL, LARGE))
    slope = max(0.0, large - small) / (many - few)
    return max(0.0, small - slope * few), 1e6 * slope


def request_of(strategy: str, teachers: int, samples: int, classes: int) -> GradientRequest:
    """A request with a student's random logits, to teachers `teacher-0`, ..."""
    names = tuple(f"teacher-{number}" for number in range(teachers))
    spec = DistillationSpec(strategy, names, names[0], TEMPERATURE)
    spec = spec.informed(lambda *_: ((0.5,) * classes,) * teachers)
    logits_BC = torch.randn(samples, classes).numpy()
    return GradientRequest(spec, 0, 0, np.arange(samples), logits_BC)


def replies_to(request: GradientRequest) -> TeacherGradients:
    """What teachers with random logits reply."""
    names = request.spec.members
    logits_mBC = torch.randn(len(names), *request.logits_BC.shape)
    gradients_mBC = kd_gradient(torch.from_numpy(request.logits_BC), logits_mBC, TEMPERATURE)
    entropy_mB = torch.rand(len(names), len(request.ids)).numpy()
    asked = request.spec.cross_entropy
    return TeacherGradients(names, gradients_mBC.numpy(), entropy_mB if asked else None)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Echo:
    """An actor that only answers."""

    def back(self, numbers: np.ndarray) -> np.ndarray:
        """The same numbers."""
        return numbers


@contextmanager
def calibration() -> Iterator[Callable[[Costs, int], dict[str, float]]]:
    """A real fleet whose teachers sleep for a millisecond, while the block runs.

    Its three actors answer for one teacher, for three in three actors, and for four in one. It
    needs a Ray session.

    Yields:
        What asks the fleet, as often as one likes, and says what `Costs` needs to know of calls, of
        teachers' processes and of messages' bytes; its arguments are the costs of weighing here,
        which are taken off, and the samples of a request.
    """
    settings = ColoredDigits(name="colored_digits", train=512, val=100)
    data = open_dataset(settings)
    model = Model(name="delayed", args={"milliseconds": SLEEP_MS})
    hosts = {"backbones_per_actor": DEEP, "concurrent": DEEP, "cpus": 0.01, "gpus": 0}
    hosting = FleetSettings.model_validate({**hosts, "look_ahead": 0})
    with tempfile.TemporaryDirectory(prefix="agrekd-plan-") as folder:
        checkpoints = make_teachers(Path(folder), data, model, ACTORS * DEEP)
        with contextlib.closing(Fleet(checkpoints, settings, hosting, lambda event: None)) as fleet:
            yield partial(_between, fleet, tuple(checkpoints), data, itertools.count())


def _between(
    fleet: Fleet,
    names: tuple[str, ...],
    data: Dataset,
    views: Iterator[int],
    costs: Costs,
    samples: int,
) -> dict[str, float]:
    """As `calibration` says; every request is of another view, so that no answer is there."""
    ids, classes, source = np.resize(data.splits[TRAIN], samples), len(data.classes), fleet.source()
    logits_BC = torch.randn(samples, classes).numpy()

    def round_trip(names: tuple[str, ...], actors: int) -> tuple[float, float]:
        """Milliseconds besides what is computed for a request, and those that an actor does."""
        spec = DistillationSpec(STRATEGY, names, names[0], TEMPERATURE)

        def ask() -> None:
            view = next(views)
            source.ask(GradientRequest(spec, view, view, ids, logits_BC))

        ask()
        before = fleet.effort().seconds
        taken, _ = timed(ask, times=ASKED)
        requests = (WARM + COUNTED) * ASKED
        computed = 1e3 * (fleet.effort().seconds - before) / (requests * actors)
        weighed = costs.weigh(STRATEGY, len(names), samples, classes)
        called = taken - computed - weighed - costs.reply(1, samples, classes)
        return max(0.0, called), computed

    inputs = reading_ms(data, ids)
    called, computed = round_trip(names[:1], 1)
    wide, _ = round_trip(names[:ACTORS], ACTORS)
    _, deep = round_trip(names[::ACTORS], 1)
    echo = ray.remote(_Echo).options(num_cpus=0, scheduling_strategy=here()).remote()
    empty, large = (np.zeros(count, dtype=np.float32) for count in (1, LARGE_MESSAGE))
    small, _ = timed(lambda: ray.get(echo.back.remote(empty)), times=ASKED)
    whole, _ = timed(lambda: ray.get(echo.back.remote(large)))
    return {
        "call_ms": called,
        "actor_ms": max(0.0, wide - called) / (ACTORS - 1),
        "host_ms": max(0.0, computed - inputs - SLEEP_MS),
        "backbone_ms": max(0.0, deep - computed) / (DEEP - 1),
        "copy_gb": 2 * large.nbytes / max(1e-3, whole - small) / 1e6,
    }


def make_teachers(
    folder: Path, data: Dataset, model: Model, count: int, backbones: int | None = None
) -> dict[str, Path]:
    """Checkpoints of teachers, by name: fresh weights, for costs do not depend on them.

    Args:
        folder: that they are saved below.
        data: that they teach on.
        model: their architecture.
        count: of the teachers.
        backbones: different ones, each with several heads on it; None for one a teacher.
    """
    shape, classes = data.shape, len(data.classes)
    seeds = range(min(backbones or count, count))
    bodies = [build(model, shape, classes, seed) for seed in seeds]
    checkpoints = {}
    for number in range(count):
        body = bodies[number % len(bodies)]
        assert isinstance(body.head, torch.nn.Linear)
        head = torch.nn.Linear(body.head.in_features, classes)
        torch.nn.init.normal_(head.weight, 0, 0.3, torch.Generator().manual_seed(number))
        manifest = Manifest(
            model=model,
            shape=shape,
            classes=data.classes,
            fingerprint=fingerprint(model, number),
            data=data.fingerprint,
        )
        path = folder / f"teacher-{number}"
        save(path, Classifier(body.backbone, head), manifest)
        checkpoints[path.name] = path
    return checkpoints
