"""Crops: parts of the picture of the right size and shape, drawn by seed, view and id alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agrekd_ray.data import TRAIN
from agrekd_ray.data.image_table import ImageTable
from agrekd_ray.data.images import PictureDataset
from agrekd_ray.data.views import Views, draws
from tests import pictures

from .shared import shown_as


def ramp(side: int, count: int) -> Tensor:
    """Pictures whose two channels say where in the picture a point is, from 0 to 1."""
    line = (torch.arange(side) + 0.5) / side
    x, y = line.expand(side, side), line[:, None].expand(side, side)
    return torch.stack([x, y]).expand(count, 2, side, side)


def parts(views: dict[str, Any], side: int = 64, size: int = 32, count: int = 300) -> Tensor:
    """Left, right, top and bottom edge of what each view shows, [B, 4]; and the views."""
    shown = shown_as(ramp(side, count), Views.model_validate(views), size=size)
    assert shown.shape == (count, 2, size, size)
    x, y = shown[:, 0, size // 2], shown[:, 1, :, size // 2]
    half_x, half_y = (x[:, -1] - x[:, 0]) / (size - 1) / 2, (y[:, -1] - y[:, 0]) / (size - 1) / 2
    return torch.stack(
        [x[:, 0] - half_x, x[:, -1] + half_x, y[:, 0] - half_y, y[:, -1] + half_y], 1
    )


def test_crops_have_the_area_and_the_shape_that_are_asked_for() -> None:
    left, right, top, bottom = parts({"crop": {"scale": [0.2, 0.5], "ratio": [0.5, 2]}}).unbind(1)
    width, height = right - left, bottom - top
    area, ratio = width * height, width / height
    assert 0.19 < area.min() < 0.24
    assert 0.46 < area.max() < 0.51
    assert 0.49 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.05
    assert min(left.min(), top.min()) > -0.02
    assert max(right.max(), bottom.max()) < 1.02
    assert left.max() - left.min() > 0.4
    assert top.max() - top.min() > 0.4


def test_a_whole_crop_is_the_picture() -> None:
    edges = parts({"crop": {"scale": [1, 1], "ratio": [1, 1]}})
    torch.testing.assert_close(
        edges, torch.tensor([0.0, 1, 0, 1]).expand_as(edges), atol=0.02, rtol=0
    )


def test_what_would_reach_beyond_the_picture_is_cut() -> None:
    left, right, _, _ = parts({"crop": {"scale": [1, 1], "ratio": [2, 2]}}).unbind(1)
    assert left.min() > -0.02
    assert right.max() < 1.02


def test_without_a_crop_the_middle_is_shown() -> None:
    """Half of the picture, whose pixels are neither enlarged nor reduced."""
    images = ramp(64, 4)
    middle = images[:, :, 16:48, 16:48]
    views = Views(shift=0.001)
    shown = shown_as(images, views, size=32)
    torch.testing.assert_close(shown, middle, atol=1e-4, rtol=0)
    flipped = shown_as(images, Views(flip=True), size=32)
    for one, plain in zip(flipped, middle, strict=True):
        assert min((one - plain).abs().max(), (one - plain.flip(-1)).abs().max()) < 1e-4


def test_a_turned_picture_shows_what_lies_there() -> None:
    """In the middle, so that no corner is cut off: each point of the ramp says where it is."""
    views, count, side = Views(flip=True, rotate=40), 50, 64
    shown = shown_as(ramp(side, count), views)[:, :, 16:48, 16:48]
    (own,) = draws(views, 0, 0, count)
    angle_B = np.radians(40) * (2 * own[:, 0].astype(float) - 1)
    mirror_B = np.where(own[:, 1] < 0.5, -1.0, 1.0)
    line = (2 * np.arange(16, 48) + 1) / side - 1
    x, y = line[None, None] * mirror_B[:, None, None], line[None, :, None]
    cos, sin = np.cos(angle_B)[:, None, None], np.sin(angle_B)[:, None, None]
    there = np.stack([cos * x - sin * y, sin * x + cos * y], 1)
    np.testing.assert_allclose(shown.numpy(), (there + 1) / 2, atol=1e-5)


def test_no_view_multiplies_matrices() -> None:
    """Where training allows it, a GPU's are of ten bits: a tenth of a pixel."""
    called: set[str] = set()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.add(func.name())
            return func(*args, **(kwargs or {}))

    views = Views.model_validate({"flip": True, "rotate": 9, "shift": 2, "crop": {}})
    with Watched():
        shown_as(ramp(16, 4), views, size=8)
    assert "aten::grid_sampler_2d" in called
    assert not called & {"aten::mm", "aten::bmm", "aten::matmul", "aten::affine_grid_generator"}


def test_a_crop_leaves_the_other_draws_as_they_are() -> None:
    """The same samples are mirrored with and without crops."""
    left, right, _, _ = parts({"flip": True, "crop": {"scale": [0.5, 1]}}).unbind(1)
    plain_left, plain_right, _, _ = parts({"flip": True}).unbind(1)
    assert torch.equal(left > right, plain_left > plain_right)
    assert 0.4 < (left > right).float().mean() < 0.6


def test_views_without_crops_look_as_before_there_were_any() -> None:
    look = '7 {"flip":true,"shift":0.0,"rotate":0.0}'
    assert Views(flip=True).fingerprint(7) == hashlib.sha256(look.encode()).hexdigest()
    cropped = Views.model_validate({"flip": True, "crop": {}})
    assert cropped.fingerprint(7) != Views(flip=True).fingerprint(7)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    path = pictures.table(tmp_path / "own") / "table.csv"

    def opened(**settings: Any) -> PictureDataset:
        values = pictures.small("table", tmp_path / "p", table=path, **settings)
        return ImageTable.model_validate(values).open()

    return opened


def test_crops_are_pure_and_change_with_the_view(make: Any) -> None:
    views = {"crop": {"scale": [0.3, 1]}, "flip": True}
    one, other = make(views=views), make(views=views)
    ids = one.splits[TRAIN]
    mixed = np.random.default_rng(1).permutation(len(ids))
    whole = one.inputs(ids, 2)
    assert whole.shape == (len(ids), 3, 8, 8)
    torch.testing.assert_close(other.inputs(ids[mixed], 2), whole[mixed], rtol=0, atol=1e-6)
    assert ((whole - one.inputs(ids, 3)).abs().amax((1, 2, 3)) > 0.01).all()
    assert not torch.equal(whole, make(views=views, seed=1).inputs(ids, 2))
    assert (one.view(2), one.view(3)) == (2, 3)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_evaluation_sees_the_middle_of_what_is_kept(make: Any) -> None:
    """10 pixels are kept, the 8 in their middle are seen, whatever the views."""
    data, whole = make(), make(size=10)
    ids = data.splits[TRAIN]
    middle = whole.inputs(ids, None)[:, :, 1:9, 1:9]
    assert torch.equal(data.inputs(ids, None), middle)
    assert torch.equal(data.inputs(ids, 5), middle)
    augmented = make(views={"crop": {}})
    assert torch.equal(augmented.inputs(ids, None), middle)
    assert data.rows.place == whole.rows.place
    assert data.fingerprint != whole.fingerprint
    assert data.fingerprint == augmented.fingerprint
    assert data.views_fingerprint != augmented.views_fingerprint
