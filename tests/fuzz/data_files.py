"""What data sets are read from: tables, pictures, IDX files, and what is prepared of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from agrekd_ray.data import DFR, SELECT, TEST, TRAIN, Dataset, Prepared, open_dataset
from agrekd_ray.data.celeba import CelebA
from agrekd_ray.data.civilcomments import CivilComments
from agrekd_ray.data.colored import ColoredIdx
from agrekd_ray.data.custom import check_contract
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.text import TextTable
from agrekd_ray.data.textured import TexturedIdx
from agrekd_ray.data.waterbirds import Waterbirds
from agrekd_ray.settings import Settings

from .. import pictures, texts
from ..test_jobs import idx
from .cases import Subject


def _settings(kind: type[Settings], **values: Any) -> Settings:
    return kind.model_validate(values)


DATA: dict[str, tuple[type[Settings], dict[str, Any]]] = {
    "pictures": (ImageTable, pictures.small("table", Path("prepared"), table="data/table.csv",
                 columns={"groups": ["sky"]}, views={"flip": True, "shift": 1})),
    "parquet": (ImageTable, pictures.small("table", Path("prepared"), table="data/table.parquet",
                columns={"image": "image"})),
    "waterbirds": (Waterbirds, pictures.small("waterbirds", Path("prepared"), path="data")),
    "celeba-txt": (CelebA, pictures.small("celeba", Path("prepared"), path="data")),
    "celeba-csv": (CelebA, pictures.small("celeba", Path("prepared"), path="data")),
    "celeba-metadata": (CelebA, pictures.small("celeba", Path("prepared"), path="data")),
    "idx": (ColoredIdx, {"name": "colored_idx", "path": "data", "train": 120, "val": 120}),
    "textured": (TexturedIdx, {"name": "textured_idx", "path": "data", "train": 24, "val": 20,
                 "size": 14}),
    "comments": (CivilComments, {"name": "civilcomments", "path": "data/civil", "max_length": 6,
                 "tokenizer": "./data/tokenizer", "prepared": "prepared"}),
    "texts": (TextTable, {"name": "text_table", "table": "data/mails.csv", "max_length": 6,
              "tokenizer": "./data/tokenizer", "prepared": "prepared"}),
}  # fmt: skip


def _write_data(name: str) -> None:
    place = Path("data")
    if name == "pictures":
        pictures.table(place, groups=True)
    elif name == "parquet":
        pictures.table(place)
        rows = [line.split(",") for line in (place / "table.csv").read_text().splitlines()[1:]]
        images = [{"bytes": (place / row[0]).read_bytes(), "path": row[0]} for row in rows]
        columns = {"image": images, "label": [r[1] for r in rows], "split": [r[2] for r in rows]}
        pq.write_table(pa.table(columns), place / "table.parquet")
    elif name == "waterbirds":
        pictures.waterbirds(place)
    elif name.startswith("celeba"):
        layout = {"celeba-txt": "txt", "celeba-csv": "csv", "celeba-metadata": "dfr"}[name]
        pictures.celeba(place, layout)
    elif name in ("idx", "textured"):
        idx(place)
    elif name == "comments":
        texts.civilcomments(place)
    else:
        place.mkdir()
        texts.text_table(place)


def _seen(data: Dataset) -> dict[str, Any]:
    ids = np.concatenate([data.splits[name][:3] for name in (TRAIN, DFR, SELECT, TEST)])
    return {
        "classes": data.classes,
        "splits": {name: found.tolist() for name, found in data.splits.items()},
        "labels": data.labels(ids).tolist(),
        "inputs": data.inputs(ids, None),
        "view": data.inputs(ids, 1),
    }


def _make_data(name: str) -> Callable[[], Any]:
    def make() -> Any:
        _write_data(name)
        kind, values = DATA[name]
        return _seen(open_dataset(_settings(kind, **values)))  # which prepares them

    return make


def _use_data(name: str) -> Callable[[Random | None, Any, Path], None]:
    def use(rng: Random | None, truth: Any, target: Path) -> None:
        kind, values = DATA[name]
        data = open_dataset(_settings(kind, **values))
        check_contract(data, name)
        if isinstance(data, Prepared):
            assert data.unprepared() in range(data.size + 1)
        found = _seen(data)
        assert torch.isfinite(found["inputs"].float()).all()
        assert found["inputs"].shape[1:] == found["view"].shape[1:] == data.shape
        assert len(data.fingerprint) == 64
        if rng is None:
            assert all(
                torch.equal(found[key], value)
                if isinstance(value, torch.Tensor)
                else found[key] == value
                for key, value in truth.items()
            )

    return use


def _retyped(rng: Random, path: Path) -> str | None:
    """A Parquet file of other columns."""
    if path.suffix != ".parquet":
        return None
    table = pq.read_table(path)
    number = rng.randrange(table.num_columns)
    name, rows = table.column_names[number], table.num_rows
    ways: dict[str, Callable[[], pa.Array]] = {
        "nulls": lambda: pa.nulls(rows),
        "numbers": lambda: pa.array(range(rows)),
        "fractions": lambda: pa.array([float("nan"), 0.5] * (rows // 2)),
        "lists": lambda: pa.array([["a"]] * rows),
        "structs": lambda: pa.array([{"bytes": 3}] * rows),
        "wrong structs": lambda: pa.array([{"path": "x"}] * rows),
        "truths": lambda: pa.array([True, False] * (rows // 2)),
        "times": lambda: pa.array([0] * rows, pa.timestamp("ns")),
        "bytes": lambda: pa.array([b"\xff\xfe"] * rows),
        "dictionary": lambda: pa.array(["train", "val"] * (rows // 2)).dictionary_encode(),
        "intervals": lambda: pa.array([2**62] * rows, pa.duration("s")),
        "decimals": lambda: pa.array([1] * rows, pa.decimal128(10, 2)),
    }
    how = rng.choice(sorted(ways))
    changed = table.set_column(number, rng.choice((name, name, name, "label")), ways[how]())
    changed = rng.choice((changed, changed, changed.slice(0, 0), changed.slice(0, 5)))
    pq.write_table(changed, path)
    return f"{name} holds {how}, {changed.num_rows} rows, columns {changed.column_names}"


def _cells(rng: Random, path: Path) -> str | None:
    """A table of text with other cells."""
    if path.suffix not in (".csv", ".txt"):
        return None
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    separator = "," if path.suffix == ".csv" else " "
    cells = lines[number].split(separator)
    place = rng.randrange(len(cells))
    cells[place] = rng.choice(
        ("", "nan", "inf", "-1", "1e400", "9" * 400, "train", "../../../etc/passwd", "\0", "'", '"',
         "a" * 70_000, "ä", "/dev/null", "٣", "²", "0x1", "1_0", " 1", "loop")
    )  # fmt: skip
    lines[number] = rng.choice((separator.join(cells), "", lines[0], separator * 9))
    path.write_text("\n".join(lines) + "\n")
    return f"line {number}: {lines[number][:100]!r}"


def _header(rng: Random, path: Path) -> str | None:
    """An IDX file whose header says something else."""
    import gzip

    if not path.name.endswith("-ubyte.gz"):
        return None
    content = bytearray(gzip.decompress(path.read_bytes()))
    at = 4 * rng.randrange(4 if "images" in path.name else 2)
    number = rng.choice((0, 1, 2**31, 2**32 - 1, 65536, 0x801, 0x803, 13))
    content[at : at + 4] = number.to_bytes(4, "big")
    if rng.random() < 0.3:
        content[8 if "labels" in path.name else 16 :] = rng.randbytes(rng.choice((1, 240, 34560)))
    path.write_bytes(gzip.compress(bytes(content)))
    return f"byte {at} begins the number {number}"


_CACHES = ["prepared/*", "data/prepared/*"]
SUBJECTS = {
    Subject("pictures", _make_data("pictures"), _use_data("pictures"),
            ["data/*", "prepared/*/*"], _CACHES, [_cells]): (6, 150),
    Subject("parquet", _make_data("parquet"), _use_data("parquet"),
            ["data/*.parquet"], _CACHES, [_retyped]): (4, 120),
    Subject("waterbirds", _make_data("waterbirds"), _use_data("waterbirds"),
            ["data/*.csv"], _CACHES, [_cells]): (3, 60),
    Subject("celeba-txt", _make_data("celeba-txt"), _use_data("celeba-txt"),
            ["data/*.txt"], _CACHES, [_cells]): (3, 60),
    Subject("celeba-csv", _make_data("celeba-csv"), _use_data("celeba-csv"),
            ["data/*.csv"], _CACHES, [_cells]): (2, 40),
    Subject("celeba-metadata", _make_data("celeba-metadata"), _use_data("celeba-metadata"),
            ["data/*.csv"], _CACHES, [_cells]): (2, 40),
    Subject("idx", _make_data("idx"), _use_data("idx"), ["data/*"], damages=[_header]): (5, 120),
    Subject("textured", _make_data("textured"), _use_data("textured"),
            ["data/*"], damages=[_header]): (0, 40),
    Subject("comments", _make_data("comments"), _use_data("comments"),
            ["data/civil/*", "data/tokenizer/*", "prepared/*/*"], _CACHES, [_cells]): (0, 90),
    Subject("texts", _make_data("texts"), _use_data("texts"),
            ["data/mails.csv", "data/tokenizer/*", "prepared/*/*"], _CACHES, [_cells]): (0, 90),
}  # fmt: skip
"""With how many quick cases, and how many others."""
