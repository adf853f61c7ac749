"""What a job comes down to: models of the pool, and a spec for every student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agrekd_ray.config import Job
from agrekd_ray.config.job import SEEDS_APART
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import Dataset
from agrekd_ray.distillation import DistillationSpec
from agrekd_ray.student import StudentSpec
from agrekd_ray.teachers import ERM, Draw, Pool, Recipe, draw

DEEP_ENSEMBLES = {"deep_ensemble": ERM, "deep_ensemble_dfr": "dfr"}
"""Methods that vote among models of the student's size, and the kind of their members."""


@dataclass(frozen=True)
class Plan:
    """A job, worked out.

    Attributes:
        draw: the ensemble.
        specs: the students, seed by seed, so that a job that is stopped has whole seeds.
        votes: members of each deep ensemble, by (method, seed).
        strategies: the distillation methods of the job.
        needs_ensemble: whether any method of the job has teachers.
    """

    draw: Draw
    specs: tuple[StudentSpec, ...]
    votes: dict[tuple[str, int], tuple[Recipe, ...]]
    strategies: tuple[str, ...]
    needs_ensemble: bool

    @property
    def recipes(self) -> list[Recipe]:
        """Every model that the pool must hold."""
        ensemble = list(self.draw.recipes.values()) if self.needs_ensemble else []
        return ensemble + [recipe for members in self.votes.values() for recipe in members]

    def checkpoints(self, pool: Pool) -> dict[str, Path]:
        """Folders of the teachers and the biased model, by name."""
        made = {name: pool.folder(recipe) for name, recipe in self.draw.recipes.items()}
        return made | self.draw.own

    def answering(self, pool: Pool) -> dict[Path, str]:
        """Names of everyone whose answers a run's end needs, by folder of the checkpoint."""
        found: dict[Path, str] = {}
        for members in self.votes.values():
            found |= {pool.folder(member): member.name for member in members}
        if self.needs_ensemble:
            named = self.checkpoints(pool)
            found |= {named[name]: name for name in (*self.draw.teachers, self.draw.biased)}
        return found


def make_plan(job: Job) -> Plan:
    """Work out a job; the same job gives the same plan everywhere."""
    drawn = draw(job.ensemble, job.teachers)
    strategies = tuple(method for method in job.methods if method in STRATEGIES)
    votes = {
        (method, seed): _members(job, kind, seed, len(drawn.teachers))
        for method, kind in DEEP_ENSEMBLES.items()
        if method in job.methods
        for seed in job.seeds
    }
    specs: list[StudentSpec] = []
    for seed in job.seeds:
        if {"one_hot", "one_hot_dfr"} & set(job.methods):
            dfr = job.teachers.dfr if "one_hot_dfr" in job.methods else None
            specs.append(_student(job, "one_hot", seed, dfr=dfr))
        for strategy in strategies:
            specs.append(_taught(job, drawn, strategy, seed))
    needs_ensemble = bool(strategies) or "teacher_vote" in job.methods
    return Plan(drawn, tuple(specs), votes, strategies, needs_ensemble)


def _taught(job: Job, drawn: Draw, strategy: str, seed: int) -> StudentSpec:
    how = job.distillation
    spec = DistillationSpec(
        strategy=strategy,
        teachers=drawn.teachers,
        biased=drawn.biased,
        temperature=how.temperature,
        alpha=how.alpha,
        options=how.block(strategy),
        sample_weighting=how.sample_weighting.build() if how.sample_weighting else None,
        seed=seed,
    )
    return _student(job, strategy, seed, spec=spec, teachers=drawn.in_words)


def _student(job: Job, method: str, seed: int, **further: Any) -> StudentSpec:
    student = job.student
    return StudentSpec(
        method, seed, student.model, student.training, batch_norm=student.batch_norm, **further
    )


def _members(job: Job, kind: str, seed: int, count: int) -> tuple[Recipe, ...]:
    first = (seed + 1) * SEEDS_APART
    shared: dict[str, Any] = {
        "model": job.student.model,
        "training": job.student.training,
        **({"kind": ERM} if kind == ERM else job.teachers.made(kind)),
    }
    return tuple(Recipe(**shared, seed=first + n) for n in range(count))


def views_of(dataset: Dataset, epochs: int) -> list[int]:
    """Numbers of the views that so many epochs of training show."""
    return sorted({dataset.view(epoch) for epoch in range(epochs)})


def epochs_of(families: Sequence[Sequence[Recipe]]) -> int:
    """Epochs of training that a list of the pool's families takes."""
    return sum(family[0].training.epochs for family in families)
