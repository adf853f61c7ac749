"""`agrekd data`: what a job's data are, and what they look like."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from agrekd_ray.commands.contact_sheet import draw
from agrekd_ray.config import Job, JobError, check_job, read_job
from agrekd_ray.data import (
    DFR,
    SELECT,
    TEST,
    TRAIN,
    Dataset,
    DataSettings,
    Excerpted,
    Prepared,
    open_dataset,
    remarks_on,
    splits_in_words,
)
from agrekd_ray.data.chunks import BrokenRowsError
from agrekd_ray.data.published import Published
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.preparing import prepare_data

SPLITS = (TRAIN, DFR, SELECT, TEST)
MOST_BROKEN = 10


def read_data(path: Path, overrides: Iterable[str]) -> tuple[Any, Dataset, Job | None]:
    """The data of a job, settings and opened, and the job: None where anything else is wrong.

    Args:
        path: of the job.
        overrides: `key.path=value` changes to it.

    Raises:
        JobError: what is wrong with the data.
    """
    raw = read_job(path, overrides)
    job, faults = check_job(raw)
    if of_data := [fault for fault in faults if fault.key.split(".")[0] == "data"]:
        raise JobError(str(path), of_data)
    settings: Any = TypeAdapter(DataSettings).validate_python(raw["data"])
    return settings, open_dataset(settings), job


def check_data(path: Path, overrides: Iterable[str], fast: bool, console: Console) -> bool:
    """Say what a job's data are, and prepare them.

    Args:
        path: of the job.
        overrides: `key.path=value` changes to it.
        fast: true leaves the samples themselves unread.
        console: to print on.

    Returns:
        Whether all samples that were read are sound.

    Raises:
        JobError: what is wrong with the tables and files.
    """
    settings, dataset, job = read_data(path, overrides)
    facts = _facts(settings, dataset)
    _print(facts, console)
    console.print(_counts(settings, dataset))
    if isinstance(dataset, Prepared):
        if fast:
            _print({"samples": "not read (--fast)"}, console)
            _remark(dataset, console)
            return True
        try:
            with Display(console) as display:
                prepare_data(dataset, display, job)
        except BrokenRowsError as error:
            console.print(f"{len(error.faults):,} broken samples", style="red")
            for fault in error.faults[:MOST_BROKEN]:
                console.print(Text(f"  - {fault}"), soft_wrap=True)
            if len(error.faults) > MOST_BROKEN:
                console.print(f"  and {len(error.faults) - MOST_BROKEN:,} more")
            return False
    _print({"samples": f"{dataset.size:,}, all sound"}, console)
    _remark(dataset, console)
    _print({"fingerprint": dataset.fingerprint}, console)
    return True


def show_data(
    path: Path,
    overrides: Iterable[str],
    output: Path | None,
    examples: int,
    epoch: int | None,
    console: Console,
) -> None:
    """Show examples of every group: pictures on a contact sheet, text in a table.

    Args:
        path: of the job.
        overrides: `key.path=value` changes to it.
        output: the PNG; None writes `NAME-data.png`, NAME being the data set's. Text is printed.
        examples: of each group.
        epoch: shows pictures as the training of this epoch does; None as evaluation does.
        console: for progress, and for text.

    Raises:
        JobError: what is wrong with the data.
        DataError: a sample is broken.
    """
    settings, dataset, job = read_data(path, overrides)
    with Display(console) as display:
        prepare_data(dataset, display, job)
    chosen = [_examples(dataset, group, examples) for group in range(len(dataset.groups.names))]
    by_split = {name: dataset.groups.count(dataset.splits[name]) for name in SPLITS}
    counts = [
        " · ".join(f"{name} {by_group[group]:,}" for name, by_group in by_split.items())
        for group in dataset.groups.names
    ]
    if isinstance(dataset, Excerpted):
        console.print(_excerpts(dataset, chosen, counts))
        return
    target = output or Path(f"{settings.name}-data.png")
    draw(
        target,
        title=f"{settings.name}: {dataset.size:,} samples, {_shape(dataset)}",
        names=dataset.groups.names,
        counts=counts,
        pictures=[dataset.inputs(ids, epoch).numpy() for ids in chosen],
        note=_groups(dataset) + ("" if epoch is None else f"; as epoch {epoch} shows them"),
    )
    console.print(str(target), soft_wrap=True)


def _facts(settings: Any, dataset: Dataset) -> dict[str, str]:
    facts = {
        "data set": str(settings.name),
        "source": _source(settings),
        "classes": _listed(dataset.classes),
        "inputs": _shape(dataset),
        "groups": _groups(dataset),
    }
    if splits := splits_in_words(dataset):
        facts["splits"] = splits
    if dataset.groups.overlapping:
        facts["besides"] = f"overlapping: {_listed(dataset.groups.overlapping)}"
    rows = getattr(dataset, "rows", None)
    if isinstance(dataset, Prepared) and rows is not None:
        done = dataset.size - dataset.unprepared()
        facts["prepared"] = (
            f"{done:,} of {dataset.size:,} samples; all take {decimal(rows.bytes)} in {rows.place}"
        )
    return facts


def _source(settings: Any) -> str:
    for key in ("path", "table", "factory"):
        if (value := getattr(settings, key, None)) is not None:
            return str(value)
    return f"comes with {settings.comes_with}"


def _shape(dataset: Dataset) -> str:
    if len(dataset.shape) == 1:
        return f"{dataset.shape[0]} tokens"
    channels, height, width = dataset.shape
    return f"{width} × {height} pixels, {channels} channels"


def _groups(dataset: Dataset) -> str:
    groups = dataset.groups
    if not groups.known:
        return "no group labels: the classes stand for groups"
    return f"{len(groups.names)} groups, {len(groups.attributes)} values of the spurious attribute"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f", ... ({len(every)} in all)" if len(every) > 12 else ""
    return ", ".join(every[:12]) + more


def _counts(settings: Any, dataset: Dataset) -> Table:
    """Samples by split and group, beside those that are published."""
    published = settings.published if isinstance(settings, Published) else {}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Group" if dataset.groups.known else "Class", overflow="fold")
    for name in SPLITS:
        table.add_column(name, justify="right", no_wrap=True)
    for name in published:
        table.add_column(f"{name}, published", justify="right")
    own = [dataset.groups.count(dataset.splits[name]) for name in SPLITS]
    columns = [*own, *published.values()]
    for group in dataset.groups.names:
        table.add_row(Text(group), *(f"{counts[group]:,}" for counts in columns))
    table.add_section()
    table.add_row("all", *(f"{sum(counts.values()):,}" for counts in columns))
    return table


def _print(facts: dict[str, str], console: Console) -> None:
    for name, value in facts.items():
        console.print(Text(f"{name:<13}{value}"), soft_wrap=True)


def _remark(dataset: Dataset, console: Console) -> None:
    for remark in remarks_on(dataset, dfr=True):
        console.print(Text(f"{'':<13}{remark}", style="yellow"), soft_wrap=True)


def _examples(dataset: Dataset, group: int, wanted: int) -> np.ndarray:
    """Ids of a group, always the same: of training, and of other splits where those are too few."""
    examples: list[int] = []
    for name in SPLITS:
        ids = dataset.splits[name]
        own = np.random.default_rng(0).permutation(ids[dataset.groups.group_N[ids] == group])
        examples += own[: wanted - len(examples)].tolist()
    return np.array(examples, dtype=np.int64)


def _excerpts(dataset: Excerpted, chosen: list[np.ndarray], counts: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False)
    for name in ("Group", "Excerpt"):
        table.add_column(name, overflow="fold")
    names = dataset.groups.names  # type: ignore[attr-defined]
    for name, ids, counted in zip(names, chosen, counts, strict=True):
        lines = "\n".join(dataset.excerpt(int(sample)) for sample in ids)
        table.add_row(Text(f"{name}\n{counted}"), Text(lines))
        table.add_section()
    return table
