"""Who is in the ensemble: drawn from the pool, or handed in as checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
)

from agrekd_ray.models import Model
from agrekd_ray.plugins import code_of
from agrekd_ray.settings import (
    A_BLOCK,
    A_NUMBER,
    A_WORD,
    AUTO,
    Count,
    Gpus,
    LocalPath,
    OpenSettings,
    Positive,
    Seed,
    Settings,
    Training,
    Whole,
    WholeOrAll,
)
from agrekd_ray.teachers.afr import AfrSettings
from agrekd_ray.teachers.dfr import DfrSettings
from agrekd_ray.teachers.disagreement import SelfSettings
from agrekd_ray.teachers.kinds import ERM, KINDS, OWN
from agrekd_ray.teachers.pool import Recipe
from agrekd_ray.teachers.pseudo import PseudoSettings


class TeacherSettings(OpenSettings):
    """The pool of ERM models that teachers are drawn from, and how they are debiased.

    The settings of a plugin's kind of debiased teachers are in a block of its name.

    Attributes:
        model: architecture.
        others: further architectures; the pool's models take all of them in turn.
        training: of the ERM models.
        count: models in the pool, of which the ensemble is drawn, and the biased model; each has
            a seed of its own. Those that are drawn are trained.
        seed: of the first one; the others follow.
        store: folder of finished teachers, shared by all jobs.
        workers: data-parallel Ray Train workers that train one together, normalising over the whole
            batch: they learn what one learns, so a teacher is the same however many there were.
            They wait for each other as a student's do (`student.timeout_minutes`).
        cpus: logical CPUs of a worker.
        gpus: share of a GPU that a worker has, 1 where a teacher has several; `auto` is what the
            cluster has for it, 0 none.
        dfr: how DFR makes teachers.
        afr: how AFR makes teachers.
        self: how SELF makes teachers.
        pseudo: how pseudo-DFR makes teachers.
    """

    model: Model
    others: tuple[Model, ...] = ()
    training: Training = Training()
    count: Annotated[Count, Field(le=10_000)] = 6
    seed: Seed = 0
    store: LocalPath = Path("runs/teachers")
    workers: Count = 1
    cpus: Positive = 1
    gpus: Gpus = AUTO
    dfr: DfrSettings = DfrSettings()
    afr: AfrSettings = AfrSettings()
    self: SelfSettings = SelfSettings()
    pseudo: PseudoSettings = PseudoSettings()

    @classmethod
    def of_plugins(cls) -> type[Settings]:
        """A block for every kind of debiased teachers of plugins."""
        further = {name: kind for name, kind in KINDS.items() if name not in cls.model_fields}
        blocks: Any = {name: (kind.settings, kind.settings()) for name, kind in further.items()}
        made: type[Settings] = create_model("Kinds of plugins", __base__=Settings, **blocks)
        return made

    def architecture(self, seed: int) -> Model:
        """Of the pool's model with this seed."""
        models = (self.model, *self.others)
        return models[(seed - self.seed) % len(models)]

    def twin(self, seed: int) -> int | None:
        """The seed after it in the pool, the first one after the last; None in a pool of one."""
        return None if self.count == 1 else self.seed + (seed - self.seed + 1) % self.count

    def made(self, kind: str) -> dict[str, Any]:
        """What a recipe says of a kind of debiased teachers: its settings, and a plugin's code."""
        code = code_of(KINDS.maker(kind)) or None
        return {"kind": kind, "retraining": getattr(self, kind), "code": code}


class DebiasedByKind(OpenSettings):
    """Numbers of debiased teachers by kind; those of plugins stand beside them.

    Attributes:
        dfr: so many by DFR, or `all`.
        afr: so many by AFR, or `all`.
        self: so many by SELF, or `all`.
        pseudo: so many by pseudo-DFR, or `all`.
    """

    dfr: WholeOrAll = 0
    afr: WholeOrAll = 0
    self: WholeOrAll = 0
    pseudo: WholeOrAll = 0

    @classmethod
    def of_plugins(cls) -> type[Settings]:
        """A number for every kind of debiased teachers of plugins."""
        further: Any = {name: (WholeOrAll, 0) for name in KINDS if name not in cls.model_fields}
        made: type[Settings] = create_model("Kinds of plugins", __base__=Settings, **further)
        return made

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {kind: count for kind, count in dump(self).items() if count}


def _form(value: Any) -> str:
    if isinstance(value, dict | DebiasedByKind):
        return A_BLOCK
    return A_WORD if isinstance(value, str) else A_NUMBER


Debiased = Annotated[
    Annotated[Whole, Tag(A_NUMBER)]
    | Annotated[Literal["all"], Tag(A_WORD)]
    | Annotated[DebiasedByKind, Tag(A_BLOCK)],
    Discriminator(_form),
]
ALL: Literal["all"] = "all"
_DEFAULT = "dfr"
"""The kind of debiased teachers that are counted without one."""


def numbers_of(debiased: int | Literal["all"] | DebiasedByKind, size: int) -> dict[str, int]:
    """How many of an ensemble's teachers are debiased in which way, by kind; no zeros.

    Args:
        debiased: as `ensemble.debiased` has it.
        size: of the ensemble.
    """
    given = dict(debiased) if isinstance(debiased, DebiasedByKind) else {_DEFAULT: debiased}
    numbers = {kind: size if count == ALL else count for kind, count in given.items()}
    return {kind: count for kind, count in numbers.items() if count}


class EnsembleSettings(Settings):
    """Which teachers teach.

    Attributes:
        size: teachers drawn from the pool.
        debiased: so many of them in their debiased version, or `all`: by DFR, or, as a block, by
            kind (`{afr: 2}`, `{dfr: 1, afr: 1}`). Only DFR needs group labels.
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
    debiased: Debiased = 0
    seed: Seed = 0
    checkpoints: tuple[LocalPath, ...] = ()
    biased: LocalPath | None = None
    biased_from: Literal["outside", "pool"] = "outside"
    biased_model: Model | None = None

    @field_validator("debiased")
    @classmethod
    def _no_more_than_teachers(cls, debiased: Any, info: ValidationInfo) -> Any:
        if "size" in info.data:
            size = info.data["size"]
            if sum(numbers_of(debiased, size).values()) > size:
                raise ValueError(f"more debiased teachers than teachers (ensemble.size is {size})")
        return debiased

    @property
    def by_kind(self) -> dict[str, int]:
        """How many of the teachers are debiased in which way, by kind; no zeros."""
        return numbers_of(self.debiased, self.size)

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
        by_kind: how many of the teachers are debiased in which way, by kind; no zeros.
    """

    recipes: dict[str, Recipe]
    own: dict[str, Path]
    teachers: tuple[str, ...]
    biased: str
    by_kind: dict[str, int]

    @property
    def debiased(self) -> int:
        """How many of the teachers are debiased."""
        return sum(self.by_kind.values())

    def kind(self, name: str) -> str:
        """`erm` or the kind of debiasing of the pool's, `own` of those handed in."""
        return OWN if name in self.own else self.recipes[name].kind

    @property
    def in_words(self) -> str:
        """`5 (2 debiased)`; `5 (2 AFR)`, `5 (1 DFR, 1 AFR)` where it is not DFR alone."""
        numbers = [f"{count} {KINDS[kind].label}" for kind, count in self.by_kind.items()]
        said = f"{self.debiased} debiased" if {*self.by_kind} <= {_DEFAULT} else ", ".join(numbers)
        return f"{len(self.teachers)} ({said})"


def _name_of(path: Path, taken: Collection[str]) -> str:
    """What a model of one's own is called: as its folder, with a number where that is taken."""
    names = (f"{path.name}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([path.name], names) if name not in taken)


def draw(ensemble: EnsembleSettings, pool: TeacherSettings) -> Draw:
    """Draw the ensemble: the same settings give the same ensemble everywhere.

    The draw nests: with the same seed, raising `debiased` debiases further teachers and exchanges
    nobody, and any kind debiases the same ones. Where there are several kinds, they take them in
    the order of `KINDS`.
    """
    rng = np.random.default_rng(ensemble.seed)
    order = [pool.seed + int(n) for n in rng.permutation(pool.count)]
    seeds, biased_seed = order[: ensemble.size], pool.seed + int(rng.integers(pool.count))
    if ensemble.biased_from == "outside" and ensemble.size < pool.count:
        biased_seed = order[-1]

    def erm(seed: int, model: Model | None = None) -> Recipe:
        model = model or pool.architecture(seed)
        return Recipe(kind=ERM, model=model, training=pool.training, seed=seed)

    def recipe(kind: str, seed: int) -> Recipe:
        twin = pool.twin(seed) if KINDS[kind].has_twin else None
        further = {"twin": None if twin is None else erm(twin)}
        return erm(seed).model_copy(update=pool.made(kind) | further)

    by_kind, debiased = ensemble.by_kind, 0
    members: list[Recipe] = []
    for kind, count in by_kind.items():
        members += [recipe(kind, seed) for seed in sorted(seeds[debiased : debiased + count])]
        debiased += count
    members += [erm(seed) for seed in sorted(seeds[debiased:])]
    recipes = {member.name: member for member in members}
    own: dict[str, Path] = {}
    for path in ensemble.checkpoints:
        own[_name_of(path, {*recipes, *own})] = path
    teachers = (*recipes, *own)
    model = ensemble.biased_model or pool.architecture(biased_seed)
    biased_model = erm(biased_seed, model)
    if ensemble.biased is not None:
        biased = _name_of(ensemble.biased, {*recipes, *own})
        own[biased] = ensemble.biased
    else:
        # The seed of another architecture may be that of a teacher.
        of_pool = model == pool.architecture(biased_seed)
        biased = biased_model.name if of_pool else "erm-biased"
        recipes[biased] = biased_model
    return Draw(recipes, own, teachers, biased, by_kind)
