"""The teachers of a job on the terminal: who there is, and how well each does by group."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from yaml import YAMLError

from agrekd_ray.config import Fault, Job, JobError, faults_of, load_job
from agrekd_ray.config.reading import ambiguous
from agrekd_ray.data import SELECT, TEST, Dataset, open_dataset
from agrekd_ray.devices import device_of
from agrekd_ray.errors import CheckpointError, RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.eval_logits import Answers, checked_ensemble
from agrekd_ray.experiment.plan import make_plan
from agrekd_ray.files import replacing
from agrekd_ray.models import Manifest, Model, check_classes, load, read_manifest
from agrekd_ray.report import ensemble
from agrekd_ray.results import Metrics
from agrekd_ray.results.many import ends, ends_in_words, mean_of_rows
from agrekd_ray.teachers import Pool, answers, measured
from agrekd_ray.teachers.imported import IMPORTED, Imported, Source, import_teacher
from agrekd_ray.training import evaluate

NONE = "–"


@dataclass(frozen=True)
class Known:
    """A teacher that a job has, or could have.

    Attributes:
        name: in the job's ensemble, or of the imported checkpoint.
        kind: `erm`, a kind of debiasing (`dfr`, ...), `own` or `imported`.
        role: `teacher`, `biased model`, both, or nothing where the job does not use it.
        folder: where it is, or will be.
        manifest: of its checkpoint; None where it is not made yet, or damaged.
        measured: whether the metrics in its manifest are of the job's data.
    """

    name: str
    kind: str
    role: str
    folder: Path
    manifest: Manifest | None
    measured: bool


def known_teachers(job: Job) -> tuple[Dataset, list[Known]]:
    """The job's data, its ensemble, and what was imported beside it."""
    plan, dataset = make_plan(job), open_dataset(job.data)
    pool, drawn = Pool(job.teachers.store, dataset), plan.draw
    teachers = [
        Known(
            name,
            drawn.kind(name),
            _role(name, drawn.teachers, drawn.biased),
            folder,
            _manifest(folder),
            name in drawn.recipes,
        )
        for name, folder in plan.checkpoints(pool).items()
    ]
    used = {teacher.folder for teacher in teachers}
    place = job.teachers.store / IMPORTED
    teachers += [
        Known(folder.name, IMPORTED, "", folder, _manifest(folder), False)
        for folder in (sorted(place.iterdir()) if place.is_dir() else [])
        if folder not in used and not folder.name.startswith(".")
    ]
    return dataset, teachers


def import_for(
    job: Path,
    overrides: Sequence[str],
    file: Path,
    name: str,
    model: dict[str, Any],
    classes: Sequence[str] | None,
    trusted: bool,
    weights: str | None = None,
    expected: float | None = None,
) -> tuple[Imported, Dataset]:
    """Import a teacher for a job; see `import_teacher`.

    Args:
        job: file of the job.
        overrides: changes to it.
        file: what is imported.
        name: of the checkpoint.
        model: values of its `Model`, as the command line has them.
        classes: names in the order of its logits, or None.
        trusted: whether the user vouches for a program.
        weights: name of a set of weights, where there are several.
        expected: per cent of samples that it gets right on such data; None where nobody knows.

    Returns:
        What was imported, and the job's data.

    Raises:
        JobError: the job has faults, or the model's values.
        AgrekdError: it cannot teach on these data.
    """
    loaded = load_job(job, overrides)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise JobError("--name", [Fault("name", name, "letters, digits, '_', '-' and '.'")])
    if wrong := [pair for pair in model["args"] if "=" not in pair]:
        raise JobError("--model-args", [Fault(arg, "", "is written KEY=VALUE") for arg in wrong])
    pairs = [f"args.{pair}" for pair in model["args"]]
    preprocess = model["preprocess"]
    is_block = preprocess is not None and preprocess.lstrip().startswith("{")
    try:
        said = [*pairs, *([f"preprocess={preprocess}"] if is_block else [])]
        parts = [pair.partition("=") for pair in said]
        if faults := [fault for key, _, value in parts for fault in ambiguous(value, key)]:
            raise JobError("--model", faults)
        args = OmegaConf.to_container(OmegaConf.from_dotlist(pairs))
        if is_block:
            preprocess = OmegaConf.to_container(OmegaConf.create(preprocess))
        values = {**model, "args": {}, **args, "preprocess": preprocess}  # type: ignore[dict-item]
        described = Model.model_validate(values)
    except ValidationError as error:
        raise JobError("--model", faults_of(error, Model)) from None
    except (OmegaConfBaseException, YAMLError) as error:
        text = " ".join(str(error).split())
        raise JobError("--model", [Fault("model", "", f"is no valid YAML ({text})")]) from None
    names = tuple(name.strip() for name in classes) if classes else None
    source = Source(file.absolute(), described, names, trusted, weights)
    dataset = open_dataset(loaded.data)
    share = None if expected is None else expected / 100
    return import_teacher(source, dataset, loaded.teachers.store, name, share), dataset


def show_imported(imported: Imported, dataset: Dataset, console: Console) -> None:
    """Say where a teacher is now, what was taken of its file, and how well it does by group."""
    folder, name = imported.folder, imported.folder.name
    lines = [str(folder), f"To let it teach: ensemble.checkpoints=[{folder}]", *imported.notes]
    for line in lines:
        console.print(line, soft_wrap=True)
    known = Known(name, IMPORTED, "", folder, imported.manifest, True)
    console.print(_by_group(SELECT, [(known, imported.metrics)], dataset.groups.names))
    for warning in imported.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def list_teachers(job: Job, console: Console) -> None:
    """A table of the job's teachers: architecture, kind, metrics, fingerprint, where."""
    _, teachers = known_teachers(job)
    table = _table("teacher", "kind", "architecture", "role", "worst", "mean", "fingerprint")
    for teacher in teachers:
        table.add_row(*map(Text, (teacher.name, teacher.kind, *_about(teacher))))
    console.print(table)
    tested = (_tested(teacher) for teacher in teachers)
    worst = next((metrics.worst for metrics in tested if metrics), "worst group")
    console.print(f"worst, mean: accuracy on test in %, of the {worst} and over all samples")
    for teacher in teachers:
        console.print(f"{teacher.name:<14}{teacher.folder}", soft_wrap=True)


def evaluate_teachers(
    job: Job, names: Sequence[str], output: Path | None, console: Console
) -> None:
    """Accuracy by group of the job's teachers, on the selection half of validation and on test.

    Args:
        job: the job.
        names: of teachers; none for all that the job uses.
        output: CSV file, or None.
        console: for the table.

    Raises:
        RunError: a teacher that is unknown, or not made yet.
        CheckpointError: a checkpoint is damaged or of other classes.
    """
    dataset, teachers = known_teachers(job)
    by_name = {teacher.name: teacher for teacher in teachers}
    if unknown := [name for name in names if name not in by_name]:
        raise RunError(f"no teacher {', '.join(unknown)}; there are {', '.join(by_name)}.")
    wanted = [by_name[name] for name in names] or [t for t in teachers if t.role and t.manifest]
    beside = [teacher.name for teacher in teachers if not teacher.role and not names]
    others = f"imported beside them, and evaluated by name: {', '.join(beside)}" if beside else ""
    if not wanted:
        raise RunError(
            "no teacher of the job is made yet; agrekd record or agrekd run makes them"
            f"{others and '; '}{others}."
        )
    if absent := [teacher.name for teacher in wanted if teacher.manifest is None]:
        raise RunError(
            f"{', '.join(absent)}: not made yet, or damaged; agrekd record or agrekd run makes it."
        )
    measured: list[tuple[Known, str, Metrics]] = []
    with Display(console) as display:
        display.stage("evaluate", len(wanted), "teachers")
        for teacher in wanted:
            by_split = _metrics(teacher, dataset, display)
            measured += [(teacher, split, metrics) for split, metrics in by_split.items()]
            display.advance(teacher.name)
    if others:
        console.print(others, soft_wrap=True)
    for split in (SELECT, TEST):
        figures = [(teacher, metrics) for teacher, of, metrics in measured if of == split]
        console.print(_by_group(split, figures, dataset.groups.names))
    if not names:
        _show_check(job, dataset, {teacher.folder for teacher in wanted}, console)
    if output is not None:
        _write(output, measured)
        console.print(f"written: {output}", soft_wrap=True)


def _show_check(job: Job, dataset: Dataset, made: Collection[Path], console: Console) -> None:
    """What a run would say of the ensemble before its first student; nothing until all are made."""
    plan, pool = make_plan(job), Pool(job.teachers.store, dataset)
    folders = plan.checkpoints(pool)
    models = {folders[name]: name for name in (*plan.draw.teachers, plan.draw.biased)}
    if not models.keys() <= {*made}:
        return
    records = Answers(job, dataset)
    told: dict[Path, Tensor] = {}
    with Display(console) as display:
        display.stage("answers", len(models), "models")
        for one in records.missing(models, [SELECT]):
            asked = replace(one, precision="auto")
            told[one.folder] = answers(asked, dataset, device_of())[SELECT]
            display.advance(one.name)

    def logits(folder: Path, split: str) -> Tensor:
        return told[folder] if folder in told else records.logits(folder, split)

    ensemble.render(checked_ensemble(job, plan, pool, logits), console)


def _metrics(teacher: Known, dataset: Dataset, display: Display) -> dict[str, Metrics]:
    manifest = teacher.manifest
    if teacher.measured and manifest is not None and {SELECT, TEST} <= manifest.metrics.keys():
        by_split = measured(teacher.folder, manifest)
        return {split: by_split[split] for split in (SELECT, TEST)}
    device = device_of()
    count = sum(len(dataset.splits[split]) for split in (SELECT, TEST))
    display.note(f"{teacher.name}: {count} samples on {device}")
    model, manifest = load(teacher.folder, device)
    check_classes(teacher.folder, manifest, dataset.classes)
    return {split: evaluate(model, dataset, split, device) for split in (SELECT, TEST)}


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except CheckpointError:
        return None


def _role(name: str, teachers: Sequence[str], biased: str) -> str:
    roles = ["teacher"] * (name in teachers) + ["biased model"] * (name == biased)
    return ", ".join(roles)


def _tested(teacher: Known) -> Metrics | None:
    """What a teacher of the job's pool came to on the test split."""
    if teacher.manifest is None or not teacher.measured:
        return None
    return measured(teacher.folder, teacher.manifest).get(TEST)


def _about(teacher: Known) -> tuple[str, ...]:
    manifest, metrics = teacher.manifest, _tested(teacher)
    if manifest is None:
        return (NONE, teacher.role, "not made yet", "", "")
    values = (metrics.worst_group_accuracy, metrics.accuracy) if metrics else (None, None)
    return (manifest.model.name, teacher.role, *map(_percent, values), manifest.fingerprint[:12])


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _table(*headers: str, left: int = 4, title: Text | None = None) -> Table:
    """An empty table, whose first columns hold words and whose others hold numbers."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for number, header in enumerate(headers):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        table.add_column(Text(header), justify=justify, overflow="fold")
    return table


def _by_group(split: str, figures: list[tuple[Known, Metrics]], groups: Sequence[str]) -> Table:
    worst = figures[0][1].worst
    present = [name for name in groups if any(name in metrics.groups for _, metrics in figures)]
    title = Text(f"{split}: accuracy in %")
    means = mean_of_rows({teacher.name: metrics.groups for teacher, metrics in figures})
    if len(shown := ends(means)) < len(present):
        title.append(f", groups: {ends_in_words(len(present))}")
        present = shown
    table = _table("teacher", "mean", worst, *present, left=1, title=title)
    for teacher, metrics in figures:
        values = [metrics.accuracy, metrics.worst_group_accuracy, *map(metrics.groups.get, present)]
        table.add_row(*map(Text, (teacher.name, *map(_percent, values))))
    return table


def _write(path: Path, measured: list[tuple[Known, str, Metrics]]) -> None:
    """A row for each teacher, split and group; the whole split has no group."""
    rows: list[tuple[Any, ...]] = []
    for teacher, split, metrics in measured:
        architecture = teacher.manifest.model.name if teacher.manifest else ""
        about = (teacher.name, teacher.kind, architecture, split)
        rows.append((*about, "", metrics.accuracy, sum(metrics.counts.values())))
        for group, accuracy in metrics.groups.items():
            rows.append((*about, group, accuracy, metrics.counts[group]))
        for group, accuracy in (metrics.overlapping or {}).items():
            rows.append((*about, group, accuracy, ""))
    try:
        with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ("teacher", "kind", "architecture", "split", "group", "accuracy", "samples")
            )
            writer.writerows(rows)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}).") from None
