"""CivilComments in WILDS' layout and one's own table of texts; BERT teaches DistilBERT."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from agrekd_ray.config import Job, check_job
from agrekd_ray.data import DFR, SELECT, TEST, TRAIN, Dataset, open_dataset, tokens_of
from agrekd_ray.data.civilcomments import FILE, IDENTITIES, CivilComments
from agrekd_ray.data.custom import check_contract
from agrekd_ray.data.text import TextTable
from agrekd_ray.errors import AgrekdError, DataError
from agrekd_ray.experiment.folder import RunFolder
from agrekd_ray.experiment.job import run_job
from tests import texts
from tests.texts import WORDS, comments

from .conftest import TINY, merged


@pytest.fixture
def settings(tmp_path: Path) -> CivilComments:
    return CivilComments.model_validate(texts.civilcomments(tmp_path))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return texts.word_tokenizer(tmp_path / "tokenizer")


def test_both_group_conventions(settings: CivilComments, tmp_path: Path) -> None:
    rows = comments(tmp_path / "civil" / FILE)
    data = open_dataset(settings)
    toxic = np.array([row["toxicity"] >= 0.5 for row in rows])
    mentions = np.array([[row[name] >= 0.5 for name in IDENTITIES] for row in rows])
    assert data.classes == ("nontoxic", "toxic")
    assert data.labels(np.arange(len(rows))).tolist() == toxic.astype(int).tolist()
    groups = data.groups
    assert groups.names[3] == "toxic, any identity"
    assert groups.group_N.tolist() == (2 * toxic + mentions.any(1)).tolist()
    assert groups.overlapping_NK is not None
    assert len(groups.overlapping) == groups.overlapping_NK.shape[1] == 16
    for number, name in enumerate(groups.overlapping):
        label, _, identity = name.partition(", ")
        expected = mentions[:, IDENTITIES.index(identity)] & (toxic == (label == "toxic"))
        assert groups.overlapping_NK[:, number].tolist() == expected.tolist()
    assert data.splits[TRAIN].tolist() == list(range(120))
    halves = [np.bincount(groups.group_N[data.splits[half]], minlength=4) for half in (DFR, SELECT)]
    assert np.abs(halves[0] - halves[1]).max() <= 1
    assert sum(map(len, data.splits.values())) == len(rows)


def test_texts_are_tokenised_once(settings: CivilComments, tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data: Any = open_dataset(settings)
    check_contract(data, "civilcomments")
    assert data.unprepared() == data.size == 240
    told: list[tuple[int, int]] = []
    data.prepare(lambda done, total: told.append((done, total)))
    assert told[0] == (0, 240)
    assert told[-1] == (240, 240)
    ids = np.array([7, 3, 200])
    inputs = data.inputs(ids, 5)
    assert inputs.dtype == torch.int64
    assert inputs.shape == (3, 12)
    text = "so kind"
    reference = AutoTokenizer.from_pretrained(tokenizer)
    written = [row["comment_text"] for row in comments(tmp_path / "again" / FILE)]
    expected = reference(
        [written[i] for i in ids], padding="max_length", truncation=True, max_length=12
    )["input_ids"]
    assert inputs.tolist() == expected
    assert reference(text)["input_ids"][0] == 2  # the template is the tokenizer's
    assert tokens_of(data) == (len(WORDS) + 4, 0)
    assert data.excerpt(3) == " ".join(written[3].split())
    again: Any = opened(settings)
    assert again.unprepared() == 0
    assert again.fingerprint == data.fingerprint


def opened(settings: CivilComments) -> Dataset:
    """Opened anew, whatever this process has open."""
    return settings.open()


def test_the_fingerprint_is_that_of_the_content(
    settings: CivilComments, tokenizer: Path, tmp_path: Path
) -> None:
    first = opened(settings).fingerprint
    comments(tmp_path / "moved" / FILE)
    elsewhere = settings.model_copy(
        update={"path": tmp_path / "moved", "prepared": tmp_path / "other"}
    )
    assert opened(elsewhere).fingerprint == first
    shorter = settings.model_copy(update={"max_length": 11})
    assert opened(shorter).fingerprint != first
    path = tmp_path / "moved" / FILE
    path.write_text(path.read_text().replace("kind", "good", 1))
    assert opened(elsewhere).fingerprint != first
    values = json.loads((tokenizer / "tokenizer.json").read_text())
    values["model"]["vocab"]["more"] = len(WORDS) + 4
    other = tmp_path / "renamed"
    other.mkdir()
    for file in tokenizer.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "tokenizer.json").write_text(json.dumps(values))
    renamed = settings.model_copy(update={"tokenizer": str(other)})
    assert opened(renamed).fingerprint != first


def _replace(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: _replace(t, "toxicity", "toxic"), "no column 'toxicity'"),
        (lambda t: _replace(t, "comment_text", "comment"), "no column 'comment_text'"),
        (lambda t: _replace(t, "LGBTQ", "lgbt"), "no column 'LGBTQ'"),
        (lambda t: _replace(t, ",val,", ",valid,"), "split is 'valid'"),
        (lambda t: _replace(t, ",train,", ",,"), "row 1: split is empty"),
        (lambda t: "".join(t.splitlines(keepends=True)[:1]), "no row besides the header"),
    ],
)
def test_mistakes_in_the_file(
    settings: CivilComments, change: Callable[[str], str], words: str
) -> None:
    path = settings.path / FILE
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=words):
        opened(settings)


def test_values_that_are_no_numbers(settings: CivilComments) -> None:
    rows = list(csv.DictReader((settings.path / FILE).open(newline="")))
    rows[2]["male"] = ""  # nobody was asked: not mentioned
    rows[4]["toxicity"] = "high"
    with (settings.path / FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, texts.HEADER)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match=r"row 5: toxicity is 'high', no number"):
        opened(settings)


def test_text_that_is_not_utf8_is_told_with_its_row(settings: CivilComments) -> None:
    parts = (settings.path / FILE).read_bytes().split(b"quoted", 3)
    parts[3] = b"\xff" + parts[3]
    (settings.path / FILE).write_bytes(b"quoted".join(parts))
    data: Any = opened(settings)
    with pytest.raises(DataError, match=r"row 3: comment_text is no UTF-8 text"):
        data.prepare()


def test_what_is_missing_is_said(settings: CivilComments, tmp_path: Path, monkeypatch: Any) -> None:
    from agrekd_ray.data import text

    with pytest.raises(DataError, match=f"lacks {FILE} .*WILDS"):
        opened(settings.model_copy(update={"path": tmp_path}))
    with pytest.raises(DataError, match=r"data\.tokenizer: no folder"):
        opened(settings.model_copy(update={"tokenizer": "/none"}))
    with pytest.raises(DataError, match="cannot be loaded"):
        opened(settings.model_copy(update={"tokenizer": str(tmp_path)}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    text._tokenizer.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'agrekd_ray\[text\]'"):
        opened(settings)


def test_a_table_of_texts_of_ones_own(tmp_path: Path) -> None:
    values = texts.text_table(tmp_path)
    data = open_dataset(TextTable.model_validate(values))
    assert data.classes == ("ham", "spam")
    assert not data.groups.known
    assert data.inputs(np.array([0]), None).shape == (1, 6)
    with pytest.raises(DataError, match=r"no column 'body'"):
        open_dataset(TextTable.model_validate({**values, "columns": {"text": "body"}}))


# --- a job ---


@pytest.fixture
def raw(settings: CivilComments, tmp_path: Path) -> dict[str, Any]:
    """A job's values: tiny BERTs, of which one is debiased, teach a DistilBERT."""
    from transformers import BertConfig

    BertConfig(**texts.TINY["bert"]).save_pretrained(tmp_path / "bert")
    training = {"epochs": 10, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.01}
    changes = {
        "teachers.count": 2,
        "teachers.model": {"name": f"transformers/{tmp_path / 'bert'}"},
        "teachers.training": {**training, "schedule": "linear"},
        "teachers.store": str(tmp_path / "store"),
        "ensemble": {"size": 2, "debiased": 1},
        "student.model": {"name": "transformers/distilbert", "args": texts.TINY["distilbert"]},
        "student.training": training,
        "methods": ["one_hot", "agre_kd", "teacher_vote"],
        "guidance": "local",
        "runs": str(tmp_path / "runs"),
    }
    return {**merged(TINY, changes), "data": settings.model_dump(mode="json")}


def test_weights_of_a_folder_read_the_tokens_that_the_data_have(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    swapped = []
    for name in ("alike", "other"):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "tokenizer", folder)
        BertModel(BertConfig(**texts.TINY["bert"])).save_pretrained(folder)
        values = json.loads((folder / "tokenizer.json").read_text())
        words = values["model"]["vocab"]
        one, two = list(words)[-2:]
        if name == "other":
            words[one], words[two] = words[two], words[one]
            (folder / "tokenizer.json").write_text(json.dumps(values))
        model = {"name": f"transformers/{folder}", "weights": "pretrained"}
        swapped.append(check_job(merged(raw, {"teachers.model": model}))[1])
    assert swapped[0] == []
    (fault,) = swapped[1]
    assert fault.key == "teachers.model"
    assert "its tokenizer knows other tokens" in fault.problem


def test_a_job_about_texts(raw: dict[str, Any], monkeypatch: Any) -> None:
    import socket

    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket, "create_connection", no_network)
    job, faults = check_job(raw)
    assert job is not None, faults
    folder = RunFolder.create(job)
    outcomes = run_job(folder, Console(quiet=True))
    for outcome in outcomes:
        metrics = outcome.splits[TEST]
        assert set(metrics.groups) <= set(open_dataset(job.data).groups.names)
        assert metrics.overlapping
        assert metrics.worst_overlapping_group_accuracy == min(metrics.overlapping.values())
    assert outcomes[0].splits[TEST].accuracy > 0.9  # "idiot" and "hate" give it away
    assert "toxic, LGBTQ" in (folder.path / "results.json").read_text()


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"data.max_length": 20}, "teachers.model", "reads at most 16 tokens"),
        ({"student.model": {"name": "cnn"}}, "student.model", "takes images"),
        (
            {"student.model.args.vocab_size": 10},
            "student.model",
            "knows 10 tokens (vocab_size), the data's tokenizer 19",
        ),
        ({"student.model.args.pad_token_id": 3}, "student.model", "takes token 3 for padding"),
    ],
)
def test_models_that_cannot_read_the_texts(
    raw: dict[str, Any], change: dict[str, Any], key: str, words: str
) -> None:
    _, faults = check_job(merged(raw, change))
    assert any(fault.key == key and words in fault.problem for fault in faults), faults


def test_checking_a_job_tokenises_nothing(raw: dict[str, Any], settings: CivilComments) -> None:
    job, faults = check_job(raw)
    assert isinstance(job, Job), faults
    data: Any = open_dataset(job.data)
    assert data.unprepared() == 240
    assert not settings.prepared.exists()
    with pytest.raises(AgrekdError, match="not prepared"):
        data.rows.rows()
