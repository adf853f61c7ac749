"""One table is one data set: in every format, under every usual name, with no name mistaken."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from agrekd_ray.data import DFR, DRAWN, SELECT, TEST, TRAIN
from agrekd_ray.data.dataset import Annotations
from agrekd_ray.data.names import canonical, in_order
from agrekd_ray.data.rows import Columns, TableSettings, open_table, read_rows
from agrekd_ray.data.table import Table
from agrekd_ray.errors import DataError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.preparing import note_drawn_splits

ROWS = 32
SPLITS = [("train", "train", "val", "test")[row // 4 % 4] for row in range(ROWS)]
GROUPED = {"groups": ("sky",)}


def read(path: Path, columns: dict[str, Any] | None = None, **values: Any) -> Annotations:
    chosen = Columns.model_validate(columns or {})
    table_settings = TableSettings.model_validate({"table": path, **values})
    return read_rows(open_table(table_settings, chosen), table_settings, chosen)


def frame(**columns: Any) -> pd.DataFrame:
    """32 rows of 2 classes x 2 skies, half of them of training; a column of None is left out."""
    base = {
        "label": [("cat", "dog")[row % 2] for row in range(ROWS)],
        "split": SPLITS,
        "sky": [("clear", "grey")[row // 2 % 2] for row in range(ROWS)],
    }
    return pd.DataFrame({k: v for k, v in {**base, **columns}.items() if v is not None})


def cycled(values: Any) -> pd.Series:
    return pd.Series(values).iloc[np.arange(ROWS) % len(values)].reset_index(drop=True)


def write_csv(table: pd.DataFrame, path: Path, **options: Any) -> Path:
    table.to_csv(path, **{"index": False, **options})
    return path


def columnar(table: pd.DataFrame, path: Path, change: Callable[[pa.Array], pa.Array]) -> None:
    plain = pa.Table.from_pandas(table, preserve_index=False).to_pydict()
    typed = pa.Table.from_pandas(table, preserve_index=False)
    assert list(plain) == typed.column_names
    columns = {name: change(typed[name].combine_chunks()) for name in typed.column_names}
    pq.write_table(pa.table(columns), path, row_group_size=7)


def wide(column: pa.Array) -> pa.Array:
    return column.cast(pa.large_string()) if pa.types.is_string(column.type) else column


def encoded(column: pa.Array) -> pa.Array:
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


FORMATS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "plain.csv": write_csv,
    "excel.csv": lambda table, path: write_csv(
        table, path, sep=";", lineterminator="\r\n", encoding="utf-8-sig"
    ),
    "quoted.csv": lambda table, path: write_csv(table, path, quoting=csv.QUOTE_ALL, index=True),
    "numbers.csv": lambda table, path: write_csv(table, path, quoting=csv.QUOTE_NONNUMERIC),
    "tabs.tsv": lambda table, path: write_csv(table, path, sep="\t"),
    "tabs.csv": lambda table, path: write_csv(table, path, sep="\t"),
    "bars.csv": lambda table, path: write_csv(table, path, sep="|"),
    "frame.parquet": lambda table, path: table.to_parquet(path),
    "large.parquet": lambda table, path: columnar(table, path, wide),
    "coded.parquet": lambda table, path: columnar(table, path, encoded),
}

VALUES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "numbers": ([10, 2, 0, 1], ("0", "1", "2", "10")),
    "small numbers": (np.array([3, -1], np.int8), ("-1", "3")),
    "whole fractions": ([10.0, 2.0, 0.0], ("0", "2", "10")),
    "fractions": ([10.5, 2.25, 1e-5], ("1e-05", "2.25", "10.5")),
    "single precision": (np.array([0.1, 10, 0.25], np.float32), ("0.1", "0.25", "10")),
    "large numbers": ([2**53 + 1, 2**53, 7], ("7", str(2**53), str(2**53 + 1))),
    "truths": ([True, False], ("false", "true")),
    "numbers as text": (["10", "2", "1.50"], ("1.5", "2", "10")),
    "codes": (["010", "007", "1"], ("1", "007", "010")),
    "names and numbers": (["10", "9", "x"], ("10", "9", "x")),
    "categories": (pd.Categorical(["b", "a"], ["b", "c", "a"]), ("a", "b")),
    "decimals": ([Decimal("1.50"), Decimal("2.00")], ("1.5", "2")),
    "signs": (['a "b"', "c, d", "e; f | g", "é"], ('a "b"', "c, d", "e; f | g", "é")),
}


@pytest.mark.parametrize("kind", VALUES)
def test_the_same_table_is_the_same_data_in_every_format(tmp_path: Path, kind: str) -> None:
    values, classes = VALUES[kind]
    table = frame(label=cycled(values))
    for name, write in FORMATS.items():
        write(table, tmp_path / name)
        rows = read(tmp_path / name, GROUPED)
        assert rows.classes == classes, name
        expected = [canonical(str(value)) for value in table["label"].to_numpy()]
        assert [rows.classes[label] for label in rows.labels_N] == expected, name
        assert rows.groups.attributes == ("clear", "grey")
        assert rows.splits[TRAIN].tolist() == [n for n in range(ROWS) if SPLITS[n] == "train"]


@pytest.mark.parametrize("kind", VALUES)
def test_group_columns_are_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    values, names = VALUES[kind]
    for name, write in FORMATS.items():
        write(frame(sky=cycled(values)), tmp_path / name)
    found = [read(tmp_path / name, GROUPED).groups for name in FORMATS]
    for groups in found:
        assert groups.attributes == found[0].attributes
        assert groups.group_N.tolist() == found[0].group_N.tolist()
    bare = {name.removeprefix("sky=") for name in found[0].attributes}
    assert bare == set(names)


def test_numbers_of_classes_and_splits_mean_the_same_in_every_format(tmp_path: Path) -> None:
    numbered = frame(
        label=cycled([1.0, 0.0]), split=[float({"train": 0, "val": 1}.get(s, 2)) for s in SPLITS]
    )
    splits = {"train": "0", "val": "1", "test": "2"}
    for name, write in FORMATS.items():
        write(numbered, tmp_path / name)
        rows = read(tmp_path / name, classes=("cat", "dog"), splits=splits)
        assert rows.classes == ("cat", "dog")
        assert rows.labels_N.tolist() == [1 - n % 2 for n in range(ROWS)]
        assert len(rows.splits[TEST]) == 8


TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs", "Cc")), st.sampled_from("019.-,;|\"' e\nAaéß\u0301")
    ),
    min_size=1,
    max_size=5,
)
SPELLINGS = st.sampled_from(
    ["1", "1.0", "01", "+1", "1e3", "1000", "-0", "0", "true", "TRUE", "nan", "NA", ".5", "0.50"]
)
CELLS: list[st.SearchStrategy[Any]] = [
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(np.float32),
    st.booleans(),
    st.decimals(-1000, 1000, places=2),
    TEXTS,
    SPELLINGS,
    st.one_of(TEXTS, SPELLINGS),
]
POOLS = st.sampled_from(CELLS).flatmap(
    lambda cells: st.lists(cells, min_size=2, max_size=4, unique_by=str)
)


@dataclass(frozen=True)
class Read:
    """What a format gives: the rows in comparable form, or the fault without the file's name."""

    rows: tuple[Any, ...] = ()
    fault: str = ""


def outcome(path: Path) -> Read:
    try:
        rows = read(path, GROUPED)
    except DataError as error:
        return Read(fault=str(error).replace(str(path), "t").replace(path.name, "t"))
    groups = rows.groups
    splits = {name: ids.tolist() for name, ids in rows.splits.items()}
    return Read(
        (rows.classes, rows.labels_N.tolist(), groups.names, groups.group_N.tolist(), splits)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=POOLS,
    skies=POOLS,
    lost=st.integers(0, 4 * ROWS),
    named=st.lists(st.sampled_from(sorted(FORMATS)), min_size=2, max_size=3, unique=True),
)
def test_any_table_is_one_data_set_or_one_fault_in_every_format(
    tmp_path: Path, labels: list[Any], skies: list[Any], lost: int, named: list[str]
) -> None:
    column = cycled(labels)
    table = frame(label=column.mask(column.index == lost), sky=cycled(skies))
    for name in named:
        FORMATS[name](table, tmp_path / name)
    found = {name: outcome(tmp_path / name) for name in named}
    assert len({bool(one.fault) for one in found.values()}) == 1, found
    assert len({repr(one.rows) for one in found.values()}) == 1, found


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10.5", "9", "1e-05"], ("1e-05", "9", "10.5")),
        (["010", "9"], ("9", "010")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["1" * 400, "2"], ("2", "1" * 400)),
    ],
)
def test_numbers_come_in_their_order(numbers: list[str], expected: tuple[str, ...]) -> None:
    assert in_order(numbers) == expected


ALIKE: dict[str, tuple[Callable[[str], str], str]] = {
    "blank at the end": (lambda name: f"{name} ", "what nobody sees"),
    "blank in front": (lambda name: f" {name}", "what nobody sees"),
    "no-break blank": (lambda name: f"{name}\xa0", "what nobody sees"),
    "zero width": (lambda name: f"{name[0]}\u200b{name[1:]}", "what nobody sees"),
    "mark in front": (lambda name: f"\ufeff{name}", "what nobody sees"),
    "variation selector": (lambda name: f"{name}\ufe0f", "what nobody sees"),
    "case": (str.capitalize, "case"),
}


@pytest.mark.parametrize("how", ALIKE)
@pytest.mark.parametrize("column", ["label", "sky", "split"])
def test_names_that_differ_in_what_nobody_sees(tmp_path: Path, how: str, column: str) -> None:
    change, difference = ALIKE[how]
    table = frame()
    name = table[column][0]
    row = table.index[table[column] == name][-1]
    table.loc[row, column] = change(name)
    for form in ("plain.csv", "frame.parquet"):
        FORMATS[form](table, tmp_path / form)
        with pytest.raises(DataError) as caught:
            read(tmp_path / form, GROUPED)
        told = str(caught.value)
        assert told.startswith(f"{form}, row {row + 1}: {column} is {change(name)!a}, and ")
        assert f"and {name!r} in {form}, row 1: they differ only in {difference}" in told


def test_normal_forms_are_told_apart_by_escapes(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    path = write_csv(frame(label=cycled([composed, "tea", apart, "tea"])), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"is 'cafe\\u0301', and 'café' in t.csv, row 1") as caught:
        read(path)
    assert "data.classes" in str(caught.value)
    path = write_csv(frame(label=cycled([composed, "tea"])), path)
    with pytest.raises(DataError, match=r"'café', none of .* Did you mean 'cafe\\u0301'\?"):
        read(path, classes=(apart, "tea"))


def test_classes_that_differ_in_case_are_named(tmp_path: Path) -> None:
    path = write_csv(frame(label=cycled(["a", "A"])), tmp_path / "t.csv")
    with pytest.raises(DataError, match="Two classes that differ so are named in"):
        read(path)
    assert read(path, classes=("A", "a")).labels_N.tolist() == [1, 0] * (ROWS // 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["1", "1.0"], "label is '1.0', and '1' in t.csv, row 1: one number .* two spellings"),
        (["0.5", "0.50"], "two spellings"),
        (["True", "TRUE"], "two spellings"),
        (["cat ", "dog"], "label is 'cat ', with a blank at an end"),
        (["cat", "\u3000dog"], r"label is '\\u3000dog', with a blank at an end"),
        (["nan", "cat"], "label is 'nan', which stands for a missing value"),
        (["<NA>", "1"], "label is '<NA>', which stands for a missing value"),
    ],
)
def test_values_that_are_not_what_they_seem(tmp_path: Path, values: list[str], words: str) -> None:
    path = write_csv(frame(label=cycled(values)), tmp_path / "t.csv")
    with pytest.raises(DataError, match=words):
        read(path)


@pytest.mark.parametrize("twin", ["label ", "Label", "la\u00adbel", "label\xa0"])
def test_columns_that_differ_in_what_nobody_sees(tmp_path: Path, twin: str) -> None:
    path = write_csv(frame(**{twin: SPLITS}), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"columns 'label' and .*differ only in"):
        read(path)
    path = write_csv(frame(label=None, **{twin: SPLITS}), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"no column 'label'.* Did you mean .*data.columns"):
        read(path)


def test_groups_whose_values_have_commas_stay_apart(tmp_path: Path) -> None:
    table = frame(sky=cycled(["a, b", "a"]), sea=cycled(["c", "b, c"]))
    rows = read(write_csv(table, tmp_path / "t.csv"), {"groups": ("sky", "sea")})
    assert rows.groups.attributes == ("'a', 'b, c'", "'a, b', 'c'")
    assert rows.groups.attribute_N.tolist() == [1, 0] * (ROWS // 2)


NEAR = ["Split", "SPLIT", "split ", "splits", "data_split", "Partition", "fold", "subset", "Set",
        "phase", "Train/Test Split", "usage"]  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_a_column_with_nearly_the_name_is_the_split(tmp_path: Path, name: str) -> None:
    path = write_csv(frame(split=None, **{name: SPLITS}), tmp_path / "t.csv")
    rows = read(path)
    assert rows.splits_from == f"column {name!r}"
    assert rows.splits[TRAIN].tolist() == [n for n in range(ROWS) if SPLITS[n] == "train"]


@pytest.mark.parametrize("name", NEAR)
def test_or_it_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    path = write_csv(frame(split=None, **{name: [n % 5 for n in range(ROWS)]}), tmp_path / "t.csv")
    with pytest.raises(
        DataError, match=r"may be the split, but .* row 1: .* is '0', none"
    ) as caught:
        read(path)
    for key in ("data.splits", "data.columns.split", "data.shares"):
        assert key in str(caught.value)
    assert read(path, shares={}).splits_from == DRAWN


def test_of_two_columns_that_may_be_the_split_one_is_named(tmp_path: Path) -> None:
    path = write_csv(frame(split=None, Split=SPLITS, subset=SPLITS), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"'Split' and column 'subset'; .*data.columns.split"):
        read(path)
    assert read(path, {"split": "subset"}).splits_from == "column 'subset'"
    with pytest.raises(DataError, match=r"leave out data.shares or data.columns.split"):
        read(path, {"split": "subset"}, shares={})


@pytest.mark.parametrize(
    "names",
    [("Train", "Validation", "TEST"), ("training", "dev", "testing"), ("train", "valid", "test")],
)
def test_usual_names_of_splits_are_understood(tmp_path: Path, names: Sequence[str]) -> None:
    called = dict(zip(("train", "val", "test"), names, strict=True))
    path = write_csv(frame(split=[called[split] for split in SPLITS]), tmp_path / "t.csv")
    expected = read(write_csv(frame(), tmp_path / "expected.csv"))
    assert {k: v.tolist() for k, v in read(path).splits.items()} == {
        k: v.tolist() for k, v in expected.splits.items()
    }


def test_two_usual_names_of_one_split_are_not_taken_for_one(tmp_path: Path) -> None:
    mixed = [split if n % 2 or split != "val" else "dev" for n, split in enumerate(SPLITS)]
    path = write_csv(frame(split=mixed), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"row 10: split is 'val', and 'dev' in t.csv, row 9"):
        read(path)
    with pytest.raises(DataError, match=r"split is 'val', none of .*\('train', 'dev', 'test'\)"):
        read(path, splits={"val": "dev"})


def in_files(folder: Path, names: dict[str, str], table: pd.DataFrame | None = None) -> Path:
    """A folder with a file a split."""
    table = frame() if table is None else table
    for split, name in names.items():
        part = table[[s == split for s in SPLITS]].drop(columns="split", errors="ignore")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            part.to_parquet(folder / name)
        else:
            part.to_csv(folder / name, index=False)
    return folder


LAYOUTS = [
    {split: f"{name}-00000-of-00001.parquet" for split, name in
     (("train", "train"), ("val", "validation"), ("test", "test"))},
    {"train": "birds_train.parquet", "val": "birds_dev.parquet", "test": "birds_test.parquet"},
    {"train": "train/0.parquet", "val": "validation/0.parquet", "test": "test/0.parquet"},
    {"train": "train.csv", "val": "val.csv", "test": "test.csv"},
    {"train": "Train/a.csv", "val": "Valid/a.csv", "test": "Test/a.csv"},
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_files_are_the_split(tmp_path: Path, layout: dict[str, str]) -> None:
    rows = read(in_files(tmp_path / "data", layout))
    assert rows.splits_from == "names of the files"
    assert {name: len(ids) for name, ids in rows.splits.items()} == {
        TRAIN: 16, DFR: 4, SELECT: 4, TEST: 8,
    }  # fmt: skip
    order = sorted(("train", "val", "test"), key=layout.__getitem__)
    sizes = {"train": 16, "val": 8, "test": 8}
    first = sum(sizes[split] for split in order[: order.index("train")])
    assert rows.splits[TRAIN].tolist() == list(range(first, first + 16))


def test_a_row_in_a_folder_of_a_split_is_found(tmp_path: Path) -> None:
    table = Table(in_files(tmp_path / "data", LAYOUTS[2]), ["label"])
    assert table.where(0) == "test/0.parquet, row 1"


def test_files_and_column_agree_or_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val", "test"):
        part = frame()[[s == split for s in SPLITS]]
        part.to_parquet(folder / f"{split}.parquet")
    assert read(folder).splits_from == "column 'split'"
    wrong = frame()[[s == "test" for s in SPLITS]]
    wrong.loc[wrong.index[2], "split"] = "train"
    wrong.to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match=r"test.parquet, row 3: is train by the column 'split' and"):
        read(folder)
    assert len(read(folder, {"split": "split"}).splits[TRAIN]) == 17


def test_files_of_unclear_splits_are_refused(tmp_path: Path) -> None:
    names = {"train": "train.parquet", "val": "val.parquet", "test": "holdout.parquet"}
    folder = in_files(tmp_path / "odd", names)
    with pytest.raises(DataError, match=r"holdout.parquet: its name says no split"):
        read(folder)
    assert read(folder, shares={}).splits_from == DRAWN
    folder = in_files(tmp_path / "text", LAYOUTS[3])
    with pytest.raises(DataError, match=r"train.csv: is the train split.*beside it is 'test.csv'"):
        read(folder / "train.csv")
    assert len(read(folder / "train.csv", shares={}).labels_N) == 16
    in_files(folder, {"test": "test.parquet"})
    with pytest.raises(DataError, match=r"holds Parquet files .* and text tables"):
        read(folder)
    two = in_files(tmp_path / "two", {"train": "train.parquet", "test": "test.parquet"})
    with pytest.raises(DataError, match=r"the val split is empty; .*set data.shares"):
        read(two)


def test_parts_without_a_split_are_one_table(tmp_path: Path) -> None:
    one = in_files(tmp_path / "one", {"train": "train-0.parquet"})
    assert read(one).splits_from == DRAWN
    in_files(tmp_path / "two", {"train": "a.parquet", "val": "b.parquet"})
    assert read(tmp_path / "two").splits_from == DRAWN
    (tmp_path / "deep").mkdir()
    in_files(tmp_path / "deep" / "data", {"train": "a.parquet"})
    with pytest.raises(DataError, match=r"no .parquet file.* There are some in 'data'"):
        read(tmp_path / "deep")


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda text: text.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (lambda text: text.replace(",", "^").encode(), "are commas or semicolons or tabs or bars"),
        (lambda text: text.replace(",", ", ").encode(), "'label'.*, ' split'.*Did you mean"),
    ],
)
def test_other_dialects_are_named(
    tmp_path: Path, encode: Callable[[str], bytes], words: str
) -> None:
    content = io.StringIO()
    frame()[["sky", "label", "split"]].to_csv(content, index=False)
    (tmp_path / "t.csv").write_bytes(encode(content.getvalue()))
    with pytest.raises(DataError, match=words):
        read(tmp_path / "t.csv")


def test_drawn_splits_are_said() -> None:
    class Data:
        splits_from = DRAWN
        splits = {TRAIN: np.arange(1400), TEST: np.arange(3)}  # noqa: RUF012

    for source, said in ((DRAWN, f"splits: {DRAWN}: train 1,400, test 3"), ("column 'split'", "")):
        data: Any = Data()
        data.splits_from = source
        console = Console(file=io.StringIO(), width=40)
        note_drawn_splits(data, Display(console))
        assert console.file.getvalue().strip() == said
