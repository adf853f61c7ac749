"""Times of a job's own models, and of weighing, taken in this process. No Ray here."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from agrekd_ray.config import Job
from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.core.quadratic import shortest_mixture
from agrekd_ray.data import TRAIN, Dataset
from agrekd_ray.devices import device_of
from agrekd_ray.guidance import Lesson, Question, Replies
from agrekd_ray.guidance.lesson import weigh_replies
from agrekd_ray.models import Model, build
from agrekd_ray.numerics import computing_in, numbers_on, training_kernels
from agrekd_ray.planning.setup import Setup
from agrekd_ray.settings import Precision, Training
from agrekd_ray.training import Labels, Loader, Trainer

WARM, COUNTED = 2, 7
SMALL, LARGE = (8, 64, 10), (8, 64, 2000)
"""Teachers, samples and classes at which weighing is timed."""
PROGRAMME = 256
"""Teachers for whom AE-KD's quadratic programme is timed."""
TEMPERATURE = 4.0
CPU = torch.device("cpu")


def model_times(job: Job, dataset: Dataset, setup: Setup) -> dict[str, float]:
    """What `Times` needs to know of a job's student, teachers and data; on this machine's devices.

    Weights are fresh: costs do not depend on them.

    Args:
        job: the job.
        dataset: its data.
        setup: of the job.
    """
    fleet, student = job.fleet, job.student
    threads = max(1, int(fleet.cpus or 1))
    ids = np.resize(dataset.splits[TRAIN], setup.batch)
    inputs_ms = reading_ms(dataset, ids, threads)
    teaching = torch.device(device_of(fleet.gpus, "fleet.gpus"))
    learning = torch.device(device_of(student.gpus, "student.gpus"))
    each = [
        forward_times(model, dataset, ids, teaching, fleet.precision, threads)
        for model in (job.teachers.model, *job.teachers.others)
    ]
    with _threads(max(1, int(student.cpus))):
        step_ms = student_step(student.model, dataset, student.training, setup.part, learning)
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


def weighing_costs(strategies: tuple[str, ...]) -> dict[str, Any]:
    """What `Costs` needs to know of weighing and of the teachers' gradients."""
    with _threads(1):
        replying = [_per_question(_reply_of(*size)) for size in (SMALL, LARGE)]
        weighing = {
            name: [_per_question(_weighing_of(name, *size)) for size in (SMALL, LARGE)]
            for name in dict.fromkeys(strategies)
        }
        reply_ms, reply_ns = _line(*replying)
        lines = {name: _line(*both) for name, both in weighing.items()}
        found: dict[str, Any] = {
            "reply_ms": reply_ms,
            "reply_ns": reply_ns,
            "weigh_ms": statistics.median(fixed for fixed, _ in lines.values()),
            "weigh_ns": {name: slope for name, (_, slope) in lines.items()},
        }
        if "ae_kd" in lines:
            vectors_MC = torch.randn(PROGRAMME, 100, dtype=torch.float64)
            gram_MM = vectors_MC @ vectors_MC.T
            milliseconds = timed(lambda: shortest_mixture(gram_MM, 0.6))[0]
            found["programme_us"] = 1e3 * milliseconds / PROGRAMME**2
    return found


def timed(work: Callable[[], object], device: torch.device | None = None) -> tuple[float, float]:
    """Median milliseconds of some work, and of the process's cores meanwhile."""
    walls, cores = [], []
    for number in range(WARM + COUNTED):
        _wait(device)
        start, used = time.perf_counter(), time.process_time()
        work()
        _wait(device)
        if number >= WARM:
            walls.append(1e3 * (time.perf_counter() - start))
            cores.append(1e3 * (time.process_time() - used))
    return statistics.median(walls), statistics.median(cores)


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


def _per_question(work: Callable[[], object]) -> float:
    """Milliseconds, of ten in a row."""

    def ten() -> None:
        for _ in range(10):
            work()

    return timed(ten)[0] / 10


def _line(small: float, large: float) -> tuple[float, float]:
    """Milliseconds at no numbers, and nanoseconds for each, through the two sizes."""
    few, many = (m * samples * classes for m, samples, classes in (SMALL, LARGE))
    slope = max(0.0, large - small) / (many - few)
    return max(0.0, small - slope * few), 1e6 * slope


def question_of(strategy: str, teachers: int, samples: int, classes: int) -> Question:
    """A question with a student's random logits, to teachers `teacher-0`, ..."""
    names = tuple(f"teacher-{number}" for number in range(teachers))
    lesson = Lesson(strategy, names, names[0], TEMPERATURE)
    logits_BC = torch.randn(samples, classes, generator=torch.Generator().manual_seed(0)).numpy()
    return Question(lesson, 0, 0, np.arange(samples), logits_BC)


def replies_to(question: Question, names: tuple[str, ...], seed: int = 1) -> Replies:
    """What teachers with random logits say."""
    generator = torch.Generator().manual_seed(seed)
    logits_mBC = torch.randn(len(names), *question.logits_BC.shape, generator=generator)
    student_BC = torch.from_numpy(question.logits_BC)
    gradients_mBC = kd_gradient(student_BC, logits_mBC, TEMPERATURE).numpy()
    entropy = torch.rand(len(names), len(question.ids), generator=generator).numpy()
    return Replies(names, gradients_mBC, entropy if question.lesson.cross_entropy else None)


def _weighing_of(strategy: str, *size: int) -> Callable[[], object]:
    question = question_of(strategy, *size)
    told = [replies_to(question, question.lesson.members)]
    return lambda: weigh_replies(question, told)


def _reply_of(teachers: int, samples: int, classes: int) -> Callable[[], object]:
    logits_mBC = torch.randn(teachers, samples, classes)
    student_BC = torch.randn(samples, classes)
    return lambda: kd_gradient(student_BC, logits_mBC, TEMPERATURE)


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
