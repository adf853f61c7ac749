"""Weights of other makers, however their checkpoints wrap them; and files that hold none."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from agrekd_ray.errors import AgrekdError, CheckpointError
from agrekd_ray.models import Model, build, check, identified
from agrekd_ray.models.weights import Contents, Fitted, fit, read_contents

State = dict[str, Any]


def network(seed: int, classes: int = 2) -> nn.Module:
    """Names that are each other's endings: `0.weight` within `body.0.weight`."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    net = nn.Module()
    net.body, net.weight = body, nn.Parameter(torch.rand(3))
    net.fc = nn.Linear(8, classes)
    return net


def read(tmp_path: Path, content: Any, **how: Any) -> tuple[nn.Module, Fitted]:
    torch.save(content, tmp_path / "w.pt")
    net = network(99)
    how = {"fresh_head": False, **how}
    return net, fit(net, read_contents(tmp_path / "w.pt"), "fc", "w.pt", **how)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def nested(state: State) -> State:
    """Mappings within mappings instead of names with dots."""
    tree: State = {}
    for name, value in state.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def _momentum(state: State) -> State:
    return {n: torch.zeros_like(v) for n, v in state.items() if v.is_floating_point()}


WRAPPED: dict[str, tuple[Callable[[State], Any], str, list[str]]] = {
    "itself": (lambda s: s, ".", []),
    "a name beside": (lambda s: {"model": "resnet", "net": s, "acc": 91.2}, "net", []),
    "a tensor beside": (lambda s: {"best": torch.tensor(0.9), "params": s}, "params", []),
    "class weights": (
        lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(2)}},
        "state_dict/model",
        ["state_dict/criterion.weight"],
    ),
    "class weights without a prefix": (
        lambda s: {**s, "loss_fn.weight": torch.ones(2)},
        ".",
        ["loss_fn.weight"],
    ),
    "wilds": (lambda s: {"algorithm": prefixed(s, "model."), "epoch": 3}, "algorithm/model", []),
    "domainbed": (
        lambda s: {"args": {"lr": 1}, "model_dict": prefixed(s, "network.module.")},
        "model_dict/network.module",
        [],
    ),
    "swa": (
        lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(3)},
        "module",
        ["n_averaged"],
    ),
    "compiled": (lambda s: prefixed(s, "module._orig_mod."), "module", []),
    "compiled inside": (
        lambda s: {n.replace("body.", "body._orig_mod."): v for n, v in s.items()},
        ".",
        [],
    ),
    "fsdp": (lambda s: {"module": prefixed(s, "_fsdp_wrapped_module.")}, "module", []),
    "mappings": (lambda s: {"params": nested(s)}, "params", []),
    "a list": (lambda s: {"epoch": 1, "states": [None, s]}, "states/1", []),
    "deep": (lambda s: {"a": {"b": {"c": prefixed(s, "d.e.")}}}, "a/b/c/d.e", []),
    "counted operations": (
        lambda s: {**s, "body.0.total_ops": torch.ones(1)},
        ".",
        ["body.0.total_ops"],
    ),
    "an optimizer by name": (
        lambda s: {"optimizer": {"exp_avg": _momentum(s)}, "net": s},
        "net",
        [],
    ),
    "the same twice": (lambda s: {"model": s, "last": {n: v.clone() for n, v in s.items()}},
                       "model", []),
    "held twice": (lambda s: {"model": s, "again": s}, "model", []),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_checkpoint_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    wrap, place, left_out = WRAPPED[name]
    whole = network(1)
    net, fitted = read(tmp_path, wrap(whole.state_dict()))
    assert same(net, whole)
    assert (fitted.place, list(fitted.left_out), fitted.others) == (place, left_out, ())
    assert fitted.normalisation is None


def random_wrapping(rng: Random, state: State) -> Any:
    """A checkpoint as somebody's script might have written it."""
    prefixes = ["", "model.", "net.", "module.", "_orig_mod.", "backbone.", "student.0."]
    content: Any = prefixed(state, "".join(rng.sample(prefixes, rng.randint(0, 3))))
    if rng.random() < 0.4:
        content["criterion.weight"] = torch.ones(2)
    companions: State = {
        "epoch": 3,
        "arch": "resnet",
        "best_acc": torch.tensor(0.9),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"last_epoch": 3},
        "history": [0.3, 0.2],
        "model": "a name",
        "rng": torch.ones(5, dtype=torch.uint8),
        "classes": ["a", "b", "c"],
    }
    for _ in range(rng.randint(0, 3)):
        if rng.random() < 0.2:
            content = [None, content]
            continue
        key = rng.choice(["state_dict", "model_dict", "algorithm", "net", "ema", "x y", "0"])
        beside = rng.sample(sorted(companions), rng.randint(0, 4))
        content = {**{name: companions[name] for name in beside}, key: content}
    return content


@pytest.mark.parametrize("seed", range(20))
def test_any_nesting_and_prefix_gives_the_same_weights(seed: int, tmp_path: Path) -> None:
    whole = network(seed)
    net, _ = read(tmp_path, random_wrapping(Random(seed), whole.state_dict()))
    assert same(net, whole)


def test_what_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    state = network(1).state_dict()
    cut = {n: v for n, v in state.items() if "body.0" not in n}
    for content, words in (
        ({"state_dict": prefixed(cut, "model.")}, r"without body\.0\.weight, body\.0\.bias\)"),
        ({"net": {**state, "body.9.weight": torch.ones(1)}}, r"unknown: body\.9\.weight\)"),
        ({"net": {**state, "weight": torch.ones(4)}}, r"weight \[4\] instead of \[3\]"),
        ({"net": {**state, "weight": torch.ones(3).int()}}, r"weight torch\.int32 instead"),
        ({"net": {**state, "fc.weight": torch.ones(5, 8)}}, "a head of 5 classes"),
    ):
        with pytest.raises(AgrekdError, match=words):
            read(tmp_path, content)


# --- several sets of weights


def averaged(one: nn.Module, other: nn.Module) -> dict[str, State]:
    state, mean = one.state_dict(), other.state_dict()
    return {
        "timm": {"state_dict": state, "state_dict_ema": mean},
        "torchvision": {"model": state, "model_ema": prefixed(mean, "module.")},
        "lightning": {"state_dict": {**prefixed(state, "net."), **prefixed(mean, "net_ema.")}},
        "swa": {"module": state, "swa_state": {**prefixed(mean, "module."), "n_averaged": 4}},
    }


@pytest.mark.parametrize("kind", ["timm", "torchvision", "lightning", "swa"])
def test_of_raw_and_averaged_weights_the_choice_is_said_and_made(kind: str, tmp_path: Path) -> None:
    raw, mean = network(1), network(2)
    content = averaged(raw, mean)[kind]
    net, fitted = read(tmp_path, content, averaged=True)
    assert same(net, mean)
    assert len(fitted.others) == 1
    net, _ = read(tmp_path, content, which=fitted.others[0])
    assert same(net, raw)
    net, _ = read(tmp_path, content, which=fitted.place.upper())
    assert same(net, mean)
    with pytest.raises(AgrekdError, match=r"several sets of weights fit, .*--weights"):
        read(tmp_path, content)
    with pytest.raises(AgrekdError, match="no sets of weights are called 'best'; there are"):
        read(tmp_path, content, which="best")


def test_sets_of_which_none_is_an_average_are_never_guessed(tmp_path: Path) -> None:
    state, other = network(1).state_dict(), network(2).state_dict()
    for content in (
        {"student": state, "teacher": other},
        {"model": state, "best_model": other},
        {"models": [state, other]},
        {"a": state, "ema_1": other, "ema_2": network(3).state_dict()},
    ):
        with pytest.raises(AgrekdError, match="several sets of weights fit"):
            read(tmp_path, content, averaged=True)
    net, fitted = read(tmp_path, {"models": [state, other]}, which="models/1")
    assert same(net, network(2))
    assert fitted.left_out == ()


def test_averaged_parameters_without_buffers_are_not_passed_over(tmp_path: Path) -> None:
    state = network(1).state_dict()
    shadow = {name: value.detach() for name, value in network(2).named_parameters()}
    net, fitted = read(tmp_path, {"net": state, "ema": {"decay": 0.9, "shadow": shadow}})
    assert same(net, network(1))
    assert (fitted.place, fitted.others, fitted.partial) == ("net", (), ("ema/shadow",))
    with pytest.raises(AgrekdError, match=r"without body\.1\.running_mean"):
        read(tmp_path, {"net": state, "ema": {"shadow": shadow}}, which="ema")


def test_a_job_names_the_set_in_its_weights(tmp_path: Path) -> None:
    cnn, path = Model(name="cnn", args={"width": 2}), tmp_path / "w.pth.tar"
    one, two = (build(cnn, (3, 8, 8), 2, seed).state_dict() for seed in (1, 2))
    torch.save({"state_dict": one, "state_dict_ema": two}, path)
    with pytest.raises(AgrekdError, match=r"weights: FILE#NAME"):
        check(cnn.model_copy(update={"weights": str(path)}), (3, 8, 8), 2)
    models = [cnn.model_copy(update={"weights": f"{path}#state_dict{end}"}) for end in ("", "_ema")]
    for model, wanted in zip(models, (one, two), strict=True):
        check(model, (3, 8, 8), 2)
        found = build(model, (3, 8, 8), 2, 5).state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    assert identified(models[0]) != identified(models[1])


# --- what stands in front


def test_a_normalisation_in_front_is_found(tmp_path: Path) -> None:
    state = network(1).state_dict()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    for content in (
        {"0.mean": mean, "0.std": std, **prefixed(state, "1.")},
        {"net": {"normalize.mean": mean[:, None, None], "normalize.std": std,
                 **prefixed(state, "model.")}},
        {"module.normalizer.new_mean": mean, "module.normalizer.new_std": std,
         **prefixed(state, "module.model."), **prefixed(state, "module.attacker.model.")},
        {"mu": mean, "sigma": std, **state},
    ):  # fmt: skip
        net, fitted = read(tmp_path, content)
        assert same(net, network(1))
        assert fitted.normalisation is not None
        assert [value.flatten().tolist() for value in fitted.normalisation] == [
            mean.tolist(),
            std.tolist(),
        ]
        assert not fitted.left_out
        assert not fitted.preceded


def test_layers_beside_the_network_are_not_dropped(tmp_path: Path) -> None:
    state = network(1).state_dict()
    assert read(tmp_path, prefixed(state, "1."))[1].preceded
    assert not read(tmp_path, prefixed(state, "0."))[1].preceded
    content = {**prefixed(state, "0."), "1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}
    with pytest.raises(AgrekdError, match=r"1\.weight, 1\.bias stand beside 0 in a sequence"):
        read(tmp_path, content)


def test_a_job_says_what_the_weights_normalise(tmp_path: Path) -> None:
    cnn = Model(name="cnn", args={"width": 2}, weights=str(tmp_path / "w.pt"))
    state = prefixed(
        build(Model(name="cnn", args={"width": 2}), (3, 8, 8), 2, 1).state_dict(), "1."
    )
    for more in ({}, {"0.mean": torch.zeros(3), "0.std": torch.ones(3)}):
        torch.save({**state, **more}, tmp_path / "w.pt")
        with pytest.raises(AgrekdError, match="say it in preprocess"):
            check(cnn, (3, 8, 8), 2)
        check(Model(**{**cnn.model_dump(), "preprocess": "imagenet"}), (3, 8, 8), 2)


# --- files of other kinds


def _scripted(path: Path, net: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), path)


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("model.pt")
        archive.addfile(info)


def _exported(path: Path) -> None:
    net = nn.Linear(3, 2)
    torch.export.save(torch.export.export(net, (torch.rand(2, 3),)), path)


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "scripted.pt": (lambda p: _scripted(p, nn.Linear(3, 2)), "TorchScript .* save its state dict"),
    "traced.pt": (
        lambda p: torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.rand(1, 3)), p),
        "TorchScript .* torch.export.save",
    ),
    "program.pt": (_exported, "an exported program .* --trust"),
    "m.onnx": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"), "an ONNX model"),
    "onnx.bin": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"), "an ONNX model"),
    "m.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 50), "as Keras writes it"),
    "m.keras": (lambda p: _zip(p, "config.json", "model.weights.h5"), "a model of Keras"),
    "saved_model.pb": (lambda p: p.write_bytes(b"\x0a\x01\x02"), "a graph of TensorFlow"),
    "m.tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3"), "TensorFlow Lite"),
    "m.gguf": (lambda p: p.write_bytes(b"GGUF\x03"), "a GGUF file"),
    "model.zip": (lambda p: _zip(p, "folder/model.pt"), "a zip archive"),
    "model.tar": (_tar, "a tar archive"),
    "model.tar.gz": (lambda p: p.write_bytes(gzip.compress(b"x")), "a gzip archive"),
    "w.npz": (lambda p: np.savez(p, a=np.ones(2)), "an archive of NumPy arrays"),
    "w.npy": (lambda p: np.save(p, np.ones(2)), "an array of NumPy"),
    "w.pkl": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "a pickle that torch.save did not"),
    "page.pt": (lambda p: p.write_text("<!DOCTYPE html>"), "a web page"),
    "lfs.pt": (lambda p: p.write_text("version https://git-lfs.github.com/"), "git lfs pull"),
    "config.pt": (lambda p: p.write_text(json.dumps({"a": 1})), "JSON"),
    "empty.pt": (lambda p: p.write_bytes(b""), "empty"),
    "whole.pt": (lambda p: torch.save(nn.Linear(3, 2), p), "a whole pickled model .* Save its"),
    "args.pt": (
        lambda p: torch.save({"model": {"a": torch.ones(1)}, "args": Namespace(lr=1)}, p),
        r"holds more than tensors, .* \(argparse\.Namespace\)",
    ),
    "optimizer.pt": (
        lambda p: torch.save(torch.optim.Adam([nn.Parameter(torch.ones(2))]).state_dict(), p),
        "the state of an optimizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_files_of_other_kinds_say_what_they_are(name: str, tmp_path: Path) -> None:
    make, words = FOREIGN[name]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError, match=words) as caught:
            read_contents(tmp_path / name)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "weights_only" not in text


def test_a_file_is_read_by_what_it_is_not_by_its_name(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    save_file(state, tmp_path / "w.bin", {"classes": '["x", "y"]', "note": "free text"})
    torch.save(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = [read_contents(tmp_path / n) for n in ("w.bin", "w.safetensors", "old.pt")]
    assert all(torch.equal(contents.tensors["a"], state["a"]) for contents in found)
    assert found[0].beside == {"classes": ["x", "y"], "note": "free text"}


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: State = {"net": network(1).state_dict()}
    content["again"] = content
    assert same(read(tmp_path, content)[0], network(1))
    assert (
        fit(network(3), Contents(network(1).state_dict()), "fc", "x", fresh_head=True).place == "."
    )
