"""The whole vocabulary of a job: YAML, then dotted overrides, then validation of everything."""

from __future__ import annotations

import difflib
import functools
import re
import tempfile
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from agrekd_ray.core.weighting import STRATEGIES, SampleWeighting
from agrekd_ray.data import TRAIN, Dataset, DataSettings, open_dataset, tokens_of
from agrekd_ray.errors import AgrekdError
from agrekd_ray.guidance.fleet_settings import FleetSettings
from agrekd_ray.models import check, check_classes, check_name, in_words, read_manifest
from agrekd_ray.outputs import OutputSettings
from agrekd_ray.settings import A_NUMBER, A_WORD, LocalPath, Positive, Seed, Settings, Share
from agrekd_ray.student import StudentSettings
from agrekd_ray.study.settings import Published, Sweep
from agrekd_ray.teachers import EnsembleSettings, TeacherSettings

BASELINES = ("one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote")
"""Methods without distillation."""
METHODS = (*BASELINES, *STRATEGIES)
Method = Literal[METHODS]  # type: ignore[valid-type]


class AgreKdOptions(Settings):
    """Options of `agre_kd`.

    Attributes:
        normalize: cosine (the paper) or plain dot product (its Table 6).
        fallback: what a sample gets whose weights are all 0: `uniform` or `skip`.
    """

    normalize: bool = True
    fallback: Literal["uniform", "skip"] = "uniform"


class AeKdOptions(Settings):
    """Options of `ae_kd`.

    Attributes:
        box: largest weight of a teacher; raised to 1/M where that is more.
    """

    box: Annotated[Positive, Field(le=1)] = 0.6


class SampleWeightingSettings(Settings):
    """Scale every sample by how far the ensemble answers from the biased model.

    Attributes:
        floor: added to the total variation distance.
        exponent: that the sum is raised to.
    """

    floor: Positive = 0.02
    exponent: Positive = 0.5

    def build(self) -> SampleWeighting:
        """As `core` takes it."""
        return SampleWeighting(self.floor, self.exponent)


class DistillationSettings(Settings):
    """How the student is taught.

    Attributes:
        temperature: tau.
        alpha: share of distillation in the objective; the rest is cross-entropy with labels.
        agre_kd: options of that strategy.
        ae_kd: options of that strategy.
        sample_weighting: on for every strategy, or null for off.
    """

    temperature: Positive = 4.0
    alpha: Share = 1.0
    agre_kd: AgreKdOptions = AgreKdOptions()
    ae_kd: AeKdOptions = AeKdOptions()
    sample_weighting: SampleWeightingSettings | None = None

    def options(self, strategy: str) -> dict[str, Any]:
        """Options of a strategy, by name."""
        block = getattr(self, strategy, None)
        return block.model_dump() if isinstance(block, Settings) else {}


class TrackingSettings(Settings):
    """Where runs are recorded.

    Attributes:
        uri: of the MLflow store; null is a SQLite file in the runs folder.
        experiment: name of the experiment; null takes the job's name.
        models: whether every student is kept there as a model too.
    """

    uri: str | None = None
    experiment: str | None = None
    models: bool = True


class RaySettings(Settings):
    """Which Ray cluster.

    Attributes:
        address: of a running cluster (`auto`, `ray://...`, `host:port`); null starts one here
            and ends it with the run.
    """

    address: str | None = None


class Job(Settings):
    """One job: a pool of teachers, and every method with every seed.

    Attributes:
        name: of the job; its runs are in `RUNS/NAME/`.
        data: the data set.
        teachers: the pool.
        ensemble: who of the pool teaches.
        student: the student.
        distillation: how it is taught.
        methods: what is compared, in the order of the table.
        seeds: of the students.
        sweep: makes the job a study: values by dotted key of the job; every combination is run.
        draws: of data and teachers, by number; makes the job a study, too. Draw 0 is the job.
        published: results of others to stand beside one's own.
        guidance: `auto` (recorded outputs of teachers where they are complete, else the fleet,
            which records), `live` (the fleet computes every answer, nothing is recorded) or
            `local` (everything in one process, without Ray and records).
        fleet: how live teachers are hosted.
        outputs: where teachers' outputs are recorded.
        tracking: MLflow.
        ray: the cluster.
        runs: folder of all runs.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    data: DataSettings
    teachers: TeacherSettings
    ensemble: EnsembleSettings = EnsembleSettings()
    student: StudentSettings
    distillation: DistillationSettings = DistillationSettings()
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    sweep: Sweep = Field(default_factory=dict)
    draws: tuple[Seed, ...] = ()
    published: Published | None = None
    guidance: Literal["auto", "live", "local"] = "auto"
    fleet: FleetSettings = FleetSettings()
    outputs: OutputSettings = OutputSettings()
    tracking: TrackingSettings = TrackingSettings()
    ray: RaySettings = RaySettings()
    runs: LocalPath = Path("runs")

    @property
    def is_study(self) -> bool:
        """Whether it has several points, or published results to stand beside."""
        return bool(self.sweep or self.draws or self.published)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a job.

    Attributes:
        key: dotted path.
        value: as given, in words; empty where it is missing.
        problem: what is wrong and what is allowed.
        nearest: the valid name that was probably meant, or None.
    """

    key: str
    value: str
    problem: str
    nearest: str | None = None

    def __str__(self) -> str:
        given = f" = {self.value}" if self.value else ""
        hint = f" Did you mean {self.nearest}?" if self.nearest else ""
        return f"{self.key}{given}: {self.problem}.{hint}"


class JobError(AgrekdError):
    """A job with faults, all of them.

    Attributes:
        faults: in the order of the job.
    """

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {f}" for f in faults)]))


_NOT_YAML = (OmegaConfBaseException, YAMLError, ValueError, RecursionError)


def read_job(path: Path, overrides: Iterable[str] = (), what: str = "job") -> dict[str, Any]:
    """A job's raw values: the YAML file with `key.path=value` overrides merged in.

    Args:
        path: the file.
        overrides: changes to it.
        what: kind of file, in words.

    Raises:
        JobError: the file is missing or no YAML mapping, or an override has no `=`.
    """
    no_mapping = f"holds no keys; a {what} is a YAML mapping"
    try:
        text = path.read_text()
    except OSError as error:
        near = [*difflib.get_close_matches(path.name, _neighbours(path), 1), None][0]
        raise JobError(
            str(path),
            [
                Fault(
                    what,
                    "",
                    f"cannot be read ({error.strerror or error})",
                    near,
                )
            ],
        ) from None
    except UnicodeDecodeError:
        raise JobError(str(path), [Fault(what, "", "is no text file, so no YAML")]) from None
    pairs = list(overrides)
    wrong = [pair for pair in pairs if not re.match(r"^[A-Za-z_][\w.]*=", pair)]
    if wrong:
        raise JobError(
            str(path), [Fault(pair, "", "an override is written key.path=value") for pair in wrong]
        )
    try:
        job = OmegaConf.create(text)
        if not OmegaConf.is_dict(job) or not job:
            raise JobError(str(path), [Fault(what, "", no_mapping)])
        merged, faults = _overridden(job, pairs)
        if faults:
            raise JobError(str(path), faults)
        return typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except AssertionError:  # OmegaConf's answer to a document that is one number
        raise JobError(str(path), [Fault(what, "", no_mapping)]) from None
    except _NOT_YAML as error:
        problem = f"is no valid YAML ({_one_line(error)})"
        raise JobError(str(path), [Fault(what, "", problem)]) from None


def _overridden(job: Any, pairs: Sequence[str]) -> tuple[Any, list[Fault]]:
    """The job with the overrides merged in, and what is wrong with each of them."""
    faults = []
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            job = OmegaConf.merge(job, OmegaConf.from_dotlist([pair]))
        except TypeError:  # a key inside a list, like seeds.0
            problem = "reaches into a list; override the list as a whole, key=[a,b]"
            faults.append(Fault(key, value, problem))
        except _NOT_YAML as error:
            faults.append(Fault(key, value, f"is no valid YAML ({_one_line(error)})"))
    return job, faults


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def load_job(path: Path, overrides: Iterable[str] = ()) -> Job:
    """Read and check a job whole: every key, every value, every file that it names.

    Raises:
        JobError: all faults at once.
    """
    raw = read_job(path, overrides)
    job, faults = check_job(raw)
    if faults or job is None:
        raise JobError(str(path), faults)
    return job


def check_job(raw: dict[str, Any]) -> tuple[Job | None, list[Fault]]:
    """All faults of a job's raw values; the job where there is none."""
    faults: list[Fault] = []
    job: Job | None = None
    try:
        job = Job.model_validate(raw)
    except ValidationError as error:
        faults += faults_of(error, Job)
    faults += _Whole(raw, job, {fault.key for fault in faults}).faults()
    if job is not None and not faults and job.is_study:
        from agrekd_ray.study.points import study_faults  # which checks jobs itself

        faults += study_faults(job)
    return (None if faults else job), faults


def faults_of(error: ValidationError, model: type[Settings]) -> list[Fault]:
    """What pydantic found, in a user's words.

    Args:
        error: of the validation.
        model: that the values were to be of.
    """
    details = error.errors(include_url=False)
    faulty = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}
    return [
        _fault(detail, model)
        for detail in details
        # pydantic counts a list's faulty entries as missing ones
        if not (detail["type"] == "too_short" and detail["loc"] in faulty)
    ]


class _Whole:
    """Checks that look at several keys, or at files; each runs where what it needs is sound."""

    def __init__(self, raw: dict[str, Any], job: Job | None, bad: set[str]) -> None:
        self._raw, self._job, self._bad = raw, job, bad

    def _get(self, path: str) -> Any:
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
        found: list[Fault] = []
        for rule in (
            self._lists,
            self._sizes,
            self._files,
            self._groups,
            self._own_checkpoints,
            self._architectures,
            self._folders,
        ):
            found += rule()
        return found

    def _dataset(self) -> Dataset | None:
        data = self._get("data")
        try:
            return open_dataset(data) if data is not None else None
        except AgrekdError:
            return None

    def _lists(self) -> list[Fault]:
        return [
            Fault(key, str(list(values)), "names the same thing twice")
            for key in ("methods", "seeds")
            if (values := self._get(key)) and len(set(values)) < len(values)
        ]

    def _sizes(self) -> list[Fault]:
        found = []
        size, count = self._get("ensemble.size"), self._get("teachers.count")
        if size is not None and count is not None and size > count:
            problem = f"more teachers than the pool has (teachers.count is {count})"
            found.append(Fault("ensemble.size", str(size), problem))
        own, methods = self._get("ensemble.checkpoints"), self._get("methods") or ()
        if size == 0 and own == () and set(methods) - {"one_hot", "one_hot_dfr"}:
            found.append(Fault("ensemble.size", "0", "there is no teacher; name at least one"))
        workers, key = self._get("student.workers"), "student.training.batch_size"
        batch = self._get(key)
        if workers and batch and batch % workers:
            problem = f"must be a multiple of student.workers, {workers}"
            found.append(Fault(key, str(batch), problem))
        dataset = self._dataset()
        for key in ("teachers.training.batch_size", "student.training.batch_size"):
            batch = self._get(key)
            if dataset and batch and batch > len(dataset.splits[TRAIN]):
                problem = f"more than the {len(dataset.splits[TRAIN])} training samples"
                found.append(Fault(key, str(batch), problem))
        return found

    def _files(self) -> list[Fault]:
        data = self._get("data")
        return _caught("data", lambda: open_dataset(data)) if data is not None else []

    def _groups(self) -> list[Fault]:
        """What needs group labels, where the data have none."""
        dataset = self._dataset()
        if dataset is None or dataset.groups.known:
            return []
        problem = f"needs group labels, and the data have none{_HOW_TO_LABEL}"
        found = [
            Fault(f"methods.{number}", method, problem)
            for number, method in enumerate(self._get("methods") or ())
            if method in ("one_hot_dfr", "deep_ensemble_dfr")
        ]
        if debiased := self._get("ensemble.debiased"):
            found.append(Fault("ensemble.debiased", str(debiased), problem))
        return found

    def _own_checkpoints(self) -> list[Fault]:
        dataset = self._dataset()
        named = [
            (f"ensemble.checkpoints.{number}", path)
            for number, path in enumerate(self._get("ensemble.checkpoints") or ())
        ]
        if (biased := self._get("ensemble.biased")) is not None:
            named.append(("ensemble.biased", biased))
        found = []
        for key, path in named:

            def look(path: Path = path) -> None:
                manifest = read_manifest(path)
                if dataset is not None:
                    check_classes(path, manifest, dataset.classes)
                    if manifest.shape != dataset.shape:
                        raise AgrekdError(
                            f"{path}: takes {in_words(manifest.shape)}, the data are "
                            f"{in_words(dataset.shape)}"
                        )

            found += _caught(key, look)
        return found

    def _architectures(self) -> list[Fault]:
        dataset = self._dataset()
        found = []
        models = {
            key: self._get(key)
            for key in ("teachers.model", "student.model", "ensemble.biased_model")
        }
        for number, other in enumerate(self._get("teachers.others") or ()):
            models[f"teachers.others.{number}"] = other
        for key, model in models.items():
            if model is not None and dataset is not None:
                shape, classes = dataset.shape, len(dataset.classes)
                tokens = tokens_of(dataset)
                found += _caught(key, functools.partial(check, model, shape, classes, tokens))
            elif model is not None:  # sizes are unknown, but names and arguments are not
                found += _caught(key, functools.partial(check_name, model))
        return found

    def _folders(self) -> list[Fault]:
        return [
            Fault(key, str(path), problem)
            for key in ("runs", "teachers.store", "outputs.store")
            if (path := self._get(key)) is not None and (problem := _unwritable(path))
        ]


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


def _neighbours(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []


_WORDS = {
    "model_type": "must be a mapping (a block of keys)",
    "model_attributes_type": "must be a mapping (a block of keys)",
    "dict_type": "must be a mapping (a block of keys)",
    "invalid_key": "a key must be text",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entry",
    "path_type": "must be a path",
    "string_type": "must be text (a number in quotes is text)",
}
"""Pydantic's kinds of error that speak of Python, in a job's words."""


def _fault(detail: ErrorDetails, model: type[Settings]) -> Fault:
    """A fault in a job's words out of pydantic's error."""
    loc = list(detail["loc"])
    choice = None
    if len(loc) > 1 and loc[0] == "data" and loc[1] in _tags():
        choice = str(loc.pop(1))  # pydantic names the union's choice; a job does not
    loc = [part for part in loc if part not in (A_NUMBER, A_WORD)]
    key = ".".join(map(str, loc))
    kind, context = detail["type"], detail.get("ctx", {})
    value = detail["input"]
    shown = str(value) if isinstance(value, str | int | float | bool) else ""
    if value is None and kind != "missing":
        shown = "null"
    if kind == "extra_forbidden":
        names = names_at(loc[:-1], model, choice)
        near = difflib.get_close_matches(str(loc[-1]), names, 1)
        return Fault(
            key,
            shown,
            f"unknown key; known here: {', '.join(names)}",
            ".".join([*map(str, loc[:-1]), near[0]]) if near else None,
        )
    if kind == "missing":
        return Fault(key, "", "is missing")
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = [
            word.strip("' ")
            for word in re.split(r", | or ", context.get("expected") or context["expected_tags"])
        ]
        near = difflib.get_close_matches(str(context.get("tag", value)), allowed, 1, 0.5)
        tag = kind == "union_tag_invalid"
        return Fault(
            f"{key}.name" if tag else key,
            str(context["tag"]) if tag else shown,
            f"must be one of {', '.join(allowed)}",
            near[0] if near else None,
        )
    if kind == "union_tag_not_found":
        return Fault(f"{key}.name", "", f"is missing; one of {', '.join(_tags())}")
    if kind in _WORDS:
        return Fault(key, shown, _WORDS[kind].format(**context))
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "string_pattern_mismatch":
        message = "letters, digits, '_', '-' and '.', beginning with a letter or digit"
    problem = message if kind == "value_error" and "number" not in message else f"must be {message}"
    return Fault(key, shown, problem.rstrip("."))


def _tags() -> list[str]:
    return [_tag(option) for option in _models_in(DataSettings)]


def _tag(option: type[BaseModel]) -> str:
    return str(typing.get_args(option.model_fields["name"].annotation)[0])


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def names_at(
    loc: Sequence[str | int], model: type[BaseModel] | None = None, choice: str | None = None
) -> list[str]:
    """Known keys of the block at a path.

    Args:
        loc: the path.
        model: of the whole; None for a job.
        choice: name of the job's data set, where the block depends on it.
    """
    models: list[type[BaseModel]] = [model or Job]
    free = False  # the block's own keys are the user's
    for part in loc:
        if free:
            free = False
            continue
        fields = [m.model_fields[str(part)] for m in models if str(part) in m.model_fields]
        models = [model for field in fields for model in _models_in(field.annotation)]
        free = any(typing.get_origin(field.annotation) is dict for field in fields)
        if part == "data" and choice:
            models = [model for model in models if _tag(model) == choice]
    return sorted({name for model in models for name in model.model_fields}) if not free else []
