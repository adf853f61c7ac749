"""Texts that are tokenised once, and kept as rows of token ids."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import field_validator
from torch import Tensor

from agrekd_ray.data.chunks import BrokenRowsError, Made, Work, chunks
from agrekd_ray.data.dataset import Annotations, Samples
from agrekd_ray.data.prepared import PreparedRows
from agrekd_ray.data.prepared_samples import PreparedSamples
from agrekd_ray.data.rows import Columns, TableSettings, open_table, read_rows
from agrekd_ray.data.stamps import stamps
from agrekd_ray.data.table import Table
from agrekd_ray.errors import AgrekdError, DataError
from agrekd_ray.files import is_folder
from agrekd_ray.hub import hub_library
from agrekd_ray.settings import Count, LocalPath, Seed, Settings, absolute, fingerprint

TOKENISING = 1
"""Version of what tokenising gives; raised when the same text gives other tokens."""
_EXCERPT = 200
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")
_COMPARED = 100
"""Texts that two tokenizers are compared on."""
_LENGTHS = 1 << 16


class Texts(Settings):
    """What data sets of texts share.

    Attributes:
        seed: draws the halves of validation.
        tokenizer: a folder with a tokenizer of transformers, or a name of the Hugging Face hub.
        max_length: tokens of every sequence: longer texts are cut, shorter ones padded.
        prepared: folder of tokenised texts, shared by all jobs.
    """

    seed: Seed = 0
    tokenizer: str
    max_length: Count = 300
    prepared: LocalPath = Path("runs/prepared")

    @field_validator("tokenizer")
    @classmethod
    def _absolute_folder(cls, tokenizer: str) -> str:
        if tokenizer.startswith(("/", ".", "~")) or is_folder(Path(tokenizer)):
            return str(absolute(Path(tokenizer)))
        return tokenizer


class TextDataset(PreparedSamples):
    """Texts by id (a `Dataset`, and `Excerpted`).

    Args:
        settings: of the data set.
        table: that the texts are in.
        column: that they are in; read when they are tokenised, not before.
        annotations: of the texts.

    Attributes:
        tokens: how many tokens the tokenizer knows, and the id of its padding.

    Raises:
        DataError: the column or the tokenizer is missing, or the tokenizer cannot pad.
    """

    # There is one view of a text: itself.
    views_fingerprint = hashlib.sha256(b"text").hexdigest()

    def __init__(
        self, settings: Texts, table: Table, column: str, annotations: Annotations
    ) -> None:
        table.require(column)
        self._path, self._column, self._length = table.path, column, settings.max_length
        self._tokenizer = _tokenizer(settings.tokenizer)
        self.tokens: tuple[int, int] = (len(self._tokenizer), self._tokenizer.pad_token_id)
        shape = (settings.max_length,)
        self._how = fingerprint(TOKENISING, _content(self._tokenizer), settings.max_length)
        key = fingerprint(self._how, fingerprint(*stamps(table.files)), column)
        rows = PreparedRows(settings.prepared, key, table.rows, shape, np.int32)
        super().__init__(rows, annotations, shape)

    def arrays(self, view: int | None) -> tuple[np.ndarray, ...]:
        """See `Arrays.arrays`: token ids, int32."""
        self.prepare()
        return (self.rows.rows(),)

    def show(self, rows: Sequence[Tensor], view: int | None) -> Tensor:
        """See `Arrays.show`."""
        return rows[0].long()

    def lengths(self, ids: np.ndarray) -> np.ndarray | None:
        """See `Arrays.lengths`."""
        return self._all_lengths[ids]

    @functools.cached_property
    def _all_lengths(self) -> np.ndarray:
        """Of all texts; where padding stands on the left, that of the whole rows."""
        self.prepare()
        rows, lengths = self.rows.rows(), []
        for first in range(0, self.size, _LENGTHS):
            text_BL = rows[first : first + _LENGTHS] != self.tokens[1]
            beyond_B = text_BL[:, ::-1].argmax(1)
            lengths.append(np.where(text_BL.any(1), text_BL.shape[1] - beyond_B, 1))
        return np.concatenate(lengths)

    def excerpt(self, sample: int) -> str:
        """See `Excerpted.excerpt`."""
        text = " ".join(self._texts.passages(self._column, range(sample, sample + 1))[0].split())
        return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…"

    @functools.cached_property
    def _texts(self) -> Table:
        return Table(self._path, [self._column])

    def how(self) -> str:
        """See `PreparedSamples.how`."""
        return self._how

    def making(self, numbers: Sequence[int]) -> Iterator[Work]:
        """See `PreparedSamples.making`."""
        table, every = Table(self._path, [self._column]), chunks(self.size)
        one_at_a_time = threading.Lock()  # a tokenizer has threads of its own, and a state

        def make(rows: range) -> Made:
            try:
                texts = table.passages(self._column, rows)
            except DataError as error:
                raise BrokenRowsError([str(error)]) from None
            with one_at_a_time:
                ids_BL = _token_ids(self._tokenizer, texts, self._length)
            # Lengths keep "a", "bc" apart from "ab", "c".
            lengths = np.array([len(text) for text in texts], dtype=np.int64)
            digest = hashlib.sha256(lengths.tobytes() + "".join(texts).encode())
            return ids_BL, digest.digest(), ()

        for number in numbers:
            yield Work(number, functools.partial(make, every[number]))


def tokens_of(samples: Samples) -> tuple[int, int] | None:
    """How many tokens a text data set's tokenizer knows, and the id of its padding."""
    return samples.tokens if isinstance(samples, TextDataset) else None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of transformers."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def other_tokens(samples: Samples, folder: Path) -> str:
    """In words, how a folder's tokenizer differs from that of a text data set.

    Args:
        samples: the data.
        folder: with a tokenizer of transformers.

    Returns:
        Nothing where both read the data's first texts alike, or the data are no texts.

    Raises:
        DataError: the folder's tokenizer cannot be loaded.
    """
    if not isinstance(samples, TextDataset):
        return ""
    ours, theirs = samples._tokenizer, _tokenizer(str(folder))
    if ours.get_vocab() != theirs.get_vocab():
        return f"knows other tokens ({len(theirs)}) than data.tokenizer ({len(ours)})"
    texts = samples._texts.passages(samples._column, range(min(_COMPARED, samples.size)))
    for row, text in enumerate(texts):
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            return f"reads text {row} of the data as other tokens than data.tokenizer"
    return ""


def tokenised(texts: Sequence[str], settings: Texts) -> np.ndarray:
    """Texts as the data set of these settings makes token ids of them, int32 [B, max_length].

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    return _token_ids(_tokenizer(settings.tokenizer), list(texts), settings.max_length)


def _token_ids(tokenizer: Any, texts: list[str], length: int) -> np.ndarray:
    ids = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    return np.array(ids, dtype=np.int32)


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    try:
        transformers = hub_library("transformers", "text")
    except AgrekdError as error:
        raise DataError(f"data.tokenizer: {error}") from None
    if name.startswith("/") and not Path(name).is_dir():
        raise DataError(f"data.tokenizer: no folder {name}.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, use_fast=True, trust_remote_code=False
        )
    except Exception as error:  # a hub that is away, or any fault of a tokenizer's files
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"data.tokenizer: {name} cannot be loaded ({text}). Without a network, name a folder "
            "with its files (tokenizer.json, tokenizer_config.json), saved by save_pretrained."
        ) from None
    if not tokenizer.is_fast:
        raise DataError(
            f"data.tokenizer: {name} has no tokenizer.json; save it again with a fast tokenizer."
        )
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"data.tokenizer: {name} has no padding token; name one in its tokenizer_config.json."
        )
    return tokenizer


def _content(tokenizer: Any) -> str:
    """Of all that decides on the tokens, wherever the files lie."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # what it did last is part of its text
    backend.no_truncation()
    return fingerprint(backend.to_str(), tokenizer.pad_token_id)


class TextColumns(Columns):
    """Columns of a table of texts.

    Attributes:
        text: the text.
    """

    text: str = "text"


class TextTable(TableSettings, Texts):
    """A table of texts of one's own.

    Attributes:
        name: `text_table`.
        columns: which column is what.
    """

    name: Literal["text_table"]
    columns: TextColumns = TextColumns()

    def open(self) -> TextDataset:
        """The data set of a table of texts.

        Raises:
            DataError: anything wrong with the table, with the row's number, or with the tokenizer.
        """
        table = open_table(self, self.columns)
        return TextDataset(self, table, self.columns.text, read_rows(table, self, self.columns))
