"""The pool of teachers: made once, found again by the fingerprint of everything that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from agrekd_ray.data import SELECT, TEST, Dataset
from agrekd_ray.errors import CheckpointError, RunError
from agrekd_ray.files import DamagedError, checked, is_folder
from agrekd_ray.models import Classifier, Manifest, Model, build, identified, load, save
from agrekd_ray.numerics import numbers_on
from agrekd_ray.results import Metrics
from agrekd_ray.settings import Seed, Settings, Training, fingerprint
from agrekd_ray.teachers.dfr import DfrSettings, retrain_head
from agrekd_ray.training import Labels, Loader, Trainer, evaluate

METHOD, METHOD_OF_TEXTS = 1, 2
"""Version of what a recipe means; raised when the same recipe gives other weights. 2: batches of
texts of about one length."""

NUMBERS = "numbers"
"""What `precision` came to where a model was made, in its manifest's `made_by`."""


class Recipe(Settings):
    """Everything that a model of the pool is made of, besides the data.

    Attributes:
        kind: `erm` (trained on the labels) or `dfr` (the ERM model of the same recipe, last layer
            retrained).
        model: architecture.
        training: of the ERM model.
        seed: of weights, order and subsamples.
        dfr: settings of the retraining; None for `erm`.
    """

    kind: Literal["erm", "dfr"]
    model: Model
    training: Training
    seed: Seed
    dfr: DfrSettings | None = None

    @property
    def name(self) -> str:
        """`KIND-SEED`, unique within an ensemble of one architecture."""
        return f"{self.kind}-{self.seed}"

    @property
    def parent(self) -> Recipe:
        """The ERM model that this one comes from (itself, for `erm`)."""
        return self.model_copy(update={"kind": "erm", "dfr": None})


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
        made_of = recipe.model_copy(update={"model": identified(recipe.model)})
        method = METHOD_OF_TEXTS if len(data.shape) == 1 else METHOD
        return fingerprint(method, made_of, data.fingerprint, data.views_fingerprint, shown)

    def folder(self, recipe: Recipe) -> Path:
        """Where the model is, or will be."""
        return self._store / f"{recipe.name}-{self.fingerprint(recipe)[:16]}"

    def find(self, recipe: Recipe) -> Manifest | None:
        """The manifest of a finished model, whole and undamaged; None where there is none.

        Raises:
            RunError: float32 is asked for, and it was made in bfloat16.
        """
        try:
            _, manifest = load(self.folder(recipe))
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

    def missing(self, recipes: Iterable[Recipe]) -> list[list[Recipe]]:
        """What is still to be made: a list for each ERM model, with the models that need it."""
        families: dict[str, list[Recipe]] = {}
        for recipe in recipes:
            family = families.setdefault(self.fingerprint(recipe.parent), [])
            if recipe not in family and self.find(recipe) is None:
                family.append(recipe)
        return [
            sorted(family, key=lambda r: r.kind != "erm") for family in families.values() if family
        ]

    def damaged(self, families: Iterable[Sequence[Recipe]]) -> list[Path]:
        """Folders of missing models that are there all the same: they cannot be used."""
        folders = (self.folder(recipe) for family in families for recipe in family)
        return [folder for folder in folders if is_folder(folder)]

    def make(
        self,
        family: Sequence[Recipe],
        device: torch.device | str = "cpu",
        progress: Callable[[str, int, int], None] = lambda name, epoch, epochs: None,
    ) -> None:
        """Make the models of one family: the ERM model first, then what is retrained from it.

        Args:
            family: recipes with the same parent.
            device: to train on.
            progress: called after every epoch with the name, the epoch from 1, and their number.

        Raises:
            CheckpointError: the store cannot be written.
            RunError: training has diverged.
        """
        parent = family[0].parent
        if self.find(parent) is None:
            self._save(parent, self._train(parent, device, progress), device)
        erm, _ = load(self.folder(parent), device)
        for recipe in family:
            if recipe.kind == "dfr":
                debiased = retrain_head(
                    erm,
                    self._dataset,
                    recipe.dfr or DfrSettings(),
                    recipe.seed,
                    device,
                    recipe.training.precision,
                )
                self._save(recipe, debiased, device)

    def _train(
        self,
        recipe: Recipe,
        device: torch.device | str,
        progress: Callable[[str, int, int], None],
    ) -> Classifier:
        data = self._dataset
        model = build(recipe.model, data.shape, len(data.classes), recipe.seed).to(device)
        loader = Loader(data, device)
        trainer = Trainer(model, data, recipe.training, Labels(), seed=recipe.seed, loader=loader)
        for epoch in range(recipe.training.epochs):
            trainer.epoch()
            progress(recipe.name, epoch + 1, recipe.training.epochs)
        return model

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
