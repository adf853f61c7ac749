"""What a question to actors costs here: the real weighting actor, and teachers that only answer."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch

from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.guidance import Question, Replies
from agrekd_ray.guidance.fleet import WeightingActor
from agrekd_ray.planning.measure import question_of
from agrekd_ray.planning.settings import Costs

STRATEGY = "agre_kd"
ACTORS, CLASSES = 4, 10
ASKED = 40
LARGE = 4_000_000
"""Numbers of a message that shows what its bytes cost, float32."""


class Echo:
    """A teachers' actor whose logits are always there."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._logits: dict[tuple[int, ...], torch.Tensor] = {}

    def replies(self, names: Sequence[str], question: Question) -> Replies:
        """See `TeacherHost.replies`."""
        shape = (len(names), *question.logits_BC.shape)
        if shape not in self._logits:
            self._logits = {shape: torch.randn(shape)}
        student_BC = torch.from_numpy(question.logits_BC.copy())
        lesson = question.lesson
        gradients_mBC = kd_gradient(student_BC, self._logits[shape], lesson.temperature)
        return Replies(tuple(names), gradients_mBC.numpy())

    def back(self, numbers: np.ndarray) -> np.ndarray:
        """The same numbers."""
        return numbers


def calling_costs(costs: Costs, samples: int) -> dict[str, float]:
    """What `Costs` needs to know of calls and of the bytes of messages; needs a Ray session.

    Args:
        costs: with what weighing takes here, which is taken off.
        samples: of a question.

    Returns:
        `call_ms`, `actor_ms` and `copy_gb`.
    """

    def rest(milliseconds: float, actors: int) -> float:
        """Without what is computed on the way."""
        weighed = costs.weigh(STRATEGY, actors, samples, CLASSES)
        return max(0.0, milliseconds - weighed - costs.reply(1, samples, CLASSES))

    with _echoes(1) as (weighting, (echo,)):
        called = rest(_asked(weighting, 1, samples), 1)
        empty, large = (np.zeros(size, dtype=np.float32) for size in (1, LARGE))
        small = _median(lambda: ray.get(echo.back.remote(empty)), ASKED)
        copying = _median(lambda: ray.get(echo.back.remote(large)), ASKED // 4) - small
    with _echoes(ACTORS) as (weighting, _):
        further = rest(_asked(weighting, ACTORS, samples), ACTORS)
    return {
        "call_ms": called,
        "actor_ms": max(0.0, further - called) / (ACTORS - 1),
        "copy_gb": 2 * large.nbytes / max(1e-3, copying) / 1e6,
    }


def _asked(weighting: Any, teachers: int, samples: int) -> float:
    """Milliseconds of a question."""
    question = question_of(STRATEGY, teachers, samples, CLASSES)
    return _median(lambda: ray.get(weighting.ask.remote(question)), ASKED)


def _median(work: Callable[[], object], times: int) -> float:
    """Milliseconds, after a quarter as many that do not count."""
    walls = []
    for number in range(times + times // 4):
        start = time.perf_counter()
        work()
        if number >= times // 4:
            walls.append(1e3 * (time.perf_counter() - start))
    return statistics.median(walls)


@contextmanager
def _echoes(count: int) -> Iterator[tuple[Any, list[Any]]]:
    """A weighting actor, and so many actors of one teacher each."""
    names = [f"plan-{uuid.uuid4().hex[:8]}-{number}" for number in range(count)]
    echoes = [ray.remote(Echo).options(num_cpus=0, name=name).remote() for name in names]
    homes = {f"teacher-{number}": name for number, name in enumerate(names)}
    weighting = ray.remote(WeightingActor).options(num_cpus=0).remote(homes, 3)
    try:
        yield weighting, echoes
    finally:
        for actor in (weighting, *echoes):
            ray.kill(actor)
