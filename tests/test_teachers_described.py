"""What folders and files say of their models is taken, refused or said: never dropped."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from agrekd_ray.cli import app
from agrekd_ray.data import SELECT, Dataset, open_dataset
from agrekd_ray.data.civilcomments import CivilComments
from agrekd_ray.errors import AgrekdError
from agrekd_ray.models import Classifier, Model, Preprocessing, build, check, load, read_manifest
from agrekd_ray.models.classifier import BUILDERS
from agrekd_ray.models.from_transformers import preprocessing_of
from agrekd_ray.teachers.imported import Imported, Source, import_teacher
from agrekd_ray.training import evaluate
from tests import texts

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
CNN = Model(name="cnn", args={"width": 2})
HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 64 pictures: cats are red, dogs green."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "sky"])
        for number in range(64):
            label = number % 2
            pixels = rng.integers(0, 60, (16, 16, 3)).astype(np.uint8)
            pixels[..., label] += 120
            Image.fromarray(pixels).save(folder / f"{number}.png")
            split = ("train", "train", "val", "test")[number // 4 % 4]
            writer.writerow([f"{number}.png", ("cat", "dog")[label], split, number // 2 % 2])
    return folder


@pytest.fixture
def table(pictures: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "table",
        "table": str(pictures / "table.csv"),
        "columns": {"groups": ["sky"]},
        "size": 16,
        "resize": 16,
        "prepared": str(tmp_path / "prepared"),
    }


@pytest.fixture
def data(table: dict[str, Any], make_job: Any) -> Dataset:
    return open_dataset(make_job(data=table).data)


@pytest.fixture
def images(data: Dataset) -> Tensor:
    return data.inputs(data.splits[SELECT][:4], None)


def taken(source: Path, data: Dataset, place: Path, name: str = "", **how: Any) -> Imported:
    model = Model.model_validate({"name": name, **how.pop("model", {})})
    store = place / f"store-{len(list(place.iterdir()))}"
    return import_teacher(Source(source, model, **how), data, store, "t")


def logits(imported: Imported, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return load(imported.folder)[0](images)


def vit(folder: Path, labels: list[str] | None, **processor: Any) -> nn.Module:
    """A folder with a tiny ViT, its classes, and perhaps an image processor."""
    from transformers import ViTConfig, ViTForImageClassification

    names = dict(enumerate(labels or ["LABEL_0", "LABEL_1"]))
    torch.manual_seed(7)
    config = ViTConfig(**VIT, id2label=names, label2id={name: n for n, name in names.items()})
    network = ViTForImageClassification(config).eval()
    network.save_pretrained(folder)
    if processor:
        kind = {"image_processor_type": "ViTImageProcessor", **processor}
        (folder / "preprocessor_config.json").write_text(json.dumps(kind))
    return network


def answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(pixel_values=images).logits


# --- classes


def test_logits_are_put_into_the_datas_order_by_id2label(
    data: Dataset, images: Tensor, tmp_path: Path
) -> None:
    network = vit(tmp_path / "vit", ["dog", "cat"])
    imported = taken(tmp_path / "vit", data, tmp_path)
    assert torch.allclose(logits(imported, images), answers(network, images).flip(1), atol=1e-5)
    said = "classes: 'dog', 'cat' by id2label in config.json, put into the data's order"
    assert said in imported.notes
    straight = taken(tmp_path / "vit", data, tmp_path, classes=("cat", "dog"))
    assert torch.allclose(logits(straight, images), answers(network, images), atol=1e-5)
    assert any("id2label in config.json says 'dog', 'cat'" in note for note in straight.notes)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["Dog", "CAT"], "'Dog', 'CAT' (id2label in config.json), those of the data 'cat', 'dog'"),
        (["Dog", "CAT"], "--classes dog,cat"),
        (["dog ", "_cat"], "if they are the same, say --classes dog,cat"),
        (["dog\u00a0", "cat"], "say --classes dog,cat"),
        (["ｄｏｇ", "cat"], "say --classes dog,cat"),
        (["tabby", "beagle"], "say with --classes, in the order of its logits"),
        (["cat", "cat"], "label2id names the classes 'cat', 1 in all, the data have 2"),
        (["LABEL_1", "LABEL_0"], "'LABEL_1', 'LABEL_0'"),
    ],
)
def test_classes_that_are_not_the_datas_are_refused(
    data: Dataset, tmp_path: Path, labels: list[str], words: str
) -> None:
    vit(tmp_path / "vit", labels)
    with pytest.raises(AgrekdError) as caught:
        taken(tmp_path / "vit", data, tmp_path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert taken(tmp_path / "vit", data, tmp_path, classes=("dog", "cat")).notes


def test_names_that_say_nothing_are_said_to(data: Dataset, images: Tensor, tmp_path: Path) -> None:
    network = vit(tmp_path / "vit", None)
    imported = taken(tmp_path / "vit", data, tmp_path)
    assert torch.allclose(logits(imported, images), answers(network, images), atol=1e-5)
    assert any("nothing names them" in note for note in imported.notes)


@pytest.mark.parametrize(
    "words",
    [
        {"class_to_idx": {"dog": 0, "cat": 1}},
        {"idx_to_class": {0: "dog", 1: "cat"}},
        {"classes": ["dog", "cat"]},
        {"hyper_parameters": {"class_names": ("dog", "cat")}},
        {"meta": {"CLASSES": ["dog", "cat"]}},
        {"label2id": {"dog": 1, "cat": 2}},
    ],
    ids=str,
)
def test_a_checkpoint_says_its_classes(
    data: Dataset, images: Tensor, tmp_path: Path, words: dict[str, Any]
) -> None:
    network = build(CNN, data.shape, 2, seed=3).eval()
    torch.save({"state_dict": network.state_dict(), **words}, tmp_path / "w.pt")
    imported = taken(tmp_path / "w.pt", data, tmp_path, "cnn", model={"args": CNN.args})
    with torch.inference_mode():
        assert torch.allclose(logits(imported, images), network(images).flip(1), atol=1e-6)
    torch.save({"net": network.state_dict(), **words, "labels": ["cat", "dog"]}, tmp_path / "w.pt")
    with pytest.raises(AgrekdError, match="say which order is right with --classes"):
        taken(tmp_path / "w.pt", data, tmp_path, "cnn", model={"args": CNN.args})
    how = {"model": {"args": CNN.args}, "classes": ("dog", "cat")}
    given = taken(tmp_path / "w.pt", data, tmp_path, "cnn", **how)
    assert torch.equal(logits(given, images), logits(imported, images))


def test_more_names_than_classes_are_refused(data: Dataset, tmp_path: Path) -> None:
    network = build(CNN, data.shape, 2, seed=3)
    names = {"dog": 0, "cat": 1, "bird": 2}
    torch.save({"net": network.state_dict(), "class_to_idx": names}, tmp_path / "w.pt")
    with pytest.raises(AgrekdError, match=r"class_to_idx names the classes .* 3 in all, .*--cl"):
        taken(tmp_path / "w.pt", data, tmp_path, "cnn", model={"args": CNN.args})
    how: dict[str, Any] = {"model": {"args": CNN.args}, "classes": ("cat", "dog")}
    given = taken(tmp_path / "w.pt", data, tmp_path, "cnn", **how)
    assert any("class_to_idx names the classes" in note for note in given.notes)


def test_what_others_wrote_into_a_configuration_does_no_harm(
    data: Dataset, images: Tensor, tmp_path: Path
) -> None:
    network = vit(tmp_path / "vit", ["cat", "dog"])
    path = tmp_path / "vit" / "config.json"
    config = json.loads(path.read_text())
    extra = {"auto_map": {"AutoConfig": "x.Y"}, "gradient_checkpointing": False, "my_note": 3}
    path.write_text(json.dumps({**config, **extra}))
    imported = taken(tmp_path / "vit", data, tmp_path)
    assert torch.allclose(logits(imported, images), answers(network, images), atol=1e-5)
    for change, words in (
        ({"model_type": "no_such"}, "knows no model_type 'no_such'"),
        ({"id2label": "cat"}, "id2label must map"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(AgrekdError, match=words) as caught:
            taken(tmp_path / "vit", data, tmp_path)
        assert len(str(caught.value).splitlines()) == 1


def test_metadata_of_safetensors_says_the_classes(
    data: Dataset, images: Tensor, tmp_path: Path
) -> None:
    network = build(CNN, data.shape, 2, seed=3).eval()
    save_file(network.state_dict(), tmp_path / "w.bin", {"id2label": '{"0": "dog", "1": "cat"}'})
    imported = taken(tmp_path / "w.bin", data, tmp_path, "cnn", model={"args": CNN.args})
    with torch.inference_mode():
        assert torch.allclose(logits(imported, images), network(images).flip(1), atol=1e-6)


# --- what images go through


def test_a_folders_preprocessing_is_taken(data: Dataset, images: Tensor, tmp_path: Path) -> None:
    network = vit(tmp_path / "vit", ["cat", "dog"], **HALF)
    imported = taken(tmp_path / "vit", data, tmp_path)
    expected = answers(network, (images - 0.5) / 0.25)
    assert torch.allclose(logits(imported, images), expected, atol=1e-4)
    assert any(n.startswith("preprocessing: '{mean: [0.5, 0.5, 0.5]") for n in imported.notes)
    other = {"preprocess": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    given = taken(tmp_path / "vit", data, tmp_path, model=other)
    assert torch.allclose(logits(given, images), answers(network, images), atol=1e-5)
    assert any("as is given; the folder says" in note for note in given.notes)


@pytest.mark.parametrize(
    ("processor", "mean", "std", "size"),
    [
        ({**HALF, "do_normalize": False}, 0.0, 1.0, None),
        ({**HALF, "rescale_factor": 1 / 127.5, "do_normalize": False}, 0.0, 0.5, None),
        ({**HALF, "do_rescale": False}, 0.5 / 255, 0.25 / 255, None),
        ({**HALF, "size": {"height": 32, "width": 32}}, 0.5, 0.25, 32),
        ({**HALF, "do_resize": False}, 0.5, 0.25, None),
        ({**HALF, "image_processor_type": "ConvNextImageProcessor",
          "size": {"shortest_edge": 24}}, 0.5, 0.25, 24),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, 0.5, 0.5, 224),
        ({**HALF, "image_processor_type": "EfficientNetImageProcessor",
          "include_top": True}, 0.5, 0.0625, None),
    ],
)  # fmt: skip
def test_what_a_processor_does_is_told_by_what_it_makes(
    tmp_path: Path, processor: dict[str, Any], mean: float, std: float, size: int | None
) -> None:
    kind = {"image_processor_type": "ViTImageProcessor", **processor}
    if "feature_extractor_type" in kind:
        del kind["image_processor_type"]
    for name, values in (
        ("preprocessor_config.json", kind),
        ("processor_config.json", {"image_processor": kind}),
    ):
        folder = tmp_path / name.partition("_")[0]
        folder.mkdir()
        (folder / name).write_text(json.dumps(values))
        if "feature_extractor_type" in kind and name.startswith("processor"):
            continue
        found = preprocessing_of(folder, (3, 16, 16))
        assert found is not None
        shown, notes = found
        assert shown.mean == pytest.approx((mean,) * 3, abs=1e-5)
        assert shown.std == pytest.approx((std,) * 3, rel=1e-3)
        assert (shown.size, bool(notes) and size is None) == (size, False)


def test_what_a_processor_cuts_out_is_said(tmp_path: Path) -> None:
    kind = {**HALF, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
            "crop_size": {"height": 24, "width": 24}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(kind))
    found = preprocessing_of(tmp_path, (3, 16, 16))
    assert found is not None
    assert found[0].size == 24
    assert "its own crops to the middle, which is not done" in found[1]


@pytest.mark.parametrize(
    "text",
    [
        '{"image_processor_type": "NoSuchProcessor"}',
        '{"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 16},'
        ' "crop_size": {"height": 16, "width": 16}}',  # changes the order of the channels
        json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 9}}
        ),
        '{"image_processor_type": ',
    ],
)
def test_preprocessing_that_is_not_ours_asks_for_it(
    data: Dataset, tmp_path: Path, text: str
) -> None:
    vit(tmp_path / "vit", ["cat", "dog"])
    (tmp_path / "vit" / "preprocessor_config.json").write_text(text)
    with pytest.raises(AgrekdError, match="say with --preprocess what images go through") as caught:
        taken(tmp_path / "vit", data, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    other = {"preprocess": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    assert any(
        "as is given" in n for n in taken(tmp_path / "vit", data, tmp_path, model=other).notes
    )


def test_a_normalisation_in_a_file_goes_before_the_network(
    data: Dataset, images: Tensor, tmp_path: Path
) -> None:
    network = build(CNN, data.shape, 2, seed=3).eval()
    behind = {f"1.{name}": value for name, value in network.state_dict().items()}
    tensors = {"0.mean": torch.tensor([0.5, 0.4, 0.3])[:, None, None], "0.std": torch.tensor(0.5)}
    plain = {"mean": [0.5, 0.4, 0.3], "std": [0.5] * 3}
    shown = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.5
    tensors["0.std"] = tensors["0.std"].expand(3).clone()
    for content in ({**tensors, **behind}, {"net": network.state_dict(), "cfg": plain}):
        torch.save(content, tmp_path / "w.pt")
        imported = taken(tmp_path / "w.pt", data, tmp_path, "cnn", model={"args": CNN.args})
        with torch.inference_mode():
            assert torch.allclose(logits(imported, images), network(shown), atol=1e-5)
    torch.save(behind, tmp_path / "w.pt")
    with pytest.raises(AgrekdError, match=r"behind a layer without weights.* --preprocess"):
        taken(tmp_path / "w.pt", data, tmp_path, "cnn", model={"args": CNN.args})
    torch.save({**behind, "0.mean": torch.full((3,), 120.0), "0.std": torch.ones(3)},
               tmp_path / "w.pt")  # fmt: skip
    with pytest.raises(AgrekdError, match=r"not for 3 channels in \[0, 1\]"):
        taken(tmp_path / "w.pt", data, tmp_path, "cnn", model={"args": CNN.args})


# --- several sets of weights


def test_the_choice_among_a_folders_files_is_said_and_made(
    data: Dataset, images: Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "vit"
    network = vit(folder, ["cat", "dog"])
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    assert not any("weights:" in note for note in taken(folder, data, tmp_path).notes)
    state["classifier.bias"] = state["classifier.bias"] + 1
    torch.save(state, folder / "pytorch_model.bin")
    usual = taken(folder, data, tmp_path)
    assert torch.allclose(logits(usual, images), answers(network, images), atol=1e-5)
    assert usual.notes[0] == (
        "weights: model.safetensors taken; there is pytorch_model.bin too (--weights)"
    )
    other = taken(folder, data, tmp_path, weights="pytorch_model.bin")
    assert torch.allclose(logits(other, images), answers(network, images) + 1, atol=1e-5)
    assert torch.equal(logits(taken(folder / "pytorch_model.bin", data, tmp_path), images),
                       logits(other, images))  # fmt: skip
    with pytest.raises(AgrekdError, match="no file with weights is called 'ema'"):
        taken(folder, data, tmp_path, weights="ema")
    (folder / "model.safetensors").rename(folder / "model_ema.safetensors")
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model_2.bin")
    with pytest.raises(AgrekdError, match="several files with weights"):
        taken(folder, data, tmp_path)
    ema = taken(folder, data, tmp_path, weights="ema")
    assert torch.allclose(logits(ema, images), answers(network, images), atol=1e-5)


# --- folders of timm


def timm_folder(folder: Path, **config: Any) -> nn.Module:
    import timm

    torch.manual_seed(5)
    network = timm.create_model("test_vit", num_classes=2, img_size=32).eval()
    timm.models.save_for_hf(network, folder, model_config={"label_names": ["dog", "cat"], **config})
    return network


@pytest.mark.parametrize("name", ["", "timm/test_vit", "timm/test_vit.r160_in1k"])
def test_a_folder_of_timm(data: Dataset, images: Tensor, tmp_path: Path, name: str) -> None:
    network = timm_folder(tmp_path / "folder")
    imported = taken(tmp_path / "folder", data, tmp_path, name)
    assert imported.manifest.model.preprocessing == Preprocessing(
        size=32, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    shown = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = network((shown - 0.5) / 0.5).flip(1)
    assert torch.allclose(logits(imported, images), expected, atol=1e-4)
    assert any("its own crops to the middle 95 %" in note for note in imported.notes)
    file = taken(tmp_path / "folder" / "pytorch_model.bin", data, tmp_path, name)
    assert torch.equal(logits(file, images), logits(imported, images))


def test_what_is_wrong_with_a_folder_of_timm_is_said(data: Dataset, tmp_path: Path) -> None:
    timm_folder(tmp_path / "folder")
    with pytest.raises(AgrekdError, match=r"of timm/test_vit, --model says timm/resnet18"):
        taken(tmp_path / "folder", data, tmp_path, "timm/resnet18")
    with pytest.raises(AgrekdError, match=r"a folder of timm, .* write timm/test_vit"):
        check(Model(name=f"transformers/{tmp_path / 'folder'}"), data.shape, 2)
    path = tmp_path / "folder" / "config.json"
    config = json.loads(path.read_text())
    for change, words in (
        ({"architecture": "no_net"}, "knows no architecture 'no_net'"),
        ({"model_args": {"in_chans": 1}}, "takes images of 1 channels"),
        ({"label_names": ["Dog", "Cat"]}, "--classes dog,cat"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0, 0]}}, "say them with --preprocess"),
        ({"model_args": {"img_size": [32, 64]}}, "32 x 64"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(AgrekdError, match=words) as caught:
            taken(tmp_path / "folder", data, tmp_path)
        assert len(str(caught.value).splitlines()) == 1


# --- text


def test_a_text_folders_tokenizer_must_be_the_datas(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    data = open_dataset(CivilComments.model_validate(texts.civilcomments(tmp_path)))
    folder = tmp_path / "model"
    config = BertConfig(**texts.TINY["bert"], id2label={0: "toxic", 1: "nontoxic"})
    network = BertForSequenceClassification(config).eval()
    network.save_pretrained(folder)
    assert any("tokenizer: none there" in note for note in taken(folder, data, tmp_path).notes)
    shutil.copytree(tmp_path / "tokenizer", folder, dirs_exist_ok=True)
    imported = taken(folder, data, tmp_path)
    assert not any("tokenizer" in note for note in imported.notes)
    ids = data.inputs(data.splits[SELECT][:4], None)
    with torch.inference_mode():
        expected = network(input_ids=ids, attention_mask=(ids != 0).long()).logits.flip(1)
    assert torch.allclose(logits(imported, ids), expected, atol=1e-5)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "tokenizer.json"
    values = json.loads(path.read_text())
    words = values["model"]["vocab"]
    one, two = list(words)[-2:]
    words[one], words[two] = words[two], words[one]
    path.write_text(json.dumps(values))
    with pytest.raises(AgrekdError, match=r"its tokenizer knows other tokens .*data\.tokenizer"):
        taken(other, data, tmp_path)


def test_padding_that_is_not_the_datas_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    data = open_dataset(CivilComments.model_validate(texts.civilcomments(tmp_path)))
    config = BertConfig(**{**texts.TINY["bert"], "pad_token_id": 3})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    with pytest.raises(AgrekdError, match="takes token 3 for padding"):
        taken(tmp_path / "model", data, tmp_path)


# --- evaluation


def test_every_import_is_judged_on_validation(
    table: dict[str, Any], data: Dataset, tmp_path: Path, make_job: Any
) -> None:
    """Weights that know red from green, with names that say nothing and in the other order."""
    network = build(Model(name="delayed", args={"milliseconds": 1}), data.shape, 2, seed=0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.backbone.mix.weight.copy_(torch.eye(3)[:, :, None, None])
        network.head.weight.copy_(torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    how = {"name": "delayed", "model": {"args": {"milliseconds": 1}}}
    wrong = taken(tmp_path / "w.pt", data, tmp_path, **how)
    assert wrong.metrics.accuracy == 0
    assert wrong.warnings[0].startswith("no better on val than to answer")
    assert "--classes dog,cat" in wrong.warnings[1]
    right = taken(tmp_path / "w.pt", data, tmp_path, **how, classes=("dog", "cat"))
    assert right.metrics.accuracy == 1
    assert right.warnings == ()
    assert right.metrics == evaluate(load(right.folder)[0], data, SELECT)
    assert right.manifest.metrics[SELECT]["accuracy"] == 1
    store = {"teachers.store": str(tmp_path / "teachers")}
    values = make_job(data=table, **store).model_dump(mode="json")
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(values))
    words = ["teachers", "import", tmp_path / "w.pt", "--job", job, "--model", "delayed"]
    words += ["--name", "judged", "--model-args", "milliseconds=1"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "val: accuracy in %" in result.output
    assert "warning: no better on val" in result.output
    assert "dog, sky=1" in result.output


class OfOneSize(nn.Module):
    """Knows red from green on images of 16 x 16 alone; on others it says the opposite."""

    def forward(self, images: Tensor) -> Tensor:
        sign = 1 if images.shape[-1] == 16 else -1
        return sign * images.mean((2, 3))


@pytest.fixture
def of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_size(shape: tuple[int, ...], classes: int) -> Classifier:
        return Classifier(OfOneSize(), nn.Linear(3, classes, bias=False))

    monkeypatch.setitem(BUILDERS, "one_size", one_size)
    monkeypatch.setitem(BUILDERS._makers, "one_size", one_size)


def test_an_import_says_what_it_is_shown_and_whether_that_is_what_it_was_trained_on(
    table: dict[str, Any], data: Dataset, tmp_path: Path, make_job: Any, of_one_size: None
) -> None:
    weight = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    save_file({"head.weight": weight}, tmp_path / "w.safetensors")
    values = make_job(data=table, **{"teachers.store": str(tmp_path / "teachers")})
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(values.model_dump(mode="json")))

    def said(name: str, *more: str) -> str:
        words = ["teachers", "import", tmp_path / "w.safetensors", "--job", job, "--name", name]
        words += ["--model", "one_size", "--expect", "100", *more]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, words)))
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    wrong = said("wrong", "--preprocess", "imagenet")
    assert "shown: 224 × 224 pixels, out of the data's 16 × 16; values from -2.1" in wrong
    assert "0.0 % right on val, where 100.0 % was expected" in wrong
    plain = "{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
    advice = f"without resizing, at 16 × 16 pixels, it would be 100.0 %: --preprocess '{plain}'"
    assert advice in wrong
    right = said("right", "--preprocess", plain)
    assert "shown: 16 × 16 pixels; values from -2.1" in right
    assert "warning" not in right
    manifest = read_manifest(tmp_path / "teachers/imported/right")
    assert manifest.metrics[SELECT]["accuracy"] == 1
    assert manifest.made_by["measured_on"] == data.fingerprint


def test_an_import_near_chance_is_said(data: Dataset, tmp_path: Path, of_one_size: None) -> None:
    """Weights that take one dog for a dog, and all others for cats."""
    ids = data.splits[SELECT]
    colours_N3 = data.inputs(ids, None).mean((2, 3))[data.labels(ids) == 1]
    first, second = (colours_N3[:, 0] / colours_N3[:, 1]).sort().values[:2].tolist()
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, (first + second) / 2, 0.0]])
    save_file({"head.weight": weight}, tmp_path / "w.safetensors")
    (warning,) = taken(tmp_path / "w.safetensors", data, tmp_path, "one_size").warnings
    assert warning == "hardly better on val than to answer 'cat' every time (50.0 % right)"
