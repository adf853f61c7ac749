"""Tokenizers and tables of texts as their makers leave them, tiny; written by the tests."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from agrekd_ray.data.civilcomments import FILE, IDENTITIES

WORDS = [
    *("you", "people", "are", "so", "kind", "and", "good"),
    *("thanks", "idiot", "stupid", "hate", "women", "men", "black", "church"),
]
TINY: dict[str, dict[str, int]] = {
    "bert": {
        "vocab_size": 19,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    },
    "distilbert": {
        "vocab_size": 19,
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 32,
        "max_position_embeddings": 16,
    },
}
"""A teacher and a student that read the tiny tokenizer's nineteen words."""
HEADER = ["", "id", "comment_text", "toxicity", "split", "created_date", *IDENTITIES, "rating"]


def word_tokenizer(folder: Path) -> Path:
    """A tokenizer of words, as save_pretrained leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(folder)
    return folder


def comments(path: Path, rows: int = 240) -> list[dict[str, Any]]:
    """Writes a CSV in the layout of WILDS; toxic comments mention identities more often."""
    rng = np.random.default_rng(0)
    written = []
    for number in range(rows):
        toxic = bool(rng.random() < 0.4)
        identity = rng.random(len(IDENTITIES)) < (0.25 if toxic else 0.08)
        words = list(rng.choice(WORDS[:7], 6)) + (["idiot", "hate"] if toxic else ["thanks"])
        row = {
            "": number,
            "id": 10_000 + number,
            "comment_text": " ".join(words) + ', "quoted"\nand a second line',
            "toxicity": 0.5 + 0.3 * rng.random() if toxic else 0.49 * rng.random(),
            "split": ("train", "val", "test")[0 if number < rows // 2 else 1 + number % 2],
            "created_date": "2017-01-01 00:00:00+00",
            "rating": "approved",
        }
        row |= {name: 0.5 if on else 0.2 for name, on in zip(IDENTITIES, identity, strict=True)}
        written.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(written)
    return written


def mails(path: Path) -> Path:
    """Writes a table of texts without groups and splits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((f"so {WORDS[n % 7]}", ("ham", "spam")[n % 2]) for n in range(60))
    return path


def civilcomments(place: Path) -> dict[str, Any]:
    """Settings of a stand-in for CivilComments."""
    comments(place / "civil" / FILE)
    return {
        "name": "civilcomments",
        "path": str(place / "civil"),
        "tokenizer": str(word_tokenizer(place / "tokenizer")),
        "max_length": 12,
        "prepared": str(place / "prepared"),
    }


def text_table(place: Path) -> dict[str, Any]:
    """Settings of a table of texts."""
    return {
        "name": "text_table",
        "table": str(mails(place / "mails.csv")),
        "tokenizer": str(word_tokenizer(place / "tokenizer")),
        "max_length": 6,
        "prepared": str(place / "prepared"),
    }
