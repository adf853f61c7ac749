"""Classes and groups that a split lacks are known before anything starts, in every data set."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from agrekd_ray.config import check_job
from agrekd_ray.config.points import remarks_of
from agrekd_ray.data import DFR, SELECT, TEST, TRAIN, DataSettings, Groups, open_dataset, remarks_on
from agrekd_ray.errors import DataError
from agrekd_ray.models import Model, build
from agrekd_ray.teachers import DfrSettings, retrain_head
from tests import pictures, texts
from tests.conftest import TINY, Run, merged
from tests.test_data_command import write_job

NO_SECOND_CLASS = [place for place in pictures.spread() if (place[0], place[2]) != (1, 1)]
"""Of whose validation the second class is missing."""


def table(place: Path, places: Any = NO_SECOND_CLASS) -> dict[str, Any]:
    path = pictures.table(place / "own", places, groups=True) / "table.csv"
    columns = {"groups": ["sky"]}
    return pictures.small("table", place / "prepared", table=str(path), columns=columns)


def drawn(place: Path) -> dict[str, Any]:
    """The second class has two samples, of which none is drawn for validation."""
    folder = pictures.table(place / "own", [(n >= 30, n % 2, 0) for n in range(32)], groups=True)
    path = folder / "table.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join([name, label, sky]) for name, label, _, sky in rows) + "\n")
    columns = {"groups": ["sky"]}
    return pictures.small("table", place / "prepared", table=str(path), columns=columns)


def waterbirds(place: Path) -> dict[str, Any]:
    folder = pictures.waterbirds(place / "w", NO_SECOND_CLASS)
    return pictures.small("waterbirds", place / "p", path=str(folder))


def celeba(place: Path) -> dict[str, Any]:
    folder = pictures.celeba(place / "c", "csv", NO_SECOND_CLASS)
    return pictures.small("celeba", place / "p", path=str(folder))


def mails(place: Path) -> dict[str, Any]:
    lines = ["text,label,split,sky"]
    for label, attribute, split in NO_SECOND_CLASS:
        lines.append(f"so kind,{('ham', 'spam')[label]},{pictures.SPLITS[split]},{attribute}")
    (place / "mails.csv").write_text("\n".join(lines) + "\n")
    return {
        "name": "text_table",
        "table": str(place / "mails.csv"),
        "columns": {"groups": ["sky"]},
        "tokenizer": str(texts.word_tokenizer(place / "tokenizer")),
        "prepared": str(place / "p"),
    }


def comments(place: Path) -> dict[str, Any]:
    settings = texts.civilcomments(place)
    path = place / "civil" / texts.FILE
    rows = [
        row
        for row in csv.DictReader(path.open(newline=""))
        if row["split"] != "val" or float(row["toxicity"]) < 0.5
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, texts.HEADER)
        writer.writeheader()
        writer.writerows(rows)
    return settings


def digits(place: Path) -> dict[str, Any]:
    return {"name": "colored_digits", "train": 160, "val": 10}


def custom(place: Path) -> dict[str, Any]:
    (place / "few_digits.py").write_text(
        "from agrekd_ray.data.colored import ColoredDigits, ColoredImages\n"
        "def made(seed):\n"
        "    return ColoredImages(ColoredDigits(name='colored_digits', train=160, val=10))\n"
    )
    return {"name": "custom", "folder": str(place), "factory": "few_digits:made"}


MADE: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    "table": (table, "'dog'", "give the validation split two samples of every class"),
    "splits drawn": (drawn, "'dog'", "enlarge data.shares.val"),
    "waterbirds": (waterbirds, "'waterbird'", "give the validation split"),
    "celeba": (celeba, "'blond'", "give the validation split"),
    "text_table": (mails, "'spam'", "give the validation split"),
    "civilcomments": (comments, "'toxic'", "give the validation split"),
    "colored_digits": (digits, "'", "enlarge data.val"),
    "custom": (custom, "'", "give the validation split"),
}


@pytest.mark.parametrize("name", MADE)
def test_a_class_that_dfr_has_no_sample_of_is_a_fault_of_the_job(tmp_path: Path, name: str) -> None:
    make, missing, remedy = MADE[name]
    values = {
        "data": make(tmp_path),
        "methods": ["one_hot", "aver", "one_hot_dfr", "deep_ensemble_dfr"],
    }
    _, faults = check_job({**merged(TINY, {"ensemble.debiased": 1}), **values})
    told = {fault.key: fault.problem for fault in faults if "retrains last layers" in fault.problem}
    assert set(told) == {"ensemble.debiased", "methods.2", "methods.3"}
    for problem in told.values():
        assert f"no sample of class {missing}" in problem
        assert remedy in problem
    values["methods"] = ["one_hot", "aver"]
    _, faults = check_job({**merged(TINY, {"ensemble.debiased": 0}), **values})
    assert not [fault for fault in faults if "retrains" in fault.problem]


def test_it_is_said_by_every_command_before_a_teacher_trains(tmp_path: Path, agrekd: Run) -> None:
    job = write_job(tmp_path, table(tmp_path), **{"ensemble.debiased": 1, "methods": ["aver"]})
    for verb in ("validate", "run"):
        code, _, err = agrekd(verb, job)
        assert code == 2
        assert "ensemble.debiased = 1: retrains last layers" in err
    assert not (tmp_path / "pool").exists()
    gap = "no sample of class 'dog' in val (1 of 2 classes)"
    for verb in (("validate",), ("run",)):
        code, out, _ = agrekd(*verb, job, "ensemble.debiased=0")
        assert code == 0
        assert f"data: {gap}" in out
        assert "val_dfr" not in out, "nobody retrains"
    code, out, _ = agrekd("data", "check", job, "--fast")
    assert code == 0
    assert "no sample of class 'dog' in val_dfr, val (1 of 2 classes)" in out


def test_groups_that_are_missing_are_said_by_split(tmp_path: Path) -> None:
    """Grey dogs are in no training picture, and in the test split there are no grey pictures."""
    places = [
        place
        for place in pictures.spread((6, 4, 3))
        if place != (1, 1, 0) and (place[1], place[2]) != (1, 2)
    ]
    data = open_dataset(_settings(table(tmp_path, places)))
    assert remarks_on(data, dfr=True) == [
        "no sample of group 'cat, grey' in test (1 of 4 groups)",
        "no sample of group 'dog, grey' in train, test (1 of 4 groups)",
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_group_with_a_single_sample_in_dfr_s_half_is_said(tmp_path: Path, count: int) -> None:
    cells = [(label, sky) for label in (0, 1) for sky in (0, 1)]
    places = [(*cell, split) for cell in cells for split in (0, 2) for _ in range(4)]
    places += [(*cell, 1) for cell in cells[:3] for _ in range(8)] + [(1, 1, 1)] * count
    data = open_dataset(_settings(table(tmp_path, places)))
    halves = [int((data.groups.group_N[data.splits[split]] == 3).sum()) for split in (DFR, SELECT)]
    assert sum(halves) == count
    said = remarks_on(data, dfr=True)
    single = "a single sample of 'dog, grey' in val_dfr: DFR balances its groups by the smallest, "
    assert [line.startswith(single) for line in said].count(True) == (halves[0] == 1)
    for split, mine in zip((DFR, SELECT), halves, strict=True):
        assert (f"no sample of group 'dog, grey' in {split} (1 of 4 groups)" in said) == (not mine)
    assert not [line for line in remarks_on(data, dfr=False) if DFR in line]


def test_what_dfr_balances_is_class_and_attribute_where_groups_are_others() -> None:
    data = open_dataset(_settings({"name": "colored_digits", "aligned_val": 1.0}))
    said = remarks_on(data, dfr=True)
    assert "no sample of group 'bias-conflicting' in val (1 of 2 groups)" in said
    (groups,) = [line for line in said if "val_dfr" in line]
    assert groups.startswith("no sample of groups '0, bias-conflicting', '1, bias-conflicting', ")
    assert groups.endswith("and 4 more in val_dfr (10 of 20 groups)")


def test_what_some_points_of_a_study_lack_is_said_once() -> None:
    raw = merged(TINY, {"ensemble.debiased": 0, "data.val": 200, "data.train": 200})
    job, faults = check_job(
        {**raw, "sweep": {"data.aligned": [0.9, 1.0], "distillation.temperature": [1, 4]}}
    )
    assert job is not None, faults
    assert remarks_of(job) == ["no sample of group 'bias-conflicting' in train (1 of 2 groups)"]


@pytest.mark.parametrize("job", ["colored_digits", "textured_digits", "whole"])
def test_of_whole_data_nothing_is_said(tmp_path: Path, job: str) -> None:
    values = {"name": job} if job != "whole" else table(tmp_path, pictures.spread())
    assert remarks_on(open_dataset(_settings(values)), dfr=True) == []


class _Few:
    """Four samples, the second class in none of the halves of validation."""

    classes, shape, size = ("a", "b"), (3, 8, 8), 4
    splits = {name: np.array([n]) for n, name in enumerate((TRAIN, DFR, SELECT, TEST))}  # noqa: RUF012
    groups = Groups.crossed(np.array([1, 0, 0, 1]), ("a", "b"), np.zeros(4, int), ("x",))

    def labels(self, ids: np.ndarray) -> torch.Tensor:
        return torch.tensor([1, 0, 0, 1])[torch.from_numpy(ids)]


def test_dfr_itself_names_no_key_of_another_data_set() -> None:
    data: Any = _Few()
    model = build(Model(name="cnn", args={"width": 4}), data.shape, 2, 0)
    with pytest.raises(DataError, match=r"no sample of class 'b' in its half of validation") as it:
        retrain_head(model, data, DfrSettings(), 0)
    assert "data." not in str(it.value)


def _settings(values: dict[str, Any]) -> Any:
    kind: Any = TypeAdapter(DataSettings)
    return kind.validate_python(values)
