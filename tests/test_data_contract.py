"""Every data set of the registry is held to one contract, and so are those made elsewhere."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch._subclasses.fake_tensor import FakeTensorMode

from agrekd_ray.data import (
    DATASETS,
    DFR,
    SELECT,
    TEST,
    TRAIN,
    Arrays,
    Dataset,
    DataSettings,
    Groups,
    Prepared,
    open_dataset,
)
from agrekd_ray.data.custom import check_contract
from agrekd_ray.errors import DataError
from agrekd_ray.settings import Settings
from agrekd_ray.training import Loader, Request
from tests import pictures, texts
from tests.test_data import write_folder

MODULE = """
from agrekd_ray.data.colored import ColoredDigits, ColoredImages

def digits(seed, train):
    return ColoredImages(ColoredDigits(name="colored_digits", seed=seed, train=train))

def nothing(seed):
    return [seed]

def fails(seed):
    raise RuntimeError("no disk")
"""


def custom(folder: Path, **values: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "my_own_data.py").write_text(MODULE)
    given = {"factory": "my_own_data:digits", "args": {"train": 300}}
    return {"name": "custom", "folder": str(folder), **given, **values}


def waterbirds(place: Path) -> dict[str, Any]:
    return pictures.small("waterbirds", place / "p", path=str(pictures.waterbirds(place / "w")))


def celeba(place: Path) -> dict[str, Any]:
    return pictures.small("celeba", place / "p", path=str(pictures.celeba(place / "c", "txt")))


def table(place: Path) -> dict[str, Any]:
    return pictures.small(
        "table", place / "p", table=str(pictures.table(place / "t") / "table.csv")
    )


EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "colored_digits": lambda place: {"name": "colored_digits"},
    "colored_idx": lambda place: {
        "name": "colored_idx",
        "path": str(write_folder(place / "idx")),
        "train": 80,
        "val": 40,
    },
    "textured_digits": lambda place: {"name": "textured_digits"},
    "textured_idx": lambda place: {
        "name": "textured_idx",
        "path": str(write_folder(place / "idx", train=600, test=300)),
        "train": 80,
        "val": 40,
        "size": 12,
    },
    "waterbirds": waterbirds,
    "celeba": celeba,
    "table": table,
    "civilcomments": texts.civilcomments,
    "text_table": texts.text_table,
    "custom": lambda place: custom(place / "own"),
}
"""Settings of every data set, by name; what they need is written into a folder."""
AUGMENTED = {"flip": True, "shift": 1, "rotate": 10, "count": 3}


def parsed(values: dict[str, Any]) -> Any:
    return TypeAdapter(DataSettings).validate_python(values)


def tag(kind: type[Settings]) -> str:
    return kind.model_fields["name"].annotation.__args__[0]  # type: ignore[union-attr]


@pytest.fixture(params=sorted(EXAMPLES))
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return parsed(EXAMPLES[request.param](tmp_path))


def fresh(settings: Any) -> Dataset:
    return settings.open()


def test_every_data_set_has_an_example() -> None:
    assert {tag(kind) for kind in DATASETS} == set(EXAMPLES)


def test_it_keeps_the_contract(settings: Any) -> None:
    data = fresh(settings)
    check_contract(data, "it")
    every = np.concatenate(list(data.splits.values()))
    assert len(set(every.tolist())) == len(every) <= data.size
    assert set(data.splits) == {TRAIN, DFR, SELECT, TEST}
    for ids in data.splits.values():
        inputs, labels = data.inputs(ids[:5], None), data.labels(ids)
        assert inputs.shape == (len(ids[:5]), *data.shape)
        assert len(data.shape) in (1, 3)
        assert inputs.dtype == (torch.float32 if len(data.shape) == 3 else torch.int64)
        assert inputs.min() >= 0
        assert 0 <= labels.min() <= labels.max() < len(data.classes)
    if len(data.shape) == 3:
        assert inputs.max() <= 1
        assert len(torch.unique(inputs)) > 5
    assert data.groups.group_N.shape == data.groups.attribute_N.shape == (data.size,)


def test_it_is_the_same_every_time(settings: Any) -> None:
    one, other = fresh(settings), fresh(settings)
    assert one.fingerprint == other.fingerprint
    assert one.views_fingerprint == other.views_fingerprint
    ids = one.splits[TRAIN]
    assert torch.equal(one.inputs(ids, 3), other.inputs(ids, 3))
    assert torch.equal(one.inputs(ids[::-1].copy(), None), other.inputs(ids, None).flip(0))
    assert open_dataset(settings) is open_dataset(settings)


def test_the_seed_matters(settings: Any) -> None:
    other = settings.model_copy(update={"seed": settings.seed + 1})
    assert fresh(settings).fingerprint != fresh(other).fingerprint


def test_views_are_pure(settings: Any) -> None:
    """What sample i looks like depends on the seed, the view and i alone."""
    if "views" not in type(settings).model_fields:
        pytest.skip("has no views of its own")
    values = {**settings.model_dump(mode="json"), "views": AUGMENTED}
    one, other = fresh(parsed(values)), fresh(parsed(values))
    ids = one.splits[TRAIN]
    mixed = np.random.default_rng(0).permutation(len(ids))
    whole = one.inputs(ids, 1)
    torch.testing.assert_close(other.inputs(ids[mixed], 1), whole[mixed], rtol=0, atol=1e-6)
    assert torch.equal(one.inputs(ids, 4), whole)
    assert not torch.equal(one.inputs(ids, 2), whole)
    assert torch.equal(one.inputs(ids, None), fresh(settings).inputs(ids, None))
    assert one.fingerprint == fresh(settings).fingerprint


@pytest.mark.parametrize("epoch", [None, 1])
def test_a_loader_brings_what_inputs_say(settings: Any, epoch: int | None) -> None:
    augmented = "views" in type(settings).model_fields
    values = {**settings.model_dump(mode="json"), **({"views": AUGMENTED} if augmented else {})}
    data = fresh(parsed(values))
    parts = np.split(np.random.default_rng(0).permutation(data.splits[TRAIN])[:12], 3)
    brought = list(Loader(data)(Request(ids, epoch) for ids in parts))
    assert len(brought) == len(parts)
    for ids, loaded in zip(parts, brought, strict=True):
        expected = data.inputs(ids, epoch)
        if len(data.shape) == 1:  # what is cut off is padding
            longest = loaded.inputs.shape[1]
            assert (expected[:, longest:] == data.tokens[1]).all()  # type: ignore[attr-defined]
            assert longest == data.lengths(ids).max()  # type: ignore[attr-defined]
            expected = expected[:, :longest]
        torch.testing.assert_close(loaded.inputs, expected, rtol=0, atol=1e-6)
        assert loaded.inputs.dtype == expected.dtype
        assert loaded.ids_B.tolist() == ids.tolist()
        assert loaded.labels_B.tolist() == data.labels(ids).tolist()


@pytest.mark.parametrize("epoch", [None, 1])
def test_a_view_is_shown_where_its_rows_are(settings: Any, epoch: int | None) -> None:
    """On a GPU: no tensor of another device comes in, and nothing is waited for."""
    augmented = "views" in type(settings).model_fields
    values = {**settings.model_dump(mode="json"), **({"views": AUGMENTED} if augmented else {})}
    data = fresh(parsed(values))
    if not isinstance(data, Arrays):
        pytest.skip("is asked for its inputs, a batch at a time")
    view = None if epoch is None else data.view(epoch)
    arrays = data.arrays(view)
    assert all(one is other for one, other in zip(arrays, data.arrays(view), strict=True))
    with FakeTensorMode():
        rows = [
            torch.empty(4, *each.shape[1:], dtype=torch.from_numpy(each[:1].copy()).dtype).cuda()
            for each in arrays
        ]
        shown = data.show(rows, view)
    assert shown.device.type == "cuda"
    assert shown.shape == (4, *data.shape)


def test_opening_decodes_nothing(settings: Any) -> None:
    data = open_dataset(settings)
    if isinstance(data, Prepared):
        assert data.unprepared() == data.size
        data.prepare()
        assert fresh(settings).unprepared() == 0  # type: ignore[attr-defined]


def test_another_process_sees_the_same(settings: Any) -> None:
    script = """
import sys
from pydantic import TypeAdapter
from agrekd_ray.data import DataSettings, open_dataset
data = open_dataset(TypeAdapter(DataSettings).validate_json(sys.argv[1]))
print(data.fingerprint, data.views_fingerprint, float(data.inputs(data.splits["test"], None).sum()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, settings.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    data = fresh(settings)
    *fingerprints, total = ran.stdout.split()
    assert fingerprints == [data.fingerprint, data.views_fingerprint]
    # Sums of float32 differ in their last digits with the number of threads.
    here = float(data.inputs(data.splits[TEST], None).sum())
    assert float(total) == pytest.approx(here, rel=1e-5)


def sound() -> SimpleNamespace:
    """A data set made elsewhere, as its class's fields."""
    return SimpleNamespace(
        classes=("a", "b"),
        shape=(3, 2, 2),
        fingerprint="f",
        views_fingerprint="v",
        splits={
            name: np.arange(n * 4, n * 4 + 4) for n, name in enumerate((TRAIN, DFR, SELECT, TEST))
        },
        size=16,
        groups=Groups.unknown(np.arange(16) % 2, ("a", "b")),
        view=lambda epoch: 0,
        inputs=lambda ids, epoch: torch.zeros(len(ids), 3, 2, 2),
        labels=lambda ids: torch.from_numpy(ids % 2),
    )


def test_a_sound_one_made_elsewhere_passes() -> None:
    check_contract(sound(), "it")


UNSOUND: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({"classes": ["a", "b"]}, "classes is no tuple of names"),
    "shape": ({"shape": [3, 2, 2]}, "shape is no tuple"),
    "splits": ({"splits": {}}, "splits is no dict with train, val_dfr, val and test"),
    "size": ({"size": 12}, r"splits\['test'\] are not sorted ids below 12"),
    "labels": ({"labels": lambda ids: torch.from_numpy(ids)}, "labels of val_dfr are not below 2"),
    "label type": ({"labels": lambda ids: ids % 2}, "labels of train are no int64 tensor"),
    "groups": ({"groups": None}, "groups is no agrekd_ray.data.Groups"),
    "group": (
        {"groups": dataclasses.replace(sound().groups, names=("a",))},
        "groups.group_N are not below 1",
    ),
    "overlapping": (
        {"groups": dataclasses.replace(sound().groups, overlapping_NK=np.zeros((3, 0), bool))},
        r"overlapping_NK is not bool \[16, 0\]",
    ),
    "view": ({"view": lambda epoch: None}, r"view\(0\) is no whole number"),
    "input shape": (
        {"inputs": lambda ids, epoch: torch.zeros(len(ids), 3, 4, 4)},
        r"inputs\(ids, None\) are no tensor of the shape \(2, 3, 2, 2\)",
    ),
    "normalised": (
        {"inputs": lambda ids, epoch: torch.zeros(len(ids), 3, 2, 2) - 1},
        r"not in \[0, 1\]; models bring their own normalisation",
    ),
    "input type": (
        {"inputs": lambda ids, epoch: torch.zeros(len(ids), 3, 2, 2).double()},
        "images are float32",
    ),
    "fingerprint": ({"fingerprint": 3}, "fingerprint or views_fingerprint is no text"),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_what_is_wrong_with_one_made_elsewhere_is_said(what: str) -> None:
    changes, words = UNSOUND[what]
    data = sound()
    vars(data).update(changes)
    with pytest.raises(DataError, match=words):
        check_contract(data, "it")


def test_all_that_is_missing_is_said_at_once() -> None:
    data = sound()
    del data.inputs, data.groups
    with pytest.raises(DataError, match="no groups, no inputs"):
        check_contract(data, "it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factory": "no_such_module:f"}, "no_such_module cannot be imported"),
        ({"factory": "my_own_data:digit"}, "has no function digit"),
        ({"factory": "my_own_data:fails", "args": {}}, "failed .RuntimeError: no disk"),
        (
            {"factory": "my_own_data:nothing", "args": {}},
            "list is no data set: no classes, no shape",
        ),
        ({"factory": "digits"}, "no plugin has a data set 'digits'; a function is named package"),
        ({"args": {"trian": 3}}, "unexpected keyword argument 'trian'"),
        ({"args": {"train": 1500}}, "leave no test sample"),
    ],
)
def test_a_factory_that_does_not_work(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(parsed(custom(tmp_path / "own", **change)))


@pytest.mark.parametrize("factory", ["a.b", ":f", "a:b:c", "a b:c"])
def test_a_factory_is_written_module_colon_function(tmp_path: Path, factory: str) -> None:
    with pytest.raises(ValueError, match="factory"):
        parsed(custom(tmp_path / "own", factory=factory))
