"""Architectures of torchvision, timm and transformers: one contract, own weights, own images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from agrekd_ray.errors import AgrekdError, CheckpointError, DataError
from agrekd_ray.models import (
    Classifier,
    Manifest,
    Model,
    build,
    check,
    identified,
    load,
    save,
)
from agrekd_ray.models.weights import read_contents

IMAGES, TEXT = (3, 16, 16), (12,)
BERT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
ALL = [
    (Model(name="torchvision/resnet18", small_stem=True), IMAGES),
    (Model(name="timm/resnet10t"), (3, 32, 32)),
    (Model(name="timm/mobilenetv3_small_050"), (1, 32, 32)),
    (
        Model(
            name="timm/vit_tiny_patch16_224",
            args={"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
        ),
        IMAGES,
    ),
    (Model(name="transformers/bert", args=BERT), TEXT),
    (
        Model(
            name="transformers/distilbert",
            args={"vocab_size": 100, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
        ),
        TEXT,
    ),
    (Model(name="transformers/roberta", args=BERT), TEXT),
    (
        Model(  # reads texts of any length
            name="transformers/xlnet",
            args={"vocab_size": 100, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32},
        ),
        (30,),
    ),
    (Model(name="transformers/vit", args=VIT), IMAGES),
    (
        Model(
            name="transformers/convnextv2",
            args={"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 2},
        ),
        IMAGES,
    ),
    (Model(name="cnn", args={"width": 4}, preprocess="imagenet"), IMAGES),
]


def inputs_of(shape: tuple[int, ...], rows: int = 3) -> torch.Tensor:
    if len(shape) == 1:
        return torch.randint(2, 100, (rows, *shape))
    return torch.rand(rows, *shape)


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.parameters()]).detach()


def manifest_of(model: Model, shape: tuple[int, ...], classes: int = 3) -> Manifest:
    return Manifest(model, shape, tuple(map(str, range(classes))), "f", "d")


@pytest.mark.parametrize(("model", "shape"), ALL, ids=lambda value: str(value)[:34])
def test_every_family_keeps_the_contract(
    model: Model, shape: tuple[int, ...], tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    check(model, shape, 3)
    built = build(model, shape, 3, seed=3).eval()
    assert torch.equal(torch.get_rng_state(), state)
    inputs = inputs_of(shape)
    with torch.inference_mode():
        features, logits = built.backbone(inputs), built(inputs)
        assert torch.allclose(built.head(features), logits)
    assert features.shape == (3, built.head.in_features)
    assert logits.shape == (3, 3)
    assert torch.equal(parameters(build(model, shape, 3, seed=3)), parameters(built))
    assert not torch.equal(parameters(build(model, shape, 3, seed=4)), parameters(built))
    save(tmp_path / "saved", built, manifest_of(model, shape))
    back, manifest = load(tmp_path / "saved")
    assert manifest.shape == shape
    with torch.inference_mode():
        assert torch.equal(back(inputs), logits)


def test_what_has_no_weights_or_preprocessing_keeps_its_old_description() -> None:
    """Teachers made before a model had either are found again."""
    assert Model(name="cnn").model_dump() == {"name": "cnn", "args": {}, "small_stem": False}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_text_model_does_not_see_padding(name: str) -> None:
    model = Model(name=f"transformers/{name}", args={**BERT, "pad_token_id": 5})
    built = build(model, TEXT, 2, seed=0).eval()
    ids = torch.randint(6, 100, (2, 12))
    ids[:, 7:] = 5
    with torch.inference_mode():
        padded, short = built(ids), built(ids[:, :7])
    assert torch.allclose(padded, short, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        ({"name": "timm/resnet51"}, IMAGES, "did you mean timm/resnet"),
        ({"name": "timm/resnet10t", "args": {"num_classes": 3}}, IMAGES, "num_classes"),
        ({"name": "timm/resnet10t", "args": {"widht": 3}}, IMAGES, "widht"),
        ({"name": "timm/resnet10t", "small_stem": True}, IMAGES, "small_stem is for torchvision"),
        ({"name": "timm/resnet10t"}, TEXT, "takes images, the data are sequences of 12 tokens"),
        ({"name": "timm/deit_tiny_distilled_patch16_224"}, IMAGES, "2 heads"),
        ({"name": "timm/resnet10t", "weights": "IMAGENET1K_V1"}, IMAGES, "weights: pretrained"),
        ({"name": "timm/test_vit4", "weights": "pretrained"}, IMAGES, "no published weights"),
        ({"name": "cnn"}, TEXT, "takes images, the data are sequences of 12 tokens"),
        ({"name": "cnn", "weights": "IMAGENET1K_V1"}, IMAGES, "no published weights"),
        ({"name": "cnn", "weights": "/none.pt"}, IMAGES, "/none.pt: no such file"),
        ({"name": "torchvision/resnet18", "weights": "V9"}, IMAGES, "it has IMAGENET1K_V1"),
        ({"name": "transformers/brt"}, TEXT, "did you mean transformers/bert?"),
        ({"name": "transformers/"}, TEXT, "unknown architecture"),
        ({"name": "transformers//none"}, TEXT, "no folder with a config.json"),
        ({"name": "transformers/bert", "args": {"hiden_size": 3}}, TEXT, "'hiden_size'"),
        ({"name": "transformers/bert", "args": {"hidden_size": "a"}}, TEXT, "hidden_size"),
        ({"name": "transformers/bert", "args": {"num_labels": 3}}, TEXT, "num_labels"),
        ({"name": "transformers/bert", "args": BERT}, (25,), "reads at most 24 tokens"),
        ({"name": "transformers/roberta", "args": BERT}, (23,), "reads at most 22 tokens"),
        ({"name": "transformers/mpnet", "args": BERT}, (23,), "reads at most 22 tokens"),
        ({"name": "transformers/bert", "args": BERT}, IMAGES, "no bert that classifies images"),
        ({"name": "transformers/vit", "args": VIT}, TEXT, "no vit that classifies sequences"),
        ({"name": "transformers/vit", "args": VIT}, (3, 8, 8), "cannot take images of 3 x 8 x 8"),
        ({"name": "transformers/gpt2"}, TEXT, "no pad_token_id"),
        ({"name": "transformers/bert", "weights": "pretrained"}, TEXT, "has no weights"),
        ({"name": "transformers/bert", "weights": "V1"}, TEXT, "weights: pretrained"),
        ({"name": "transformers/a/b"}, TEXT, "neither in the local cache nor to be downloaded"),
        ({"name": "cnn", "preprocess": "imagenet"}, (1, 8, 8), "images of 3 channels"),
        ({"name": "cnn", "preprocess": "imagenet"}, TEXT, "images of 3 channels"),
    ],
    ids=str,
)
def test_what_cannot_be_built_says_why(
    model: dict[str, Any], shape: tuple[int, ...], words: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AgrekdError) as caught:
        check(Model.model_validate(model), shape, 3)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "extra"), [("timm/resnet10t", "timm"), ("transformers/bert", "text")]
)
def test_a_missing_extra_says_what_to_install(name: str, extra: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, name.partition("/")[0], None)
    with pytest.raises(AgrekdError, match=rf"pip install 'agrekd_ray\[{extra}\]'"):
        check(Model(name=name), TEXT if extra == "text" else IMAGES, 3)


@pytest.mark.parametrize("who", ["timm/resnet10t", "transformers/bert", "a tokenizer"])
def test_tries_of_the_hub_stay_off_the_screen(who: str, tmp_path: Path) -> None:
    from huggingface_hub.utils import logging

    from agrekd_ray.data import text

    logger = logging.get_logger("huggingface_hub.utils._http")
    logging.set_verbosity_warning()
    assert logger.isEnabledFor(logging.WARNING)
    if who == "a tokenizer":
        with pytest.raises(DataError, match="cannot be loaded"):
            text._tokenizer(str(tmp_path))
    else:
        check(Model(name=who), IMAGES if "timm" in who else TEXT, 3)
    assert not logger.isEnabledFor(logging.WARNING)


def test_tokens_must_be_those_of_the_model() -> None:
    model = Model(name="transformers/bert", args=BERT)
    check(model, TEXT, 2, tokens=(100, 0))
    with pytest.raises(AgrekdError, match=r"knows 100 tokens .* tokenizer 101"):
        check(model, TEXT, 2, tokens=(101, 0))
    with pytest.raises(AgrekdError, match=r"takes token 0 for padding .* tokenizer token 3"):
        check(model, TEXT, 2, tokens=(100, 3))


# --- preprocessing ---


def test_preprocessing_is_part_of_the_backbone(tmp_path: Path) -> None:
    plain = Model(name="cnn", args={"width": 2})
    block = {"size": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    shown = plain.model_copy(
        update={"preprocess": Model.model_validate({"name": "x", "preprocess": block}).preprocess}
    )
    images = torch.rand(2, *IMAGES)
    inside = build(plain, (3, 8, 8), 3, seed=1)
    built = build(shown, IMAGES, 3, seed=1)
    small = torch.nn.functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(block[key])[:, None, None] for key in ("mean", "std"))
    expected = inside((small - mean) / std)
    assert torch.allclose(built(images), expected, atol=1e-6)
    digests = {
        save(tmp_path / str(n), build(m, IMAGES, 3, seed=1), manifest_of(m, IMAGES)).backbone
        for n, m in enumerate([plain, shown])
    }
    assert len(digests) == 2  # never hosted on one backbone
    assert load(tmp_path / "1")[0](images).allclose(expected, atol=1e-6)


def test_imagenet_is_what_its_networks_were_trained_on() -> None:
    built = build(Model(name="cnn", preprocess="imagenet"), IMAGES, 3, seed=0)
    sizes: list[tuple[int, ...]] = []
    built.backbone.network.register_forward_pre_hook(lambda _m, given: sizes.append(given[0].shape))
    built(torch.zeros(1, *IMAGES))
    assert sizes == [(1, 3, 224, 224)]


@pytest.mark.parametrize(
    "preprocess",
    [
        "imagnet",
        {"size": 0, "mean": [0.0], "std": [1.0]},
        {"mean": [0.0], "std": [0.0]},
        {"mean": [0.0, 0.0], "std": [1.0]},
        {},
    ],
)
def test_preprocessing_that_makes_no_sense(preprocess: Any) -> None:
    with pytest.raises(ValidationError):
        Model(name="cnn", preprocess=preprocess)


# --- weights ---

RESNET = Model(name="torchvision/resnet18", small_stem=True)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The resnet18 of torchvision for ten classes."""
    from torchvision.models import resnet18

    torch.manual_seed(5)
    return resnet18(num_classes=10)


def with_weights(path: Path) -> Model:
    return Model(name="torchvision/resnet18", weights=str(path))


def _plain(state: dict[str, Any]) -> Any:
    return state


def _wrapped(state: dict[str, Any]) -> Any:
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


def _lightning(state: dict[str, Any]) -> Any:
    return {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3}


@pytest.mark.parametrize("shape_of", [_plain, _wrapped, _lightning])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_from_a_file(
    network: nn.Module, tmp_path: Path, shape_of: Callable[..., Any], ending: str
) -> None:
    path = tmp_path / f"weights.{ending}"
    content = shape_of(network.state_dict())
    if ending == "pt":
        torch.save(content, path)
    else:
        save_file(content.get("state_dict", content), path)
    images = torch.rand(2, 3, 32, 32)
    same = build(with_weights(path), (3, 32, 32), 10, seed=1).eval()
    network.eval()
    assert torch.equal(same(images), network(images))
    other = build(with_weights(path), (3, 32, 32), 4, seed=1).eval()
    fresh = build(Model(name="torchvision/resnet18"), (3, 32, 32), 4, seed=1)
    assert torch.equal(other.backbone(images), same.backbone(images))
    assert torch.equal(other.head.weight, fresh.head.weight)
    check(with_weights(path), (3, 32, 32), 4)


def test_the_seed_alone_decides_on_a_fresh_head(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pt")
    one, two, again = (
        build(with_weights(tmp_path / "w.pt"), IMAGES, 4, seed=seed) for seed in (1, 2, 1)
    )
    assert torch.equal(parameters(one.backbone), parameters(two.backbone))
    assert not torch.equal(one.head.weight, two.head.weight)
    assert torch.equal(one.head.weight, again.head.weight)


class _Payload:
    def __reduce__(self) -> Any:
        return print, ("run",)


def _missing(state: dict[str, Any]) -> Any:
    return {name: value for name, value in state.items() if "layer3" not in name}


def _unknown(state: dict[str, Any]) -> Any:
    return {**state, "layer9.weight": torch.ones(1)}


def _shaped(state: dict[str, Any]) -> Any:
    return {**state, "conv1.weight": torch.ones(64, 3, 3, 3)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_missing, "without layer3"),
        (_unknown, "unknown: layer9.weight"),
        (_shaped, "conv1.weight [64, 3, 3, 3] instead of [64, 3, 7, 7]"),
        (lambda state: {"model": _Payload()}, "that can run code"),
        (lambda state: {"model": 3}, "holds no state dict"),
        (lambda state: [1, 2], "holds no state dict"),
        (lambda state: {}, "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit(
    network: nn.Module, tmp_path: Path, content: Callable[..., Any], words: str, capsys: Any
) -> None:
    torch.save(content(network.state_dict()), tmp_path / "w.pt")
    for attempt in (check, build):
        with pytest.raises(AgrekdError) as caught:
            attempt(with_weights(tmp_path / "w.pt"), (3, 32, 32), 10, *[0] * (attempt is build))
        assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert "run" not in capsys.readouterr().out.split()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.bias": torch.ones(3).to_sparse()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: fc\.bias is a sparse tensor"):
        read_contents(tmp_path / "w.pt")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_damaged_weights(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"w.{ending}"
    for content in (b"", b"abc" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            build(with_weights(path), IMAGES, 10, seed=0)


def test_a_model_is_identified_by_its_weights_content(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        save_file(state, tmp_path / place / "w.safetensors")
    one, two = (identified(with_weights(tmp_path / p / "w.safetensors")) for p in ("a", "b"))
    assert one == two
    assert one.weights is not None
    assert one.weights.startswith("sha256:")
    state = {**state, "fc.bias": state["fc.bias"] + 1}
    save_file(state, tmp_path / "b" / "w.safetensors")
    assert identified(with_weights(tmp_path / "b" / "w.safetensors")) != one
    plain = Model(name="torchvision/resnet18")
    assert identified(plain) == plain


def test_published_weights_are_named_in_full_and_say_where_to_put_them(
    network: nn.Module, monkeypatch: Any, tmp_path: Path
) -> None:
    default = Model(name="torchvision/resnet18", weights="DEFAULT")
    assert identified(default).weights == "IMAGENET1K_V1"
    tagged = identified(Model(name="timm/resnet50", weights="pretrained"))
    assert tagged.name == "timm/resnet50.a1_in1k"
    check(default, (3, 64, 64), 4)  # no file is looked for until training begins
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(AgrekdError, match="no route to host") as caught:
        build(default, (3, 64, 64), 4, seed=0)
    place = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    assert str(place) in str(caught.value)
    place.parent.mkdir(exist_ok=True)
    from torchvision.models import resnet18

    thousand = resnet18()
    torch.save(thousand.state_dict(), place)
    built = build(default, (3, 64, 64), 4, seed=0).eval()
    thousand.fc = nn.Identity()  # type: ignore[assignment]
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(built.backbone(images), thousand.eval()(images))


# --- folders of transformers ---


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with a tiny BERT's configuration."""
    from transformers import BertConfig

    BertConfig(**BERT).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_folder_with_a_configuration_builds_fresh(bert: Path, tmp_path: Path) -> None:
    model = Model(name=f"transformers/{bert}")
    named = Model(name="transformers/bert", args=BERT)
    built = build(model, TEXT, 3, seed=2)
    assert torch.equal(parameters(built), parameters(build(named, TEXT, 3, seed=2)))
    inputs = inputs_of(TEXT)
    save(tmp_path / "saved", built, manifest_of(model, TEXT))
    (bert / "config.json").unlink()
    back, manifest = load(tmp_path / "saved")  # a checkpoint needs no other file
    assert manifest.model.name == "transformers/bert"
    assert torch.equal(back(inputs), built.eval()(inputs))


def test_a_folder_is_identified_by_its_content(bert: Path) -> None:
    import json

    model = Model(name=f"transformers/{bert}")
    before = identified(model)
    assert str(bert) not in before.model_dump_json()
    values = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**values, "intermediate_size": 48}))
    assert identified(model) != before
    assert identified(model.model_copy(update={"args": {"intermediate_size": 32}})) == before


def test_a_folder_with_weights(bert: Path) -> None:
    from transformers import BertConfig, BertModel

    model = Model(name=f"transformers/{bert}", weights="pretrained")
    with pytest.raises(AgrekdError, match="no weights there"):
        check(model, TEXT, 3)
    torch.manual_seed(9)
    published = BertModel(BertConfig(**BERT))
    published.save_pretrained(bert)
    check(model, TEXT, 3)
    one, two = (build(model, TEXT, 3, seed=seed) for seed in (1, 2))
    assert torch.equal(one.head.weight, build(model, TEXT, 3, seed=1).head.weight)
    assert not torch.equal(one.head.weight, two.head.weight)
    kept = one.backbone.network.bert.embeddings.word_embeddings.weight
    assert torch.equal(kept, published.embeddings.word_embeddings.weight)
    first = identified(model)
    BertModel(BertConfig(**BERT)).save_pretrained(bert)
    assert identified(model) != first
    deeper = model.model_copy(update={"args": {"num_hidden_layers": 3}})
    with pytest.raises(AgrekdError, match="weights of another architecture"):
        build(deeper, TEXT, 3, seed=0)


def test_relative_folders_become_absolute(bert: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(bert.parent)
    for name in ("transformers/bert/", "transformers/./bert", f"transformers/{bert}"):
        assert Model(name=name).name == f"transformers/{bert}"
    assert Model(name="transformers/./none").name == f"transformers/{bert.parent / 'none'}"
    assert Model(name="cnn", weights="w.pt").weights == str(bert.parent / "w.pt")


def test_heads_without_a_bias_get_one_from_dfr(tmp_path: Path) -> None:
    """As `retrain_head` leaves a model whose architecture has no bias in its head."""
    args = {"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    args |= {"bos_token_id": 1, "eos_token_id": 1}
    model = Model(name="transformers/gpt2", args=args)
    built = build(model, TEXT, 3, seed=0)
    assert built.head.bias is None
    debiased = Classifier(built.backbone, nn.Linear(built.head.in_features, 3)).eval()
    save(tmp_path / "saved", debiased, manifest_of(model, TEXT))
    inputs = inputs_of(TEXT)
    assert torch.equal(load(tmp_path / "saved")[0](inputs), debiased(inputs))
