"""What a question to actors costs here: the real weighting actor, and teachers that only answer."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch

from agrekd_ray.core.kd import kd_gradient
from agrekd_ray.guidance import Question, Replies
from agrekd_ray.guidance.fleet import WeightingActor
from agrekd_ray.planning.measure import question_of
from agrekd_ray.planning.messages import answer_bytes, question_bytes, replies_bytes
from agrekd_ray.planning.settings import Costs

STRATEGY = "agre_kd"
ACTORS = 4
ASKED = 40
LARGE = (4, 64, 8000)
"""Teachers, samples and classes of the messages that show what their bytes cost."""


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


def calling_costs(costs: Costs, samples: int) -> dict[str, float]:
    """What `Costs` needs to know of calls and of the bytes of messages; needs a Ray session.

    Args:
        costs: with what weighing takes here, which is taken off.
        samples: of a question.

    Returns:
        `call_ms`, `actor_ms` and `copy_gb`.
    """

    def rest(seconds: float, actors: int, size: tuple[int, int, int]) -> float:
        """Milliseconds, without what is computed on the way."""
        weighed = costs.weigh(STRATEGY, *size)
        return max(0.0, seconds * 1e3 - weighed - costs.reply(size[0] // actors, *size[1:]))

    one, four = (1, samples, 10), (ACTORS, samples, 10)
    with _echoes(1) as weighting:
        called = rest(_asked(weighting, one, ASKED), 1, one)
        teachers, asked, classes = LARGE
        large = rest(_asked(weighting, LARGE, ASKED // 4), 1, LARGE)
    with _echoes(ACTORS) as weighting:
        further = rest(_asked(weighting, four, ASKED), ACTORS, four)
    names = tuple(len(f"teacher-{number}") for number in range(teachers))
    through = (
        2 * question_bytes(names, asked, classes, 0)
        + replies_bytes(names, asked, classes, entropy=False)
        + answer_bytes(teachers, asked, classes)
    )
    copying_ms = max(1e-3, large - called)
    return {
        "call_ms": called,
        "actor_ms": max(0.0, further - called) / (ACTORS - 1),
        "copy_gb": through / (copying_ms * 1e-3) / 1e9,
    }


def _asked(weighting: Any, size: tuple[int, int, int], times: int) -> float:
    """Median seconds of a question."""
    question = question_of(STRATEGY, *size)
    seconds = []
    for number in range(times + times // 4):
        start = time.perf_counter()
        ray.get(weighting.ask.remote(question))
        if number >= times // 4:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextmanager
def _echoes(count: int) -> Iterator[Any]:
    """A weighting actor with so many actors of one teacher each, or one actor of several."""
    names = [f"plan-{uuid.uuid4().hex[:8]}-{number}" for number in range(count)]
    echoes = [ray.remote(Echo).options(num_cpus=0, name=name).remote() for name in names]
    homes = {f"teacher-{number}": names[number % count] for number in range(LARGE[0])}
    weighting = ray.remote(WeightingActor).options(num_cpus=0).remote(homes, 3)
    try:
        yield weighting
    finally:
        for actor in (weighting, *echoes):
            ray.kill(actor)
