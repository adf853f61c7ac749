"""A job checked whole: every key, every value, every file that it names."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from agrekd_ray import plugins
from agrekd_ray.cluster.placement import unknown_patterns
from agrekd_ray.config.faults import Fault, JobError, elsewhere, faults_of
from agrekd_ray.config.job import DFR_METHODS, SEEDS_APART, Job
from agrekd_ray.config.reading import read_values
from agrekd_ray.config.study import study_faults
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import (
    DFR,
    DRAWN,
    TRAIN,
    Dataset,
    Sourced,
    classes_missing,
    has_tokenizer,
    open_dataset,
    other_tokens,
    tokens_of,
)
from agrekd_ray.data.custom import of_factory
from agrekd_ray.errors import AgrekdError, DataError, RunError, listed, nearest
from agrekd_ray.logits import OutputSettings
from agrekd_ray.models import Model, check, check_classes, check_name, in_words, read_manifest
from agrekd_ray.models.model import PRETRAINED, TRANSFORMERS
from agrekd_ray.results.points import in_words as value_in_words
from agrekd_ray.settings import AUTO, MOST_SEEDS
from agrekd_ray.teachers import KINDS, draw, numbers_of


def load_job(path: Path, overrides: Iterable[str] = ()) -> Job:
    """Read and check a job whole: every key, every value, every file that it names.

    Raises:
        JobError: all faults at once.
    """
    raw, faults = read_values(path, overrides)
    if raw is not None and "space" in raw and "methods" not in raw:
        problem = f"makes this a search, which `agrekd tune {path}` runs"
        raise JobError(str(path), [Fault("space", "", problem)])
    job, found = check_job(raw) if raw is not None else (None, [])
    faults += elsewhere(found, faults)
    if faults or job is None:
        raise JobError(str(path), faults)
    return job


def check_job(raw: dict[str, Any]) -> tuple[Job | None, list[Fault]]:
    """All faults of a job's raw values; the job where there is none."""
    raw, faults = with_plugins(raw)
    job: Job | None = None
    try:
        job = Job.model_validate(raw)
    except ValidationError as error:
        faults += faults_of(error, Job)
    whole = _Whole(raw, job, {fault.key for fault in faults})
    faults += whole.faults()
    faults += study_faults(whole.get, raw, job, faults, check_job)
    return (None if faults else job), faults


def with_plugins(raw: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """A job's raw values once its plugins are imported, and what is wrong with these."""
    named = raw.get("plugins", [])
    if not isinstance(named, list | tuple) or not all(isinstance(each, str) for each in named):
        return raw, []  # a fault of its type
    loaded: dict[str, str] = {}
    faults = []
    for number, plugin in enumerate([*named, *plugins.installed()]):
        try:
            loaded.setdefault(plugin.partition("#")[0], plugins.load(plugin))
        except AgrekdError as error:
            key = f"plugins.{number}" if number < len(named) else "plugins"
            faults.append(Fault(key, plugin, str(error)))
    if loaded:
        raw = {**raw, "plugins": list(loaded.values())}
    if (data := of_factory(raw.get("data"))) is not raw.get("data"):
        raw = {**raw, "data": data}
        if isinstance(sweep := raw.get("sweep"), dict):
            args = {f"data.{key}": f"data.args.{key}" for key in data["args"]}
            raw["sweep"] = {args.get(key, key): values for key, values in sweep.items()}
    return raw, faults


class _Whole:
    """Checks that look at several keys, or at files; each runs where what it needs is sound."""

    def __init__(self, raw: dict[str, Any], job: Job | None, bad: set[str]) -> None:
        self._raw, self._job, self._bad = raw, job, bad

    def get(self, path: str) -> Any:
        """The checked value at a dotted path; None where it, or what it is part of, is faulty."""
        parts = path.split(".")
        if self._job is not None:
            return functools.reduce(getattr, parts, self._job)
        if any(f"{bad}.".startswith(f"{path}.") or path.startswith(f"{bad}.") for bad in self._bad):
            return None
        block: Any = Job
        raw: Any = self._raw
        for number, part in enumerate(parts):
            field = block.model_fields[part]
            if part not in raw:
                default = field.get_default(call_default_factory=True)
                return (
                    None
                    if field.is_required()
                    else functools.reduce(getattr, parts[number + 1 :], default)
                )
            block, raw = field.annotation, raw[part]
        checked: Any = Annotated[field.annotation, field]
        return TypeAdapter(checked).validate_python(raw)

    def faults(self) -> list[Fault]:
        rules = (
            self._lists,
            self._sizes,
            self._seeds,
            self._workers,
            self._batches,
            self._graphs,
            self._files,
            self._groups,
            self._halves,
            self._own_checkpoints,
            self._architectures,
            self._of_this_process,
            self._places,
            self._folders,
            self._outputs,
        )
        return [fault for rule in rules for fault in rule()]

    @functools.cached_property
    def _dataset(self) -> Dataset | None:
        data = self.get("data")
        try:
            return open_dataset(data) if data is not None else None
        except AgrekdError:
            return None

    def _lists(self) -> Iterator[Fault]:
        for key in ("methods", "seeds"):
            if (values := self.get(key)) and len(set(values)) < len(values):
                yield Fault(key, str(list(values)), "names the same thing twice")

    def _sizes(self) -> Iterator[Fault]:
        size, count = self.get("ensemble.size"), self.get("teachers.count")
        if size is not None and count is not None and size > count:
            problem = f"more teachers than the pool has (teachers.count is {count})"
            yield Fault("ensemble.size", str(size), problem)
        own, methods = self.get("ensemble.checkpoints"), self.get("methods") or ()
        if size == 0 and own == () and set(methods) - {"one_hot", "one_hot_dfr"}:
            yield Fault("ensemble.size", "0", "there is no teacher; name at least one")

    def _seeds(self) -> Iterator[Fault]:
        """Seeds from which others are counted, beyond what a seed may be."""
        seed, count = self.get("teachers.seed"), self.get("teachers.count")
        if seed is not None and count is not None and seed + count > MOST_SEEDS:
            problem = f"with teachers.count, {count}, goes beyond {MOST_SEEDS - 1}"
            yield Fault("teachers.seed", str(seed), problem)
        methods, seeds = self.get("methods") or (), self.get("seeds") or ()
        if any(method.startswith("deep_ensemble") for method in methods):
            most = MOST_SEEDS // SEEDS_APART - 100
            for number, seed in enumerate(seeds):
                if seed >= most:
                    problem = f"deep ensembles take seeds below {most}"
                    yield Fault(f"seeds.{number}", str(seed), problem)

    def _workers(self) -> Iterator[Fault]:
        for block, who in (("student", "a student"), ("teachers", "a teacher")):
            workers, key = self.get(f"{block}.workers"), f"{block}.training.batch_size"
            batch, gpus = self.get(key), self.get(f"{block}.gpus")
            if workers and batch and batch % workers:
                yield Fault(key, str(batch), f"must be a multiple of {block}.workers, {workers}")
            if workers and workers > 1 and gpus not in (None, AUTO, 0, 1):
                problem = (
                    f"the {workers} workers of {who} need a GPU each, since NCCL cannot share one: "
                    "1, auto, or 0 for none"
                )
                yield Fault(f"{block}.gpus", f"{gpus:g}", problem)
        workers = self.get("student.workers")
        patience, minutes = self.get("fleet.patience"), self.get("student.timeout_minutes")
        if workers and workers > 1 and patience and minutes and 60 * minutes <= patience:
            problem = f"must be longer than fleet.patience, {patience:g} s, which a step may take"
            yield Fault("student.timeout_minutes", f"{minutes:g}", problem)

    def _batches(self) -> Iterator[Fault]:
        most = len(self._dataset.splits[TRAIN]) if self._dataset else 0
        for key in ("teachers.training.batch_size", "student.training.batch_size"):
            batch = self.get(key)
            if most and batch and batch > most:
                yield Fault(key, str(batch), f"more than the {most} training samples")

    def _graphs(self) -> Iterator[Fault]:
        """CUDA graphs of models that are given no GPU."""
        for block in ("student",) if self.get("guidance") == "local" else ("student", "teachers"):
            key = f"{block}.training.compile"
            if self.get(key) == "cuda_graphs" and self.get(f"{block}.gpus") == 0:
                problem = (
                    f"needs a GPU, and {block}.gpus is 0; give it one, or choose default or off"
                )
                yield Fault(key, "cuda_graphs", problem)

    def _files(self) -> list[Fault]:
        data = self.get("data")
        return _caught("data", lambda: open_dataset(data)) if data is not None else []

    def _groups(self) -> Iterable[Fault]:
        """What needs group labels, where the data have none."""
        dataset = self._dataset
        if dataset is None or dataset.groups.known:
            return []
        return self._retraining(
            f"needs group labels, and the data have none{_HOW_TO_LABEL}", by_group=True
        )

    def _halves(self) -> Iterable[Fault]:
        """Last layers that cannot be retrained: a class has no sample to do it on."""
        dataset = self._dataset
        if dataset is None:
            return []
        missing = classes_missing(dataset, DFR)
        if not missing:
            return []
        names = listed(repr(name) for name in missing)
        remedy = "give the validation split two samples of every class at least"
        if hasattr(self.get("data"), "val"):
            remedy = "enlarge data.val"
        elif isinstance(dataset, Sourced) and dataset.splits_from == DRAWN:
            remedy = "enlarge data.shares.val"
        problem = (
            f"retrains last layers on a half of validation ({DFR}), where there is no sample of "
            f"class {names}; leave it out, or {remedy}"
        )
        # Without groups, what needs them is at fault for that already.
        return self._retraining(problem, by_group=None if dataset.groups.known else False)

    def _retraining(self, problem: str, by_group: bool | None) -> Iterator[Fault]:
        """A fault of everything that retrains last layers.

        Args:
            problem: what it is.
            by_group: whether of what needs group labels, or of what does not; None of both.
        """
        for number, method in enumerate(self.get("methods") or ()):
            if method in DFR_METHODS and by_group is not False:
                yield Fault(f"methods.{number}", method, problem)
        debiased, size = self.get("ensemble.debiased"), self.get("ensemble.size")
        numbers = {} if debiased is None else numbers_of(debiased, 1 if size is None else size)
        if any(by_group in (None, KINDS[kind].needs_groups) for kind in numbers):
            if by_group:
                free = " or ".join(f"{{{k.name}: …}}" for k in KINDS.values() if not k.needs_groups)
                problem = f"{problem}, or debias without them: {free}"
            given = debiased if isinstance(debiased, int | str) else numbers
            shown = value_in_words(given)
            yield Fault("ensemble.debiased", shown, problem)

    def _own_checkpoints(self) -> Iterator[Fault]:
        named = {
            f"ensemble.checkpoints.{number}": path
            for number, path in enumerate(self.get("ensemble.checkpoints") or ())
        }
        if (biased := self.get("ensemble.biased")) is not None:
            named["ensemble.biased"] = biased
        for key, path in named.items():
            yield from _caught(key, functools.partial(_check_checkpoint, path, self._dataset))

    def _architectures(self) -> Iterator[Fault]:
        dataset = self._dataset
        models = {
            key: self.get(key)
            for key in ("teachers.model", "student.model", "ensemble.biased_model")
        }
        for number, other in enumerate(self.get("teachers.others") or ()):
            models[f"teachers.others.{number}"] = other
        for key, model in models.items():
            if model is not None and dataset is not None:
                shape, classes = dataset.shape, len(dataset.classes)
                tokens = tokens_of(dataset)
                yield from _caught(key, functools.partial(check, model, shape, classes, tokens))
                yield from _caught(key, functools.partial(_check_tokenizer, model, dataset))
            elif model is not None:  # sizes are unknown, but names and arguments are not
                yield from _caught(key, functools.partial(check_name, model))

    def _of_this_process(self) -> Iterator[Fault]:
        """Strategies and kinds of teachers that no other process of the job would know."""
        if self.get("guidance") in (None, "local") or any("plugins" in key for key in self._bad):
            return
        named: dict[str, tuple[str, Callable[..., Any] | None]] = {
            f"methods.{number}": (method, STRATEGIES.maker(method))
            for number, method in enumerate(self.get("methods") or ())
            if method in STRATEGIES
        }
        debiased = self.get("ensemble.debiased")
        for kind in (
            {} if debiased is None else numbers_of(debiased, self.get("ensemble.size") or 1)
        ):
            named[f"ensemble.debiased.{kind}"] = kind, KINDS.maker(kind)
        for key, (name, maker) in named.items():
            if maker is not None and not plugins.travels(maker):
                problem = (
                    f"is known to this process alone ({maker.__module__}); put it into a module "
                    "that `plugins` names, or say guidance: local"
                )
                yield Fault(key, name, problem)

    def _places(self) -> Iterator[Fault]:
        """Places of teachers that the ensemble does not have."""
        fleet, ensemble, teachers = (self.get(key) for key in ("fleet", "ensemble", "teachers"))
        if not (fleet and fleet.teachers and ensemble and teachers):
            return
        try:
            drawn = draw(ensemble, teachers)
        except AgrekdError:
            return  # what is wrong with the ensemble has been said
        names = sorted({*drawn.teachers, drawn.biased})
        for pattern in unknown_patterns(fleet, names):
            problem = f"no teacher of the ensemble is called so; there are {', '.join(names)}"
            yield Fault(f"fleet.teachers.{pattern}", "", problem, nearest(pattern, names))

    def _folders(self) -> Iterator[Fault]:
        for key in ("runs", "teachers.store", "outputs.store"):
            if (path := self.get(key)) is not None and (problem := _unwritable(path)):
                yield Fault(key, str(path), problem)

    def _outputs(self) -> Iterator[Fault]:
        outputs, dataset = self.get("outputs"), self._dataset
        if outputs is not None and dataset is not None:
            yield from outputs_faults(outputs, len(dataset.classes))


def outputs_faults(outputs: OutputSettings, classes: int) -> Iterator[Fault]:
    """What is wrong with records of answers of so many classes."""
    try:
        outputs.form(classes)
    except RunError as error:
        yield Fault("outputs.top_k", str(outputs.top_k), str(error))


_HOW_TO_LABEL = ": leave it out, or name the columns that hold them (a table's data.columns.groups)"


def _caught(key: str, look: Callable[[], object]) -> list[Fault]:
    try:
        look()
    except AgrekdError as error:
        text = str(error).rstrip(".")
        named = re.match(r"^((?:data|teachers|student)\.[\w.]+)(?: \+ [\w.]+)?: ", text)
        if named:
            return [Fault(named[1], "", text[named.end() :])]
        return [Fault(key, "", text)]
    return []


def _unwritable(folder: Path) -> str | None:
    """Why nothing could be written to a folder that may not exist yet; None where it could."""
    try:
        if "\0" in str(folder):
            return "no path has a null character"
        existing = next(p for p in (folder, *folder.parents) if p.exists())
    except OSError as error:
        return f"no folder can have this path ({error.strerror or error})"
    if not existing.is_dir():
        return f"{existing} is a file, not a folder"
    try:  # trying beats asking: rights, read-only and full file systems in one
        with tempfile.TemporaryDirectory(dir=existing):
            return None
    except OSError as error:
        return f"{existing} cannot be written ({error.strerror or error}); choose another folder"


def _check_checkpoint(path: Path, dataset: Dataset | None) -> None:
    """Refuse a finished model that does not fit the data."""
    manifest = read_manifest(path)
    if dataset is None:
        return
    check_classes(path, manifest, dataset.classes)
    if manifest.shape != dataset.shape:
        raise AgrekdError(
            f"{path}: takes {in_words(manifest.shape)}, the data are {in_words(dataset.shape)}"
        )


def _check_tokenizer(model: Model, dataset: Dataset) -> None:
    """Refuse weights of a folder whose own tokenizer is not the data's."""
    folder = Path(model.name.removeprefix(TRANSFORMERS))
    if model.weights != PRETRAINED or not (folder.is_absolute() and has_tokenizer(folder)):
        return
    try:
        difference = other_tokens(dataset, folder)
    except DataError:
        return  # one that this program does not read cannot be compared
    if difference:
        raise AgrekdError(f"{folder}: its tokenizer {difference}; set data.tokenizer to it")
