"""What a question to a fleet costs here: a real fleet of teachers that sleep for a millisecond.

One fleet of three actors answers for one teacher, for three in three actors, and for four in one.
Nothing is subtracted but what its actors say that they computed, and what weighing takes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from agrekd_ray.data import TRAIN, Dataset, open_dataset
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.guidance import Lesson, Question
from agrekd_ray.guidance.fleet import Fleet
from agrekd_ray.guidance.fleet_settings import FleetSettings
from agrekd_ray.models import Manifest, Model, build, save
from agrekd_ray.planning.measure import TEMPERATURE, reading_ms
from agrekd_ray.planning.settings import Costs
from agrekd_ray.settings import fingerprint

STRATEGY = "agre_kd"
ACTORS, DEEP, SLEEP_MS = 3, 4, 1
ROUNDS, ASKED = 4, 15
"""Rounds of questions, whose means count, as the mean of an epoch's steps does."""
LARGE = 4_000_000
"""Numbers of a message that shows what its bytes cost, float32."""


class Echo:
    """An actor that only answers."""

    def back(self, numbers: np.ndarray) -> np.ndarray:
        """The same numbers."""
        return numbers


class Calibration(AbstractContextManager["Calibration"]):
    """A fleet to be measured, as often as one likes, while it is open; needs a Ray session."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="agrekd-plan-")
        settings = ColoredDigits(name="colored_digits", train=512, val=100)
        self._data = open_dataset(settings)
        checkpoints = _sleepers(Path(self._folder.name), self._data)
        self._names = tuple(checkpoints)
        self._fleet = Fleet(
            checkpoints,
            settings,
            FleetSettings(
                backbones_per_actor=DEEP, concurrent=DEEP, cpus=0.01, gpus=0, look_ahead=0
            ),
            lambda event: None,
        )
        self._echo = ray.remote(Echo).options(num_cpus=0).remote()
        self._asked = 0

    def costs(self, costs: Costs, samples: int) -> dict[str, float]:
        """What `Costs` needs to know of calls, of teachers' processes, and of messages' bytes.

        Args:
            costs: with what weighing takes here, which is taken off.
            samples: of a question.
        """
        ids = np.resize(self._data.splits[TRAIN], samples)
        inputs = reading_ms(self._data, ids)
        one = self._round(self._names[:1], ids)
        wide = self._round(self._names[:ACTORS], ids)
        deep = self._round(self._names[::ACTORS], ids)
        reply = costs.reply(1, samples, len(self._data.classes))

        def call(asked: tuple[float, float], teachers: int) -> float:
            weighed = costs.weigh(STRATEGY, teachers, samples, len(self._data.classes))
            return max(0.0, asked[0] - asked[1] - weighed - reply)

        called = call(one, 1)
        empty, large = (np.zeros(size, dtype=np.float32) for size in (1, LARGE))
        small = _mean_ms(lambda: ray.get(self._echo.back.remote(empty)))
        copying = _mean_ms(lambda: ray.get(self._echo.back.remote(large))) - small
        return {
            "call_ms": called,
            "actor_ms": max(0.0, call(wide, ACTORS) - called) / (ACTORS - 1),
            "host_ms": max(0.0, one[1] - inputs - SLEEP_MS),
            "backbone_ms": max(0.0, deep[1] - one[1]) / (DEEP - 1),
            "copy_gb": 2 * large.nbytes / max(1e-3, copying) / 1e6,
        }

    def _round(self, names: tuple[str, ...], ids: np.ndarray) -> tuple[float, float]:
        """Milliseconds of a question, and of what one actor computes for it."""
        lesson = Lesson(STRATEGY, names, names[0], TEMPERATURE)
        source, classes = self._fleet.source(), len(self._data.classes)
        logits_BC = torch.randn(len(ids), classes, generator=torch.Generator().manual_seed(0))
        actors = min(ACTORS, len(names)) if names == self._names[: len(names)] else 1

        def ask() -> None:
            self._asked += 1  # another view, so that no answer is there already
            source.ask(Question(lesson, self._asked, self._asked, ids, logits_BC.numpy()))

        ask()
        before = self._fleet.effort().seconds
        asked = _mean_ms(ask)
        computed = 1e3 * (self._fleet.effort().seconds - before)
        return asked, computed / (ROUNDS * ASKED * actors)

    def __exit__(self, *failure: object) -> None:
        self._fleet.close()
        ray.kill(self._echo)
        self._folder.cleanup()


def averaged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of several calibrations, number by number."""
    return {
        key: averaged([one[key] for one in found])
        if isinstance(value, dict)
        else statistics.mean(one[key] for one in found)
        for key, value in found[0].items()
    }


def _sleepers(folder: Path, data: Dataset) -> dict[str, Path]:
    """Checkpoints of teachers that sleep, by name."""
    model = Model(name="delayed", args={"milliseconds": SLEEP_MS})
    found: dict[str, Path] = {}
    for number in range(ACTORS * DEEP):
        found[f"teacher-{number}"] = folder / f"teacher-{number}"
        save(
            found[f"teacher-{number}"],
            build(model, data.shape, len(data.classes), number),
            Manifest(
                model=model,
                shape=data.shape,
                classes=data.classes,
                fingerprint=fingerprint(model, number),
                data=data.fingerprint,
            ),
        )
    return found


def _mean_ms(work: Callable[[], object]) -> float:
    """Milliseconds, the median over rounds of their means."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(ASKED):
            work()
        rounds.append(1e3 * (time.perf_counter() - start) / ASKED)
    return statistics.median(rounds)
