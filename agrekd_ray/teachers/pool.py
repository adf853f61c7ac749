"""The pool of teachers: made once, found again by the fingerprint of everything that made them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    BeforeValidator,
    SerializationInfo,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from agrekd_ray import __version__
from agrekd_ray.collectives import from_first
from agrekd_ray.data import SELECT, TEST, Dataset
from agrekd_ray.errors import CheckpointError, RunError
from agrekd_ray.files import DamagedError, checked, is_folder
from agrekd_ray.models import Classifier, Manifest, Model, build, find, identified, load, save
from agrekd_ray.numerics import numbers_on
from agrekd_ray.results import Metrics
from agrekd_ray.settings import Seed, Settings, Training, fingerprint, one_of
from agrekd_ray.teachers.kinds import ERM, KINDS
from agrekd_ray.teachers.retraining import Halves, retrained
from agrekd_ray.training import Labels, Loader, Trainer, evaluate
from agrekd_ray.training.states import StateWriter, make_folder, read_state, write_state

METHOD, METHOD_OF_TEXTS = 1, 2
"""Version of what a recipe means; raised when the same recipe gives other weights. 2: batches of
texts of about one length."""

NUMBERS = "numbers"
"""What `precision` came to where a model was made, in its manifest's `made_by`."""

TRAINING = "training"
"""Folder of a pool that has the states of trainings under way."""

Progress = Callable[[str, int, int], None]
"""Gets a model's name, the epoch that it has finished, from 1, and their number."""

OnWay = Callable[[str, str], None]
"""Gets a model's name, and where in an epoch its training is, in words."""


@dataclass(frozen=True)
class _Making:
    """How models are made; see `Pool.make`."""

    device: torch.device | str
    progress: Progress
    say: Callable[[str], None]
    on_way: OnWay
    workers: Mapping[str, Any]

    @property
    def first(self) -> bool:
        """Whether this is the first worker, or the only one."""
        return self.workers.get("rank", 0) == 0


class Recipe(Settings):
    """Everything that a model of the pool is made of, besides the data.

    Attributes:
        kind: `erm` (trained on the labels), or one of `KINDS` (the ERM model of the same recipe,
            last layer retrained).
        model: architecture.
        training: of the ERM model.
        seed: of weights, order and subsamples.
        retraining: settings of the kind; None for `erm`.
        code: a digest of the code of a plugin's kind; None for ours.
        twin: the ERM model whose mistakes the kind looks at; None where those are its own.
    """

    kind: Annotated[str, BeforeValidator(one_of(lambda: (ERM, *KINDS)))]
    model: Model
    training: Training
    seed: Seed
    retraining: SerializeAsAny[Settings] | dict[str, Any] | None = None
    code: str | None = None
    twin: Recipe | None = None

    @model_serializer(mode="wrap")
    def _dumped(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Settings under the kind's name; of ERM models as when `dfr` was the only kind."""
        values: dict[str, Any] = dump(self)
        retraining = values.pop("retraining")
        values["dfr" if self.kind == ERM else self.kind] = retraining
        return {k: v for k, v in values.items() if v is not None or k not in ("code", "twin")}

    @property
    def name(self) -> str:
        """`KIND-SEED`, unique within an ensemble of one architecture."""
        return f"{self.kind}-{self.seed}"

    @property
    def parent(self) -> Recipe:
        """The ERM model that this one comes from (itself, for `erm`)."""
        return self.model_copy(update={"kind": ERM, "retraining": None, "code": None, "twin": None})

    @property
    def identified(self) -> Recipe:
        """The same, with what the models' files hold in the place of their names."""
        twin = self.twin and self.twin.identified
        return self.model_copy(update={"model": identified(self.model), "twin": twin})


def measured(folder: Path, manifest: Manifest) -> dict[str, Metrics]:
    """What a model's maker measured, by split.

    Args:
        folder: of the checkpoint.
        manifest: of it.

    Raises:
        CheckpointError: these are no metrics.
    """
    try:
        return checked(dict[str, Metrics], manifest.metrics)
    except DamagedError as error:
        raise CheckpointError(
            f"{folder}: damaged manifest (metrics.{error}). Make the checkpoint again."
        ) from None


class Pool:
    """A folder of finished models.

    Args:
        store: the folder; made when the first model is saved.
        dataset: that its models are trained on.
    """

    def __init__(self, store: Path, dataset: Dataset) -> None:
        self._store, self._dataset = store, dataset

    def fingerprint(self, recipe: Recipe) -> str:
        """Of everything that makes the model: recipe, first weights, data, views.

        Raises:
            AgrekdError: a file of the recipe's model is not there.
        """
        data = self._dataset
        shown = [data.view(epoch) for epoch in range(recipe.training.epochs)]
        method = METHOD_OF_TEXTS if len(data.shape) == 1 else METHOD
        return fingerprint(
            method, recipe.identified, data.fingerprint, data.views_fingerprint, shown
        )

    def folder(self, recipe: Recipe) -> Path:
        """Where the model is, or will be."""
        return self._store / f"{recipe.name}-{self.fingerprint(recipe)[:16]}"

    def find(self, recipe: Recipe, *, verify: bool = False) -> Manifest | None:
        """The manifest of a finished model; None where there is none.

        Args:
            recipe: of the model.
            verify: read its weights, too, and take a model whose weights are damaged for none.
                Else that is told where it is loaded.

        Raises:
            RunError: float32 is asked for, and it was made in bfloat16.
        """
        folder = self.folder(recipe)
        try:
            manifest = load(folder)[1] if verify else find(folder)
        except CheckpointError:
            return None
        if manifest.fingerprint != self.fingerprint(recipe):
            return None
        if recipe.training.precision == "float32" and manifest.made_by.get(NUMBERS) == "bfloat16":
            raise RunError(
                f"{self.folder(recipe)}: made on a GPU in bfloat16, by precision: auto, and is to "
                "be of precision: float32; say auto, or name another folder (teachers.store)."
            )
        return manifest

    def missing(self, recipes: Iterable[Recipe], *, verify: bool = False) -> list[list[Recipe]]:
        """What is still to be made: a list for each ERM model, with the models that need it.

        Those that look at a twin which is not made yet have lists of their own, at the end.

        Args:
            recipes: of the models that are wanted.
            verify: as of `find`.
        """
        absent = {self.fingerprint(r): r for r in recipes if self.find(r, verify=verify) is None}
        twins = [r.twin for r in absent.values() if r.twin and self.find(r.twin) is None]
        absent |= {self.fingerprint(twin): twin for twin in twins}
        families: dict[tuple[bool, str], list[Recipe]] = {}
        for recipe in absent.values():
            place = recipe.twin in twins, self.fingerprint(recipe.parent)
            families.setdefault(place, []).append(recipe)
        return [
            sorted(family, key=lambda r: r.kind != ERM)
            for _, family in sorted(families.items(), key=lambda item: item[0][0])
        ]

    def in_turn(self, families: Sequence[Sequence[Recipe]]) -> list[list[Sequence[Recipe]]]:
        """What is missing, by turns: those of one turn need nothing of each other."""
        turns: list[list[Sequence[Recipe]]] = [[], []]
        for family in families:
            waits = any(r.twin is not None and self.find(r.twin) is None for r in family)
            turns[waits].append(family)
        return [turn for turn in turns if turn]

    def damaged(self, families: Iterable[Sequence[Recipe]]) -> list[Path]:
        """Folders of missing models that are there all the same: they cannot be used."""
        folders = (self.folder(recipe) for family in families for recipe in family)
        return [folder for folder in folders if is_folder(folder)]

    def make(
        self,
        family: Sequence[Recipe],
        device: torch.device | str = "cpu",
        progress: Progress = lambda name, epoch, epochs: None,
        say: Callable[[str], None] = lambda text: None,
        on_way: OnWay = lambda name, place: None,
        **workers: Any,
    ) -> None:
        """Make the models of one family: the ERM model first, then what is retrained from it.

        A training that was stopped, in whatever way, goes on after its last state, and ends in the
        same weights as one that was not. Several workers train the ERM model together; the first
        does the rest, and alone is heard.

        Args:
            family: recipes with the same parent.
            device: to train on.
            progress: called after every epoch.
            say: gets what a user should read.
            on_way: called where a state is kept within an epoch.
            workers: of several, arguments of `Trainer`: `rank`, `world`, `wrap` and `total`.

        Raises:
            CheckpointError: the store cannot be written.
            RunError: training has diverged.
        """
        how = _Making(device, progress, say, on_way, workers)
        parent = family[0].parent
        erm = self._erm(parent, how)
        precision = parent.training.precision
        halves = None if erm is None else Halves(erm, self._dataset, device, precision)
        for recipe in family:
            if recipe.kind == ERM:
                continue
            biased = self._erm(recipe.twin, how) if recipe.twin is not None else None
            if halves is None:
                continue
            kind = KINDS[recipe.kind]
            settings = recipe.retraining
            if not isinstance(settings, Settings):  # a plugin's, as it was written down
                settings = kind.settings.model_validate(settings or {})
            debiased = retrained(halves, kind, settings, recipe.seed, biased)
            self._save(recipe, debiased, device)

    def state(self, recipe: Recipe) -> Path:
        """Where the state of an ERM model's training is, while it lasts."""
        return self._store / TRAINING / f"{self.folder(recipe).name}.pt"

    def _erm(self, recipe: Recipe, how: _Making) -> Classifier | None:
        """An ERM model of the pool, made where it is missing or damaged; the first worker's."""
        found = self._whole(recipe, how.device) if how.first else None
        if not from_first(found is not None):
            model = self._train(recipe, how)
            if how.first:
                self._save(recipe, model, how.device)
                with contextlib.suppress(OSError):
                    self.state(recipe).unlink()
                found = load(self.folder(recipe), how.device)[0]
        return found

    def _whole(self, recipe: Recipe, device: torch.device | str) -> Classifier | None:
        if self.find(recipe) is not None:
            with contextlib.suppress(CheckpointError):
                return load(self.folder(recipe), device)[0]
        return None

    def _train(self, recipe: Recipe, how: _Making) -> Classifier:
        path, epochs = self.state(recipe), recipe.training.epochs
        model, trainer = self._begun(recipe, how)
        about = {
            "recipe": self.fingerprint(recipe),
            "version": __version__,
            "torch": str(torch.__version__),
            NUMBERS: trainer.numbers,
        }
        try:
            state = read_state(path, how.device)
            other = next((name for name in about if state.get(name) != about[name]), None)
            if other is not None:
                differs = f"its {other} is {state.get(other)}, not {about[other]}"
                how.say(f"{path}: {differs}, so {recipe.name} begins anew")
            else:
                trainer.load_state_dict(state["trainer"])
                trained = trainer.next_epoch >= epochs
                does = (
                    "is trained, and is evaluated" if trained else f"goes on from {trainer.place}"
                )
                how.say(f"{recipe.name} {does}")
        except FileNotFoundError:
            make_folder(path.parent)
        except RunError:
            raise
        except Exception:  # torch's parts answer a foreign state with anything
            how.say(f"{path}: damaged, so {recipe.name} begins anew")
            model, trainer = self._begun(recipe, how)
        writer = StateWriter()

        def kept() -> dict[str, Any]:
            writer.wait()
            return {**about, "trainer": trainer.state_dict()}

        def keep() -> None:
            writer.begin(path, kept())
            how.on_way(recipe.name, trainer.place)

        while trainer.next_epoch < epochs:
            trainer.await_first()
            trainer.epoch(keep)
            if how.first:
                write_state(path, kept())
                how.progress(recipe.name, trainer.next_epoch, epochs)
        return model

    def _begun(self, recipe: Recipe, how: _Making) -> tuple[Classifier, Trainer]:
        data = self._dataset
        model = build(recipe.model, data.shape, len(data.classes), recipe.seed).to(how.device)
        trainer = Trainer(
            model,
            data,
            recipe.training,
            Labels(),
            seed=recipe.seed,
            loader=Loader(data, how.device),
            **how.workers,
        )
        return model, trainer

    def _save(self, recipe: Recipe, model: Classifier, device: torch.device | str) -> None:
        data = self._dataset
        precision = recipe.training.precision
        metrics = {
            split: asdict(evaluate(model, data, split, device, precision))
            for split in (SELECT, TEST)
        }
        made_by = recipe.model_dump(mode="json") | {NUMBERS: numbers_on(precision, device)}
        save(
            self.folder(recipe),
            model,
            Manifest(
                model=recipe.model,
                shape=data.shape,
                classes=data.classes,
                fingerprint=self.fingerprint(recipe),
                data=data.fingerprint,
                metrics=metrics,
                made_by=made_by,
            ),
        )
