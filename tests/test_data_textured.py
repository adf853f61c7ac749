"""Two classes on two textures: what is painted, which groups it makes, and what is refused."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from agrekd_ray.config import check_job
from agrekd_ray.data import DFR, SELECT, TEST, TRAIN, DataSettings, textured
from agrekd_ray.data.biased import CONFLICTING
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.data.digits import bundled_digits
from agrekd_ray.data.idx import IMAGES, LABELS
from agrekd_ray.data.textured import TEXTURES, TINT, TexturedImages, texture
from agrekd_ray.errors import DataError
from tests.conftest import TINY, merged
from tests.test_data import idx

SPLITS = (TRAIN, DFR, SELECT, TEST)


def digits(**values: Any) -> TexturedImages:
    return TypeAdapter(DataSettings).validate_python({"name": "textured_digits", **values}).open()


def fashion(folder: Path, **values: Any) -> TexturedImages:
    given = {"name": "textured_idx", "path": str(folder), "train": 60, "val": 40, **values}
    return TypeAdapter(DataSettings).validate_python(given).open()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of 28 x 28 of noise; the pixel in the middle of number n is 20 (n + 1)."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 600), ("t10k", 300)):
        labels = rng.permutation(np.arange(count) % 10)
        images = rng.integers(0, 256, (count, 28, 28))
        images[:, 14, 14] = 20 * (labels + 1)
        for end, content in (
            ("images-idx3", idx(images, IMAGES)),
            ("labels-idx1", idx(labels, LABELS)),
        ):
            (tmp_path / f"{name}-{end}-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_pictures_are_the_image_on_a_part_of_the_tinted_texture(folder: Path) -> None:
    """By the formula, from the textures that scikit-image itself reads."""
    data = fashion(folder)
    grey = data.settings.grey()[0]
    shown = data.inputs(np.arange(data.size), None).numpy()
    assert shown.shape == (data.size, 3, 32, 32)
    places = set()
    for sample in (*range(8), data.size - 1):
        name = data.groups.attributes[data.groups.attribute_N[sample]]
        whole = getattr(skimage.data, name)() / 255
        tint = np.array(TEXTURES[name])[:, None, None]
        edge = shown[sample, :, 0, :] / tint[:, 0]  # the first row, which no image reaches
        rows = np.lib.stride_tricks.sliding_window_view(whole[:-31], 32, 1)
        off = abs(rows - edge.mean(0)).max(-1)
        u, v = np.unravel_index(off.argmin(), off.shape)
        assert off[u, v] < 0.01
        places.add((int(u), int(v)))
        front = np.zeros((32, 32))
        front[2:30, 2:30] = grey[sample]
        covered = np.minimum(1, 2.5 * front)
        expected = whole[u : u + 32, v : v + 32] * tint * (1 - covered)
        expected = expected + front * np.array(TINT)[:, None, None] * covered
        np.testing.assert_allclose(shown[sample], expected, atol=0.51 / 255)
    assert len(places) == 9


def test_only_images_of_the_two_classes_are_there(folder: Path) -> None:
    data = fashion(folder)
    assert data.classes == ("shirt", "T-shirt")
    assert [len(data.splits[name]) for name in SPLITS] == [60, 20, 20, 60]
    number = {0: 6, 1: 0}  # the first class is label 6
    middle = data.settings.grey()[0][:, 14, 14] * 255
    labels = data.labels(np.arange(data.size)).numpy()
    assert middle.round().tolist() == [20 * (number[label] + 1) for label in labels]
    assert set(labels) == {0, 1}
    other = fashion(folder, classes=["bag", "shoe"], labels=[8, [5, 7, 9]])
    middle = other.settings.grey()[0][:, 14, 14] * 255 / 20 - 1
    labels = other.labels(np.arange(other.size)).numpy()
    assert set(middle[labels == 0].round()) == {8}
    assert set(middle[labels == 1].round()) == {5, 7, 9}


def test_even_digits_belong_on_grass_and_odd_ones_on_brick() -> None:
    data = digits()
    assert data.shape == (3, 16, 16)
    assert data.classes == ("even", "odd")
    assert np.array_equal(data.labels(np.arange(1797)).numpy(), bundled_digits()[1] % 2)
    red, green, _ = data.inputs(np.arange(1797), None)[:, :, 0, :].mean(2).T
    assert np.array_equal((red > green).numpy(), data.groups.attribute_N == 1)


def test_groups_are_class_by_background_with_exact_shares() -> None:
    data = digits(aligned=0.95, aligned_val=0.6, aligned_test=0.5)
    assert data.groups.names == ("even on grass", "even on brick", "odd on grass", "odd on brick")
    assert data.groups.attributes == ("grass", "brick")
    for name, share in zip(SPLITS, (0.95, 0.6, 0.6, 0.5), strict=True):
        ids = data.splits[name]
        labels, on = data.labels(ids).numpy(), data.groups.attribute_N[ids]
        assert np.array_equal(data.groups.group_N[ids], 2 * labels + on)
        assert (labels != on).sum() == round((1 - share) * len(ids))
        for label in (0, 1):
            of_class = labels == label
            away = (on[of_class] != label).sum()
            assert abs(away - (1 - share) * of_class.sum()) <= 1


def test_by_default_validation_and_test_are_balanced() -> None:
    data = digits()
    for name in (DFR, SELECT, TEST):
        labels = data.labels(data.splits[name]).numpy()
        on = data.groups.attribute_N[data.splits[name]]
        for label in (0, 1):
            assert abs(2 * (on[labels == label] == label).sum() - (labels == label).sum()) <= 2


def test_rows_are_the_bytes_of_pictures(folder: Path) -> None:
    for data in (digits(size=20), fashion(folder, size=24)):
        (rows,) = data.arrays(None)
        assert rows.dtype == np.uint8
        assert rows.shape == (data.size, data.shape[1], data.shape[2], 3)
        ids = data.splits[TEST][:5]
        shown = torch.from_numpy(rows[ids]).permute(0, 3, 1, 2) / 255
        assert torch.equal(data.inputs(ids, None), shown)


@pytest.mark.parametrize("size", [1, 7, 16, 32, 256])
def test_an_image_fills_the_middle_of_a_picture_of_any_size(size: int) -> None:
    framed = textured._framed(np.ones((8, 6), np.float32), size)
    margin = size // 16
    high = size - 2 * margin
    assert framed.shape == (size, size)
    assert framed.sum() == pytest.approx(high * max(1, round(6 * high / 8)))
    assert (framed[margin : size - margin].max(1) == 1).all()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"aligned": 0.9},
        {"aligned_test": 0.4},
        {"size": 18},
        {"labels": [[1, 3, 5, 7, 9], [0, 2, 4, 6, 8]]},
        {"train": 900},
    ],
    ids=str,
)
def test_the_fingerprint_knows_what_models_see(change: dict[str, Any]) -> None:
    assert digits().fingerprint == digits(views={"flip": True}).fingerprint
    assert digits(**change).fingerprint != digits().fingerprint


def test_other_textures_are_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digits().fingerprint
    monkeypatch.setattr(textured, "texture", lambda name: 255 - texture(name))
    assert digits().fingerprint != before


def test_coloured_images_are_found_as_before_they_shared_their_code() -> None:
    data = ColoredDigits(name="colored_digits").open()
    assert data.fingerprint == "b86ba2d74dbe2ae8070972c3d206008ddddd2d380290c8f44271ce0a5a15bc38"
    assert CONFLICTING == 1


def test_scikit_image_is_neither_imported_nor_asked_to_fetch() -> None:
    script = """
import sys
from agrekd_ray.data import DataSettings, open_dataset
from pydantic import TypeAdapter
open_dataset(TypeAdapter(DataSettings).validate_python({"name": "textured_digits"}))
print([name for name in sys.modules if name.split(".")[0] in ("skimage", "pooch", "sklearn")])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.fixture
def no_texture(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives textures another place to be looked for in; None is an installation without any."""
    texture.cache_clear()

    def put(place: Path | None) -> None:
        spec = None if place is None else type("Spec", (), {"submodule_search_locations": [place]})
        monkeypatch.setattr(textured, "find_spec", lambda name: spec)

    yield put
    texture.cache_clear()


def test_without_scikit_image_the_extra_is_named(no_texture: Any) -> None:
    no_texture(None)
    words = r"scikit-image is not installed; pip install 'agrekd_ray\[textures\]'"
    with pytest.raises(DataError, match=words):
        digits()
    _, faults = check_job(merged(TINY, {"data": {"name": "textured_digits"}}))
    assert [fault.key for fault in faults] == ["data"]
    assert "agrekd_ray[textures]" in str(faults[0])


def test_a_texture_that_is_missing_or_broken_is_named(no_texture: Any, tmp_path: Path) -> None:
    no_texture(tmp_path)
    with pytest.raises(DataError, match=r"without its texture data/grass\.png; pip install"):
        digits()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/grass.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"grass\.png: cannot be read"):
        digits()
    Image.new("L", (99, 99)).save(tmp_path / "data/grass.png")
    with pytest.raises(DataError, match=r"grass\.png: 99 × 99 pixels, not 512 × 512"):
        digits()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [6, 12]}, "data.labels: no image has the label 12; the labels are 0, 1, 2"),
        ({"train": 81}, "data.train + data.val: 81 + 40 samples are wanted"),
        ({"test": 61}, "data.test: 61 samples are wanted"),
        ({"val": 1}, "data.val: 1 samples cannot be cut into two halves"),
    ],
    ids=str,
)
def test_more_than_the_files_hold(folder: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        fashion(folder, **change)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", [6, 6]),
        ("labels", [[6, 0], [0]]),
        ("labels", [6]),
        ("labels", [6, 0, 2]),
        ("labels", [[], [0]]),
        ("labels", [6, -1]),
        ("labels", [6, True]),
        ("classes", ["shirt", "shirt"]),
        ("classes", ["shirt"]),
        ("size", 257),
        ("size", 0),
        ("severity", 4),
    ],
)
def test_wrong_settings_are_refused(folder: Path, key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        fashion(folder, **{key: value})
    assert any(key in map(str, fault["loc"]) for fault in caught.value.errors())
