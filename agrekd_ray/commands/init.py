"""`agrekd init`: a complete, commented job for a table or a folder of one's own."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console

from agrekd_ray.config import JobError, check_job
from agrekd_ray.data import (
    DFR,
    TRAIN,
    Dataset,
    DataSettings,
    classes_missing,
    open_dataset,
    splits_in_words,
    tokens_of,
)
from agrekd_ray.data.given import picture_files
from agrekd_ray.data.image_table import is_picture
from agrekd_ray.data.names import folded, listed
from agrekd_ray.data.splits import split_named
from agrekd_ray.data.table import PARQUET, TEXT, Table, column_type, table_files
from agrekd_ray.errors import DataError, RunError

_LABELS = ("label", "class", "target", "category", "y")
_MOST_VALUES, _LOOKED_AT = 10, 200
_SMALL = 64
"""Pixels up to which pictures are shown whole, to small models."""


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table are taken for; of pictures or of texts."""

    sample: str
    label: str
    groups: tuple[str, ...]
    others: tuple[str, ...]
    pictures: bool


def init(
    source: Path,
    output: Path,
    label: str | None,
    groups: Sequence[str],
    tokenizer: str | None,
    console: Console,
) -> None:
    """Look at data, and write a job for them that passes `validate` and `data check`.

    Args:
        source: a table, or a folder of pictures in a folder for each class.
        output: the job's file. For a folder without a table, one is written beside it.
        label: column with the class; None looks for it.
        groups: columns with spurious attributes; looks for one without.
        tokenizer: of texts.
        console: for what was found.

    Raises:
        DataError: what the data are cannot be told, or they are not sound.
        RunError: the file is there already, or cannot be written.
        JobError: the job that was written is not valid.
    """
    if output.exists():
        raise RunError(f"{output}: is there already; choose another file with -o.")
    try:
        table, images = _table_of(source, output)
        columns = _columns(table, label, groups)
        data = _data(table, images, columns, tokenizer)
        dataset = open_dataset(TypeAdapter(DataSettings).validate_python(data))
        text = _job(source, output, data, dataset, columns)
        job, faults = check_job(yaml.safe_load(text))
        if job is None:
            raise JobError(str(source), faults)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror or error}).") from None
    for line in [*_said(dataset, columns), *_sized(data, table, images, columns)]:
        console.print(line, soft_wrap=True)
    console.print(f"{output}: written. Next: agrekd data check {output}, agrekd run {output}")


def _table_of(source: Path, output: Path) -> tuple[Path, Path | None]:
    """The table, and the folder of its pictures where it is written here."""
    if not source.is_dir():
        return source, None
    tables = [path for path in source.iterdir() if path.suffix.lower() in TEXT]
    if len(tables) == 1:
        return tables[0], None
    if tables or any(source.rglob(f"*{PARQUET}")):
        return source, None
    rows = []
    for path in picture_files(source):
        *folders, _ = path.relative_to(source).parts
        named = [split for folder in folders if (split := split_named(folder))]
        classes = [folder for folder in folders if not split_named(folder)]
        if not classes:
            raise DataError(
                f"{path}: is in no folder of a class; put each class in one of its own."
            )
        rows.append((str(path.relative_to(source)), classes[0], *named[:1]))
    by_split = all(len(row) == 3 for row in rows) and len({row[2] for row in rows}) == 3
    table = output.with_suffix(".csv")
    if table.exists():
        raise RunError(f"{table}: is there already; choose another file with -o.")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split")[: 2 + by_split])
        writer.writerows(row[: 2 + by_split] for row in rows)
    return table, source


def _columns(path: Path, label: str | None, groups: Sequence[str]) -> _Columns:
    """What the columns are, by their names, types and values."""
    first = table_files(path)[0]
    names = Table(path, []).names
    kinds = {name: column_type(first, name) for name in names}
    held = [name for name, kind in kinds.items() if kind is not None and is_picture(kind)]
    plain = Table(path, [name for name in names if name not in held])
    rows = range(min(plain.rows, _LOOKED_AT))
    values = {name: plain.passages(name, rows) for name in names if name not in held}
    suffixes = set(Image.registered_extensions())
    named = [
        name
        for name, cells in values.items()
        if all(Path(cell).suffix.lower() in suffixes for cell in cells)
    ]
    pictures = [*held, *named]
    texts = sorted(values, key=lambda name: statistics.mean(map(len, values[name])), reverse=True)
    sample = pictures[0] if pictures else texts[0]
    if not pictures and not any(" " in cell for cell in values[sample]):
        raise DataError(f"{path}: no column of pictures, paths of pictures or texts in it.")
    few = {
        name: len(set(plain.passages(name, range(plain.rows))))
        for name in values
        if name != sample and not re.search("split|partition|fold|subset", folded(name))
    }
    label = label or next((name for name in few if folded(name) in _LABELS), None)
    if label is None:
        candidates = [name for name, count in few.items() if 2 <= count <= _MOST_VALUES]
        if len(candidates) != 1:
            raise DataError(
                f"{path}: which column is the class? There are {listed(names)}; name it by --label."
            )
        label = candidates[0]
    others = tuple(
        name for name, count in few.items() if name != label and 2 <= count <= _MOST_VALUES
    )
    taken = tuple(groups) or (others if len(others) == 1 else ())
    left = tuple(name for name in others if name not in taken)
    return _Columns(sample, label, taken, left, bool(pictures))


def _data(
    table: Path, images: Path | None, columns: _Columns, tokenizer: str | None
) -> dict[str, Any]:
    """The job's data block."""
    shared: dict[str, Any] = {"label": columns.label, "groups": list(columns.groups)}
    if not columns.pictures:
        if tokenizer is None:
            raise DataError(
                f"{table}: texts in {columns.sample!r} need a tokenizer: name a folder with one of "
                "transformers, or a name of the Hugging Face hub, by --tokenizer."
            )
        named = {"text": columns.sample, **shared}
        return {
            "name": "text_table",
            "table": str(table.absolute()),
            "columns": named,
            "tokenizer": str(folder.absolute())
            if (folder := Path(tokenizer)).is_dir()
            else tokenizer,
            "max_length": 128,
        }
    sides = _sides(table, images or table.parent, columns.sample)
    side = round(statistics.median(sides)) if sides else 256
    size = side if side <= _SMALL else round(min(side, 256) * 224 / 256)
    data: dict[str, Any] = {"name": "table", "table": str(table.absolute())}
    if images is not None:
        data["images"] = str(images.absolute())
    resize = side if side <= _SMALL else min(side, 256)
    return {**data, "columns": {"image": columns.sample, **shared}, "size": size, "resize": resize}


def _sides(table: Path, folder: Path, column: str) -> list[int]:
    """The shorter sides of some pictures; of none where they are in the table themselves."""
    kind = column_type(table_files(table)[0], column)
    if kind is not None and is_picture(kind):
        return []
    held = Table(table, [column])
    paths = held.passages(column, range(min(held.rows, _LOOKED_AT)))
    sides = []
    for path in paths:
        try:
            with Image.open(folder / path) as image:
                sides.append(min(image.size))
        except OSError:  # which `open_dataset` or `data check` names
            continue
    return sides


def _job(
    source: Path, output: Path, data: dict[str, Any], dataset: Dataset, columns: _Columns
) -> str:
    """The job as YAML with comments."""
    debiased, how = _debiased(dataset)
    samples = len(dataset.splits[TRAIN])
    batch = 2 ** max(0, min(6, (samples // 4).bit_length() - 1))
    teacher, student, advice = _models(data, dataset)
    methods = ["one_hot", "deep_ensemble", "teacher_vote", "aver", "ae_kd", "agre_kd"]
    if debiased == "2":
        methods[1:1] = ["one_hot_dfr"]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.resolve().stem).strip("-._") or "own"
    others = f" Others that could be: {listed(columns.others)}." if columns.others else ""
    described = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, allow_unicode=True)
    block = "".join(f"  {line}\n" for line in described.splitlines())
    pace = "learning_rate: 0.01" if columns.pictures else "optimizer: adamw, learning_rate: 0.001"
    training = f"{{epochs: 15, batch_size: {batch}, {pace}}}"
    return f"""\
# agrekd run {output}
#
# {dataset.size:,} samples of {len(dataset.classes)} classes: {listed(dataset.classes)}.
# Splits: {splits_in_words(dataset)}.
# All keys and their meanings: agrekd keys
name: {json.dumps(name)}

# columns.groups are spurious attributes: evaluation and DFR see them, students never do.{others}
data:
{block}
# The pool, which is trained once and shared by all jobs.
# {advice}
teachers:
  count: 6
  model: {_flow(teacher)}
  training: {training}

# Who of the pool teaches, so that one is left as the biased model; debiased ones have a last layer
# retrained {how}.
ensemble:
  size: 5
  debiased: {debiased}

student:
  model: {_flow(student)}
  training: {training}

distillation:
  temperature: 4
  alpha: 1.0 # the rest is cross-entropy with the labels

# What is compared, in the order of the table.
methods: {_flow(methods)}
seeds: [0, 1, 2] # the table shows mean ± standard deviation over them
"""


def _debiased(dataset: Dataset) -> tuple[str, str]:
    """How many teachers are debiased, as YAML; how their last layers are retrained, in words."""
    if classes_missing(dataset, DFR):
        return "0", "on validation, which needs samples of every class for that"
    if dataset.groups.known:
        return "2", "by group (DFR)"
    return "{afr: 2}", "on what the biased models get wrong (AFR); groups, for DFR, are not known"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=1000).strip()


def _models(data: dict[str, Any], dataset: Dataset) -> tuple[dict[str, Any], dict[str, Any], str]:
    """A teacher and a student for such data, and how to begin with published weights."""
    if data["name"] == "text_table":
        tokens = tokens_of(dataset)
        assert tokens is not None
        args = {"vocab_size": tokens[0], "pad_token_id": tokens[1], "n_heads": 4}
        teacher = {"name": "transformers/distilbert", "args": {**args, "dim": 128, "n_layers": 4}}
        student = {"name": "transformers/distilbert", "args": {**args, "dim": 64, "n_layers": 2}}
        return teacher, student, "Published weights: {name: transformers/NAME, weights: pretrained}"
    if data["size"] <= _SMALL:
        return {"name": "cnn_deep"}, {"name": "cnn"}, "Larger ones: torchvision/NAME, timm/NAME."
    published = "Published weights: {weights: IMAGENET1K_V1, preprocess: imagenet}"
    return {"name": "torchvision/resnet50"}, {"name": "torchvision/resnet18"}, published


def _said(dataset: Dataset, columns: _Columns) -> list[str]:
    """What was found, a line each."""
    groups = listed(columns.groups) if columns.groups else "none: the classes stand for them"
    if columns.others:
        groups += f" (--group takes others: {listed(columns.others)})"
    return [
        f"samples  {dataset.size:,} of shape {' × '.join(map(str, dataset.shape))}",
        f"classes  {listed(dataset.classes)}, by column {columns.label!r}",
        f"groups   {groups}",
        f"splits   {splits_in_words(dataset)}",
    ]


def _sized(data: dict[str, Any], table: Path, images: Path | None, columns: _Columns) -> list[str]:
    """What is said of the pictures' size where some would be enlarged."""
    if not columns.pictures:
        return []
    kept, sides = data["resize"], _sides(table, images or table.parent, columns.sample)
    small = sum(side < kept for side in sides)
    said = f"{small:,} of {len(sides):,} that were looked at are enlarged to {kept} pixels"
    return [f"pictures {said}: set data.size and data.resize"] if small else []
