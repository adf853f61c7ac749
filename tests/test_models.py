"""Models by name, and checkpoints: the same weights come back, and nothing else is ever loaded."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from agrekd_ray.errors import AgrekdError, CheckpointError
from agrekd_ray.models import (
    BUILDERS,
    Classifier,
    Manifest,
    Model,
    build,
    check,
    check_classes,
    check_name,
    load,
    read_manifest,
    save,
)
from agrekd_ray.models.checkpoint import MANIFEST, WEIGHTS

SHAPE, CLASSES = (3, 32, 32), ("cat", "dog", "bird")
SMALL = Model(name="cnn", args={"width": 2})
ARGS = {"delayed": {"milliseconds": 1}}
ALL = [
    *(Model(name=name, args=ARGS.get(name, {"width": 4})) for name in BUILDERS),
    Model(name="torchvision/resnet18", small_stem=True),
    Model(name="torchvision/mobilenet_v3_small"),
    Model(name="torchvision/shufflenet_v2_x0_5", small_stem=True),
]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.parameters()]).detach()


@pytest.mark.parametrize("height", [2, 3, 4, 9])
@pytest.mark.parametrize("width", [2, 5, 8])
def test_small_cnns_pool_by_a_kernel_that_repeats_itself(height: int, width: int) -> None:
    """To 2 x 2 and to the bit as `nn.AdaptiveMaxPool2d`, whose gradients on a GPU do not."""
    backbone = build(SMALL, (3, 2 * height, 2 * width), 2, 0).backbone
    assert not any(isinstance(layer, nn.AdaptiveMaxPool2d) for layer in backbone)
    pool = backbone[-2]
    maps = torch.randn(3, 4, height, width).relu()
    ours, theirs = (maps.clone().requires_grad_() for _ in range(2))
    pooled, expected = pool(ours), nn.AdaptiveMaxPool2d(2)(theirs)
    assert torch.equal(pooled, expected)
    towards = torch.randn_like(pooled)
    pooled.backward(towards)
    expected.backward(towards)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert torch.equal(pool(maps[:, :, :1, :1]), maps[:, :, :1, :1].expand(3, 4, 2, 2))


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_every_model_keeps_the_contract(model: Model) -> None:
    state = torch.get_rng_state()
    built = build(model, SHAPE, 7, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(2, *SHAPE)
    with torch.inference_mode():
        built.eval()
        features, logits = built.backbone(images), built(images)
        assert logits.shape == (2, 7)
        assert features.shape == (2, built.head.in_features)
        assert torch.equal(built.head(features), logits)
    assert isinstance(built.head, nn.Linear)
    names = {name.partition(".")[0] for name in built.state_dict()}
    assert names == {"backbone", "head"}
    again, other = build(model, SHAPE, 7, seed=3), build(model, SHAPE, 7, seed=4)
    assert torch.equal(weights(again), weights(built))
    assert not torch.equal(weights(other), weights(built))
    check(model, SHAPE, 7)


@pytest.mark.parametrize("name", ["vit_b_16", "densenet121", "regnet_y_400mf", "swin_t"])
def test_other_families_of_torchvision_fit(name: str) -> None:
    """Their shapes, where that takes no weights; 32 x 32 needs `image_size` for a transformer."""
    args = {"image_size": 32} if name.startswith("vit") else {}
    check(Model(name=f"torchvision/{name}", args=args), SHAPE, 7)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        ({"name": "cnn_dep"}, SHAPE, "did you mean cnn_deep?"),
        ({"name": "resnet50"}, SHAPE, "did you mean torchvision/resnet50?"),
        ({"name": "torchvision/resnet51"}, SHAPE, "did you mean torchvision/resnet"),
        ({"name": ""}, SHAPE, "unknown architecture ''"),
        ({"name": "torchvision/fcn_resnet50"}, SHAPE, "not a classification architecture"),
        ({"name": "torchvision/squeezenet1_0"}, SHAPE, "does not end in a linear layer"),
        ({"name": "torchvision/vgg11", "small_stem": True}, (3, 8, 8), "images of 3 x 8 x 8"),
        ({"name": "torchvision/vit_b_16", "args": {"image_size": 32}}, (3, 40, 40), "3 x 40 x 40"),
        (
            {"name": "torchvision/vit_b_16", "args": {"image_size": 32}, "small_stem": True},
            SHAPE,
            "no convolutional stem",
        ),
        ({"name": "torchvision/resnet18", "args": {"widht": 3}}, SHAPE, "widht"),
        ({"name": "torchvision/resnet18", "args": {"norm_layer": "x"}}, SHAPE, "resnet18"),
        ({"name": "torchvision/resnet18", "args": {"weights": "DEFAULT"}}, SHAPE, "weights"),
        ({"name": "torchvision/googlenet", "args": {"aux_logits": True}}, SHAPE, "aux_logits"),
        ({"name": "cnn", "args": {"depth": 3}}, SHAPE, "takes no argument 'depth'"),
        ({"name": "cnn", "args": {"classes": 3}}, SHAPE, "takes no argument 'classes'"),
        ({"name": "cnn", "args": {"width": "8"}}, SHAPE, "not '8'"),
        ({"name": "cnn", "args": {"width": True}}, SHAPE, "not True"),
        ({"name": "cnn", "args": {"width": -1}}, SHAPE, "not -1"),
        ({"name": "cnn", "args": {"width": 2**30}}, SHAPE, "cnn"),
        ({"name": "cnn", "small_stem": True}, SHAPE, "small_stem is for torchvision"),
        ({"name": "cnn"}, (3, 1, 1), "cannot take images of 3 x 1 x 1"),
        ({"name": "torchvision/resnet18"}, (1, 32, 32), "cannot take images of 1 x 32 x 32"),
    ],
    ids=str,
)
def test_what_cannot_be_built_says_why(
    model: dict[str, Any], shape: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(AgrekdError) as caught:
        check(Model.model_validate(model), shape, 7)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "shufflenet_v2_x0_5", "googlenet"])
def test_a_small_stem_keeps_the_size_of_small_images(name: str) -> None:
    def first_sizes(model: Model) -> list[int]:
        with torch.device("meta"):
            built = build(model, SHAPE, 7)
        sizes: list[int] = []
        for module in built.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
        with torch.inference_mode():
            built.eval()(torch.empty(1, *SHAPE, device="meta"))
        return sizes[:2]

    path = f"torchvision/{name}"
    assert first_sizes(Model(name=path, small_stem=True)) in ([32, 32], [32, 16])
    assert first_sizes(Model(name=path))[0] == 16
    if name != "shufflenet_v2_x0_5":  # its second convolution has stride 2
        assert first_sizes(Model(name=path, small_stem=True)) == [32, 32]


# --- checkpoints ---


def manifest_of(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "model": SMALL,
        "shape": SHAPE,
        "classes": CLASSES,
        "fingerprint": "f" * 64,
        "data": "d" * 64,
        "metrics": {"test": {"accuracy": 0.5, "groups": {"a": 1.0}}},
        "made_by": {"kind": "erm", "seed": 3},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def model() -> Classifier:
    return build(SMALL, SHAPE, len(CLASSES), seed=1).eval()


@pytest.fixture
def folder(tmp_path: Path, model: Classifier) -> Path:
    """A finished checkpoint."""
    save(tmp_path / "checkpoint", model, manifest_of())
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("kind", ALL, ids=lambda model: model.name)
def test_what_is_saved_comes_back(tmp_path: Path, kind: Model) -> None:
    model = build(kind, SHAPE, len(CLASSES), seed=1)
    images = torch.rand(4, *SHAPE)
    model.train()(images)  # running statistics of batch norm are part of a model
    model.eval()
    written = save(tmp_path / "a" / "b", model, manifest_of(model=kind))
    back, manifest = load(tmp_path / "a" / "b")
    assert manifest == written == read_manifest(tmp_path / "a" / "b")
    assert manifest == manifest_of(model=kind, weights=manifest.weights, backbone=manifest.backbone)
    assert not back.training
    with torch.inference_mode():
        assert torch.equal(back(images), model(images))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [MANIFEST, WEIGHTS]


def test_loading_leaves_the_random_state(folder: Path) -> None:
    state = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_models_that_differ_in_the_head_share_a_backbone(tmp_path: Path, model: Classifier) -> None:
    first = save(tmp_path / "1", model, manifest_of())
    with torch.no_grad():
        model.head.weight += 1
    second = save(tmp_path / "2", model, manifest_of())
    with torch.no_grad():
        next(model.backbone.parameters())[0, 0, 0, 0] += 1e-6
    third = save(tmp_path / "3", model, manifest_of())
    assert first.backbone == second.backbone != third.backbone
    assert len({first.weights, second.weights, third.weights}) == 3


def test_a_finished_checkpoint_is_kept(folder: Path, model: Classifier) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        model.head.weight += 1
    written = save(folder, model, manifest_of(data="other"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert written == read_manifest(folder)
    assert written.data == "d" * 64
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_empty_folder_is_filled(tmp_path: Path, model: Classifier) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", model, manifest_of())
    load(tmp_path / "empty")


def test_where_nothing_can_be_written(tmp_path: Path, model: Classifier) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("mine")
    for place in ("file", "file/below", "full"):
        with pytest.raises(CheckpointError, match="cannot write the checkpoint") as caught:
            save(tmp_path / place, model, manifest_of())
        assert str(tmp_path / place) in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


class _Payload:
    """Unpickling it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.proof,)


def _as_file(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    (tmp_path / "teacher.pt").write_bytes(pickled)
    return tmp_path / "teacher.pt"


def _as_torch(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    torch.save({"x": _Payload(tmp_path / "proof")}, tmp_path / "teacher.ckpt")
    return tmp_path / "teacher.ckpt"


def _as_file_without_suffix(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    (tmp_path / "teacher").write_bytes(pickled)
    return tmp_path / "teacher"


def _as_folder(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    return folder.rename(tmp_path / "x.pt")


def _as_weights(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    (folder / WEIGHTS).write_bytes(pickled)
    return folder


def _as_weights_with_digest(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    import hashlib

    (folder / WEIGHTS).write_bytes(pickled)
    _change(folder, weights=hashlib.sha256(pickled).hexdigest())
    return folder


def _as_manifest(tmp_path: Path, folder: Path, pickled: bytes) -> Path:
    (folder / MANIFEST).write_bytes(pickled)
    return folder


@pytest.mark.parametrize(
    "put",
    [
        _as_file,
        _as_torch,
        _as_file_without_suffix,
        _as_folder,
        _as_weights,
        _as_weights_with_digest,
        _as_manifest,
    ],
)
def test_nothing_is_unpickled(
    tmp_path: Path, folder: Path, put: Callable[[Path, Path, bytes], Path]
) -> None:
    pickled = pickle.dumps(_Payload(tmp_path / "proof"))
    place = put(tmp_path, folder, pickled)
    with pytest.raises(CheckpointError):
        load(place)
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickled)  # and the payload would have run
    assert (tmp_path / "proof").exists()


def _change(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    del values["sha256"]  # as if it had been made by hand
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))


def _without(folder: Path, key: str) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    del values["sha256"], values[key]
    (folder / MANIFEST).write_text(json.dumps(values))


def _exchange(folder: Path) -> None:
    other = folder.with_name("other")
    save(other, build(SMALL, SHAPE, len(CLASSES), seed=2), manifest_of())
    (other / WEIGHTS).replace(folder / WEIGHTS)


def _misfit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Weights of another shape, with the right digest."""
    import hashlib

    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    _change(folder, weights=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        "damaged, exchanged or cut",
    ),
    "weights empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "damaged, exchanged or cut"),
    "weights exchanged": (_exchange, "damaged, exchanged or cut"),
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), "model.safetensors: missing"),
    "weights a folder": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "model.safetensors: missing",
    ),
    "a tensor too few": (lambda f: _misfit(f, lambda s: s.pop("head.bias")), "do not fit cnn"),
    "a tensor too many": (
        lambda f: _misfit(f, lambda s: s.update(x=torch.ones(1))),
        "do not fit cnn",
    ),
    "a tensor of another shape": (
        lambda f: _misfit(f, lambda s: s.update({"head.bias": torch.ones(4)})),
        "do not fit cnn",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "no checkpoint there"),
    "manifest a folder": (
        lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir()),
        "cannot be read",
    ),
    "manifest no JSON": (lambda f: (f / MANIFEST).write_text("{"), "damaged manifest"),
    "manifest empty": (lambda f: (f / MANIFEST).write_text(""), "damaged manifest"),
    "manifest a list": (lambda f: (f / MANIFEST).write_text("[]"), "no JSON object"),
    "manifest binary": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), "damaged manifest"),
    "manifest deep": (
        lambda f: (f / MANIFEST).write_text("[" * 100_000),
        "damaged manifest",
    ),
    "format newer": (lambda f: _change(f, format=2), "its format is 2, this version reads 1"),
    "format missing": (lambda f: _without(f, "format"), "its format is None"),
    "key too many": (lambda f: _change(f, extra=1), "damaged manifest"),
    "model unknown": (lambda f: _change(f, model={"name": "cnm"}), "did you mean cnn?"),
    "model a list": (lambda f: _change(f, model=[]), "damaged manifest"),
    "model not built so": (
        lambda f: _change(f, model={"name": "cnn", "args": {"x": 1}}),
        "takes no argument",
    ),
    "shape short": (lambda f: _change(f, shape=[3, 32]), "damaged manifest"),
    "shape text": (lambda f: _change(f, shape="abc"), "damaged manifest"),
    "shape negative": (lambda f: _change(f, shape=[-3, 8, 8]), "damaged manifest"),
    "shape null": (lambda f: _change(f, shape=None), "damaged manifest"),
    "classes a number": (lambda f: _change(f, classes=3), "damaged manifest"),
    "classes a text": (lambda f: _change(f, classes="abc"), "damaged manifest"),
    "classes empty": (lambda f: _change(f, classes=[]), "damaged manifest"),
    "weights a number": (lambda f: _change(f, weights=3), "damaged manifest"),
    "fingerprint null": (lambda f: _change(f, fingerprint=None), "damaged manifest"),
    "metrics a list": (lambda f: _change(f, metrics=[1]), "damaged manifest"),
    "made_by a text": (lambda f: _change(f, made_by="me"), "damaged manifest"),
    **{
        f"without {key}": ((lambda f, key=key: _without(f, key)), "damaged manifest")
        for key in (
            "model",
            "metrics",
            "shape",
            "classes",
            "fingerprint",
            "data",
            "weights",
            "backbone",
        )
    },
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_refused(folder: Path, how: str) -> None:
    damage, words = DAMAGES[how]
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert words in str(caught.value)


def test_there_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("nowhere", "empty", "x" * 300):
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / place)
        assert str(tmp_path / place) in str(caught.value)


def test_classes_must_be_the_same_in_the_same_order(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_classes(folder, manifest, CLASSES)
    for other in (("cat", "dog"), ("dog", "cat", "bird"), (*CLASSES, "fish")):
        with pytest.raises(CheckpointError) as caught:
            check_classes(folder, manifest, other)
        assert "3 classes cat, dog, bird" in str(caught.value)
        assert f"have {len(other)}: {', '.join(other)}" in str(caught.value)


@pytest.mark.parametrize("name", ["cnn_dep", "delaye", "delay", ""])
def test_an_unknown_architecture_is_told_those_that_one_would_choose(name: str) -> None:
    with pytest.raises(AgrekdError, match=r"Known: cnn, cnn_deep; torchvision/NAME") as caught:
        check_name(Model(name=name))
    assert "delayed" not in str(caught.value)
