"""Who is in the ensemble: drawn from the pool, or handed in as checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from agrekd_ray.models import Model
from agrekd_ray.settings import (
    AUTO,
    Count,
    Gpus,
    LocalPath,
    Positive,
    Seed,
    Settings,
    Training,
    Whole,
    WholeOrAll,
)
from agrekd_ray.teachers.dfr import DfrSettings
from agrekd_ray.teachers.pool import Recipe


class TeacherSettings(Settings):
    """The pool of ERM models that teachers are drawn from.

    Attributes:
        model: architecture.
        others: further architectures; the pool's models take all of them in turn.
        training: of the ERM models.
        count: models in the pool, of which the ensemble is drawn, and the biased model; each has
            a seed of its own. Those that are drawn are trained.
        seed: of the first one; the others follow.
        dfr: how their debiased versions are made.
        store: folder of finished teachers, shared by all jobs.
        cpus: logical CPUs while one is trained.
        gpus: share of a GPU while one is trained; `auto` is what the cluster has for it, 0 none.
    """

    model: Model
    others: tuple[Model, ...] = ()
    training: Training = Training()
    count: Annotated[Count, Field(le=10_000)] = 6
    seed: Seed = 0
    dfr: DfrSettings = DfrSettings()
    store: LocalPath = Path("runs/teachers")
    cpus: Positive = 1
    gpus: Gpus = AUTO

    def architecture(self, seed: int) -> Model:
        """Of the pool's model with this seed."""
        models = (self.model, *self.others)
        return models[(seed - self.seed) % len(models)]


class EnsembleSettings(Settings):
    """Which teachers teach.

    Attributes:
        size: teachers drawn from the pool.
        debiased: so many of them in their debiased (DFR) version, or `all`.
        seed: of the draw, of the biased model too.
        checkpoints: folders of further teachers of one's own.
        biased: checkpoint folder of the biased model; null draws one of the pool's ERM models.
        biased_from: `outside` draws the biased model from what the ensemble leaves of the pool,
            or, where it leaves nothing, as `pool` does: from all of it (the paper's way), so that
            it may be a teacher, whom AGRE-KD then gives no weight.
        biased_model: architecture of the biased model, which is then trained like the pool's ERM
            models (the paper's Table 5); null takes the pool's own.
    """

    size: Whole = 5
    debiased: WholeOrAll = 0
    seed: Seed = 0
    checkpoints: tuple[LocalPath, ...] = ()
    biased: LocalPath | None = None
    biased_from: Literal["outside", "pool"] = "outside"
    biased_model: Model | None = None

    @field_validator("debiased")
    @classmethod
    def _no_more_than_teachers(
        cls, debiased: int | Literal["all"], info: ValidationInfo
    ) -> int | Literal["all"]:
        size = info.data.get("size", debiased)
        if debiased != "all" and debiased > size:
            raise ValueError(f"more debiased teachers than teachers (ensemble.size is {size})")
        return debiased

    @field_validator("biased_model")
    @classmethod
    def _one_biased_model(cls, model: Model | None, info: ValidationInfo) -> Model | None:
        if model is not None and info.data.get("biased") is not None:
            raise ValueError("ensemble.biased names a checkpoint already; leave one of them out")
        return model


@dataclass(frozen=True)
class Draw:
    """The ensemble by name.

    Attributes:
        recipes: of the members that the pool makes, the biased model included, by name.
        own: folders of the checkpoints handed in, by name.
        teachers: names of the M teachers.
        biased: name of the biased model.
        debiased: how many of the teachers are debiased.
    """

    recipes: dict[str, Recipe]
    own: dict[str, Path]
    teachers: tuple[str, ...]
    biased: str
    debiased: int

    def kind(self, name: str) -> str:
        """`erm` or `dfr` of the pool's, `own` of those handed in."""
        return "own" if name in self.own else self.recipes[name].kind

    @property
    def in_words(self) -> str:
        """`5 (2 debiased)`."""
        return f"{len(self.teachers)} ({self.debiased} debiased)"


def _name_of(path: Path, taken: Collection[str]) -> str:
    """What a model of one's own is called: as its folder, with a number where that is taken."""
    names = (f"{path.name}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([path.name], names) if name not in taken)


def draw(ensemble: EnsembleSettings, pool: TeacherSettings) -> Draw:
    """Draw the ensemble: the same settings give the same ensemble everywhere.

    The draw nests: with the same seed, raising `debiased` debiases further teachers and exchanges
    nobody.
    """
    rng = np.random.default_rng(ensemble.seed)
    order = [pool.seed + int(n) for n in rng.permutation(pool.count)]
    seeds, biased_seed = order[: ensemble.size], pool.seed + int(rng.integers(pool.count))
    if ensemble.biased_from == "outside" and ensemble.size < pool.count:
        biased_seed = order[-1]

    def recipe(kind: Literal["erm", "dfr"], seed: int, model: Model | None = None) -> Recipe:
        return Recipe(
            kind=kind,
            model=model or pool.architecture(seed),
            training=pool.training,
            seed=seed,
            dfr=pool.dfr if kind == "dfr" else None,
        )

    debiased = ensemble.size if ensemble.debiased == "all" else ensemble.debiased
    members = [recipe("dfr", seed) for seed in sorted(seeds[:debiased])]
    members += [recipe("erm", seed) for seed in sorted(seeds[debiased:])]
    recipes = {member.name: member for member in members}
    own: dict[str, Path] = {}
    for path in ensemble.checkpoints:
        own[_name_of(path, {*recipes, *own})] = path
    teachers = (*recipes, *own)
    model = ensemble.biased_model or pool.architecture(biased_seed)
    biased_model = recipe("erm", biased_seed, model)
    if ensemble.biased is not None:
        biased = _name_of(ensemble.biased, {*recipes, *own})
        own[biased] = ensemble.biased
    else:
        # The seed of another architecture may be that of a teacher.
        of_pool = model == pool.architecture(biased_seed)
        biased = biased_model.name if of_pool else "erm-biased"
        recipes[biased] = biased_model
    return Draw(recipes, own, teachers, biased, debiased)
