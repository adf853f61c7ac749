"""Data sets: exact shares, colours, deterministic views, and IDX files whole and broken."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agrekd_ray.data import DFR, SELECT, TEST, TRAIN, Dataset, open_dataset
from agrekd_ray.data.biased import ALIGNED, CONFLICTING
from agrekd_ray.data.colored import (
    DEVIATIONS,
    MEANS,
    ColoredDigits,
    ColoredIdx,
    ColoredImages,
)
from agrekd_ray.data.idx import IMAGES, LABELS, read_idx, read_split
from agrekd_ray.data.views import Views
from agrekd_ray.errors import DataError
from tests.shared import shown_as

AUGMENTED = {"views": {"flip": True, "shift": 1.5, "rotate": 20}}


def digits(**settings: Any) -> ColoredImages:
    """A fresh object: nothing is shared with other calls."""
    return ColoredImages(ColoredDigits.model_validate({"name": "colored_digits", **settings}))


def idx(values: np.ndarray, magic: int) -> bytes:
    return np.array([magic, *values.shape], ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_folder(folder: Path, train: int = 120, test: int = 60, packed: bool = False) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        for end, content in (
            ("images-idx3-ubyte", idx(rng.integers(1, 256, (count, 6, 5)), IMAGES)),
            ("labels-idx1-ubyte", idx(np.arange(count) % 10, LABELS)),
        ):
            path = folder / f"{name}-{end}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def idx_data(folder: Path, **settings: Any) -> ColoredImages:
    sizes = {"train": 80, "val": 40}
    values = {"name": "colored_idx", "path": folder, **sizes, **settings}
    return ColoredImages(ColoredIdx.model_validate(values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "idx")


def test_the_bundled_digits_are_those_of_scikit_learn(monkeypatch) -> None:
    from sklearn.datasets import load_digits

    from agrekd_ray.data import digits as module

    wanted = load_digits(return_X_y=True)
    for place in (module._FILE, Path("moved")):
        monkeypatch.setattr(module, "_FILE", place)
        for found, expected in zip(module.bundled_digits(), wanted, strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


@pytest.fixture(params=["digits", "idx"])
def make(request: pytest.FixtureRequest, folder: Path) -> Callable[..., ColoredImages]:
    """Every data set, held to the same contract."""
    if request.param == "digits":
        return digits
    return lambda **settings: idx_data(folder, **settings)


@pytest.mark.parametrize("aligned", [0.0, 0.5, 0.98, 0.995, 1.0])
def test_shares_are_exact_in_every_split_and_even_over_classes(aligned: float) -> None:
    data = digits(aligned=aligned, aligned_val=0.3, aligned_test=0.25)
    assert [len(data.splits[name]) for name in (TRAIN, DFR, SELECT, TEST)] == [1000, 200, 200, 397]
    for split, share in ((TRAIN, aligned), (DFR, 0.3), (SELECT, 0.3), (TEST, 0.25)):
        ids = data.splits[split]
        conflicting = data.groups.attribute_N[ids] == CONFLICTING
        assert conflicting.sum() == round((1 - share) * len(ids))
        labels = data.labels(ids).numpy()
        for label in range(10):
            of_class = conflicting[labels == label]
            assert abs(of_class.sum() - (1 - share) * len(of_class)) <= 1


def test_groups_are_alignment() -> None:
    data = digits()
    assert data.groups.names == ("bias-aligned", "bias-conflicting")
    assert np.array_equal(data.groups.attribute_N, data.groups.group_N)
    shares = data.groups.shares(data.splits[TRAIN])
    torch.testing.assert_close(shares, torch.tensor([0.98, 0.02]))
    assert data.groups.shares(np.array([], dtype=int)).tolist() == [0, 0]


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
def test_colours_lie_around_the_mean_of_the_right_class(severity: int) -> None:
    """An image is grey times colour, so the brightest pixel gives its colour away."""
    data = digits(severity=severity, aligned=0.5)
    ids = np.arange(data.size)
    images, labels = data.inputs(ids, None), data.labels(ids).numpy()
    grey = data.settings.grey()[0]
    brightest = grey.reshape(len(ids), -1).argmax(1)
    colours = images.flatten(2).numpy()[ids, :, brightest]
    colours /= grey.reshape(len(ids), -1)[ids, brightest][:, None]
    distance = np.linalg.norm(colours[:, None] - MEANS[None], axis=2)
    aligned = data.groups.attribute_N == ALIGNED
    deviation = DEVIATIONS[severity]
    if severity > 1:  # so far apart that the nearest mean is the one that it was drawn around
        assert (distance.argmin(1)[aligned] == labels[aligned]).all()
        assert (distance.argmin(1)[~aligned] != labels[~aligned]).all()
        assert len(set(distance.argmin(1)[~aligned])) == 10
    off = (colours - MEANS[labels])[aligned]
    inner = off[:, 1][labels[aligned] == 1]  # far from 0 and 1: nothing is clipped
    assert abs(inner).max() < 5 * deviation
    assert 0.7 * deviation < inner.std() < 1.3 * deviation
    assert images.min() >= 0
    assert images.max() <= 1


def test_images_are_what_models_take(make: Callable[..., ColoredImages]) -> None:
    data: Dataset = make()
    ids = data.splits[TEST][:7]
    images, labels = data.inputs(ids, None), data.labels(ids)
    assert images.shape == (7, *data.shape)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.max() < len(data.classes)


def test_splits_are_disjoint_and_sorted(make: Callable[..., ColoredImages]) -> None:
    data = make()
    every = np.concatenate(list(data.splits.values()))
    assert len(set(every.tolist())) == len(every) == data.size
    assert set(data.splits) == {TRAIN, DFR, SELECT, TEST}
    for ids in data.splits.values():
        assert (np.diff(ids) > 0).all()


def test_a_sample_looks_the_same_in_any_batch(make: Callable[..., ColoredImages]) -> None:
    one, other = make(**AUGMENTED), make(**AUGMENTED)
    ids = one.splits[TRAIN]
    whole = one.inputs(ids, 3)
    mixed = np.random.default_rng(0).permutation(len(ids))
    torch.testing.assert_close(other.inputs(ids[mixed], 3), whole[mixed], rtol=0, atol=1e-6)
    for position in (0, 17, len(ids) - 1):
        alone = other.inputs(ids[position : position + 1], 3)
        torch.testing.assert_close(alone[0], whole[position], rtol=0, atol=1e-6)
    twice = other.inputs(ids[[4, 4]], 3)
    assert torch.equal(twice[0], twice[1])


def test_another_process_sees_the_same_image() -> None:
    script = """
import hashlib, sys, numpy as np
from agrekd_ray.data.colored import ColoredDigits, ColoredImages
views = {"flip": True, "shift": 1.5, "rotate": 20}
data = ColoredImages(ColoredDigits(name="colored_digits", views=views))
print(data.fingerprint, data.views_fingerprint, float(data.inputs(np.array([5, 900]), 4).sum()))
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    data = digits(**AUGMENTED)
    assert out[:2] == [data.fingerprint, data.views_fingerprint]
    assert float(out[2]) == pytest.approx(float(data.inputs(np.array([5, 900]), 4).sum()), abs=1e-4)


def test_views_differ_between_epochs_samples_and_seeds() -> None:
    data = digits(**AUGMENTED)
    ids = data.splits[TRAIN][:50]
    first, second = data.inputs(ids, 0), data.inputs(ids, 1)
    assert ((first - second).abs().amax((1, 2, 3)) > 0.01).all()
    assert (data.view(0), data.view(7)) == (0, 7)
    same = torch.rand(1, 3, 8, 8).expand(2, -1, -1, -1)
    shown = [
        shown_as(same, data.settings.views, ids=np.array([3, 4]), seed=s, samples=9) for s in (0, 1)
    ]
    assert not torch.allclose(shown[0][0], shown[0][1])
    assert not torch.allclose(shown[0], shown[1])


def test_without_augmentation_every_view_is_the_image(make: Callable[..., ColoredImages]) -> None:
    data = make()
    ids = data.splits[TRAIN][:20]
    assert torch.equal(data.inputs(ids, 0), data.inputs(ids, None))
    assert torch.equal(data.inputs(ids, 9), data.inputs(ids, None))
    assert data.view(0) == data.view(9)


def test_evaluation_sees_no_augmentation(make: Callable[..., ColoredImages]) -> None:
    plain, augmented = make(), make(**AUGMENTED)
    ids = plain.splits[TEST]
    assert torch.equal(plain.inputs(ids, None), augmented.inputs(ids, None))
    assert not torch.equal(augmented.inputs(ids, 0), augmented.inputs(ids, None))


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    data = digits(views={"flip": True})
    ids = data.splits[TRAIN]
    shown, plain = data.inputs(ids, 0), data.inputs(ids, None)
    mirrored = (shown - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-4
    kept = (shown - plain).abs().amax((1, 2, 3)) < 1e-4
    assert (mirrored | kept).all()
    assert 0.4 < mirrored.float().mean() < 0.6


@pytest.mark.parametrize("shape", [(8, 8), (6, 10)])
def test_a_rotation_keeps_shapes(shape: tuple[int, int]) -> None:
    """A disc stays where it is, and as large, whatever the angle and the image's proportions."""
    height, width = (4 * side for side in shape)
    y, x = np.mgrid[:height, :width]
    disc = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < (height / 3) ** 2
    images = torch.from_numpy(disc.astype(np.float32)).expand(16, 1, -1, -1)
    turned = shown_as(images, Views(rotate=180))
    assert ((turned - images).abs().mean((1, 2, 3)) < 0.03).all()


def test_a_shift_stays_within_its_limit() -> None:
    images = torch.zeros(200, 1, 21, 21)
    images[:, :, 10, 10] = 1
    moved = shown_as(images, Views(shift=3))[:, 0]
    weight = moved.sum((1, 2))
    for axis in (1, 2):
        place = (moved.sum(3 - axis) * torch.arange(21)).sum(1) / weight - 10
        assert place.abs().max() <= 3.001
        assert place.max() > 2.5
        assert place.min() < -2.5


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"aligned": 0.9},
        {"aligned_val": 0.4},
        {"aligned_test": 0.2},
        {"severity": 3},
        {"train": 70},
        {"val": 30},
    ],
    ids=str,
)
def test_the_fingerprint_knows_what_models_see(
    make: Callable[..., ColoredImages], change: dict[str, Any]
) -> None:
    assert make().fingerprint == make().fingerprint
    assert make(**change).fingerprint != make().fingerprint


def test_views_have_a_fingerprint_of_their_own() -> None:
    plain, augmented = digits(), digits(**AUGMENTED)
    assert plain.fingerprint == augmented.fingerprint
    assert plain.views_fingerprint != augmented.views_fingerprint
    assert plain.views_fingerprint == digits().views_fingerprint


def test_opening_twice_reads_once() -> None:
    settings = ColoredDigits(name="colored_digits")
    assert open_dataset(settings) is open_dataset(settings.model_copy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": 1397}, "data.train + data.val: 1397 + 400 leave no test sample"),
        ({"val": 1}, "data.val"),
    ],
)
def test_more_digits_than_there_are(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        digits(**change)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": 81}, "data.train + data.val: 81 + 40 samples are wanted, the train files in"),
        ({"test": 61}, "data.test: 61 samples are wanted, the t10k files in"),
        ({"val": 1}, "data.val"),
        ({"classes": ("a", "b")}, "data.classes must name every class"),
        ({"classes": tuple("0123456789ab")}, "at most 10"),
    ],
    ids=str,
)
def test_more_idx_samples_or_classes_than_there_are(
    folder: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        idx_data(folder, **change)
    assert words in str(caught.value)


def test_plain_and_packed_files_are_the_same_data(tmp_path: Path, folder: Path) -> None:
    packed = write_folder(tmp_path / "packed", packed=True)
    one, other = idx_data(folder), idx_data(packed)
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.inputs(np.arange(120), None), other.inputs(np.arange(120), None))
    images, labels = read_split(packed, "train")
    assert images.shape == (120, 6, 5)
    assert labels.tolist() == [n % 10 for n in range(120)]


def test_the_other_spelling_of_idx_names(folder: Path) -> None:
    before = idx_data(folder).fingerprint
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert idx_data(folder).fingerprint == before


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _pack(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.with_name(path.name + ".gz").write_bytes(change(gzip.compress(path.read_bytes())))
    path.unlink()


def _header(path: Path, *numbers: int) -> None:
    content = path.read_bytes()
    path.write_bytes(np.array(numbers, ">u4").tobytes() + content[4 * len(numbers) :])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p.unlink(), "missing; looked for"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "missing; looked for"),
    "empty": (lambda p: _cut(p, 0), "empty; copy or download"),
    "header cut": (lambda p: _cut(p, 7), "too few for an IDX header"),
    "content cut": (lambda p: _cut(p, 100), "truncated or damaged"),
    "content too long": (
        lambda p: p.write_bytes(p.read_bytes() + b"x"),
        "truncated or damaged",
    ),
    "gzip cut": (lambda p: _pack(p, lambda packed: packed[:-20]), "truncated or damaged gzip"),
    "gzip bit": (
        lambda p: _pack(p, lambda packed: packed[:40] + bytes([packed[40] ^ 64]) + packed[41:]),
        "truncated or damaged gzip",
    ),
    "no gzip": (lambda p: _pack(p, lambda packed: b"<html>no</html>"), "damaged gzip"),
    "empty gzip": (lambda p: _pack(p, lambda packed: b""), "copy or download"),
    "packed nothing": (lambda p: _pack(p, lambda packed: gzip.compress(b"")), "file is empty"),
    "wrong magic": (lambda p: _header(p, 0x0D03), "magic number 0x00000d03"),
    "html": (lambda p: p.write_bytes(b"<html>404 not found</html>"), "magic number"),
    "header says more": (lambda p: _header(p, IMAGES, 121), "truncated or damaged"),
    "header says far more": (
        lambda p: _header(p, IMAGES, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        "truncated or damaged",
    ),
    "swapped": (
        lambda p: p.write_bytes((p.parent / "train-labels-idx1-ubyte").read_bytes()),
        "is it the right file?",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_named_with_a_remedy(folder: Path, how: str) -> None:
    path = folder / "train-images-idx3-ubyte"
    spoil, words = BROKEN[how]
    spoil(path)
    with pytest.raises(DataError) as caught:
        idx_data(folder)
    assert path.name in str(caught.value)
    assert words in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises(DataError) as caught:
            idx_data(path)
        assert str(path) in str(caught.value)
        assert "set data.path" in str(caught.value)


def test_images_and_labels_that_do_not_belong_together(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(119) % 10, LABELS))
    with pytest.raises(DataError, match="120 images in train-images-idx3-ubyte but 119 labels"):
        idx_data(folder)


def test_train_and_test_images_of_different_size(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.ones((60, 5, 5)), IMAGES))
    with pytest.raises(DataError, match=r"\(6, 5\).*\(5, 5\).*do not belong together"):
        idx_data(folder)


@pytest.mark.parametrize("shape", [(0, 6, 5), (60, 0, 5)])
def test_no_images(folder: Path, shape: tuple[int, ...]) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.ones(shape), IMAGES))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.ones(shape[0]), LABELS))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: holds no image"):
        idx_data(folder)


def test_labels_beyond_the_classes(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(120) % 12, LABELS))
    with pytest.raises(DataError, match=r"labels go up to 11.*10 class names"):
        idx_data(folder)


def test_reading_gives_the_bytes(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx(values, IMAGES))
    assert np.array_equal(read_idx(tmp_path / "a", IMAGES), values)
