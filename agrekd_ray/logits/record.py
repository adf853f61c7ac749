"""One finished record: the raw logits of one teacher for one view of a split.

An Arrow IPC file with one column, a fixed-size list of C numbers a row, or of bytes where the form
is packed (`forms`); row r belongs to the r-th id of the split. Its schema carries the SHA-256 of
the values, so that a damaged file is never taken for a record. Logits are raw: every temperature,
strategy and alpha reads the same file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from agrekd_ray.data import TRAIN
from agrekd_ray.errors import RunError
from agrekd_ray.files import cannot_read, replacing, unreadable
from agrekd_ray.logits.forms import Dtype, Form, Packed, Recorded
from agrekd_ray.logits.sound import is_sound
from agrekd_ray.settings import LocalPath, Settings, fingerprint

FORMAT = 1
COLUMN = "logits"


SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
"""Of pyarrow's file systems."""


def _address(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES or not (parts.netloc + parts.path).strip("/"):
        raise ValueError(f"an address such as s3://BUCKET/FOLDER ({', '.join(SCHEMES)})")
    if parts.password is not None or re.search("(secret|access)_key=", parts.query):
        raise ValueError(
            "an address without keys, which would be kept with every run; set AWS_ACCESS_KEY_ID "
            "and the like in the environment of every node"
        )
    return uri.rstrip("/")


Address = Annotated[str, AfterValidator(_address)]
"""Of a folder in an object store, as pyarrow's `FileSystem.from_uri` takes it."""


class OutputSettings(Settings):
    """Where teachers' outputs are recorded.

    Attributes:
        store: folder of all records, shared by all jobs. On a cluster one that all nodes share
            spares copies; else each has its own: the driver's has all, and a student's node brings
            from there what it reads.
        remote: folder of an object store, such as `s3://BUCKET/FOLDER`, that finished records are
            sent to, and fetched from where a node's `store` has none.
        dtype: of the recorded logits; `float16` takes half the disk, `int8` a quarter (a scale and
            an offset a row). Live answers are rounded alike.
        top_k: of each answer only the K largest logits are recorded, and one for all others
            together, which changes the gradient much above temperature 1; null records all.
        features: of teachers that differ in the last layer alone (DFR, AFR and the ERM teacher that
            they come from) the features of their backbone are recorded once, in place of the logits
            of each, where that takes fewer bytes; replay applies the heads. Not with `top_k`.
        together: of a view's records that are larger than a node's memory a copy is made there, in
            which the rows of a sample lie side by side: a read a sample, on as much disk again.
    """

    store: LocalPath = Path("runs/outputs")
    remote: Address | None = None
    dtype: Dtype = "float32"
    top_k: int | None = Field(default=None, ge=1)
    features: bool = False
    together: bool = False

    def form(self, classes: int) -> Form:
        """How answers of so many classes are recorded.

        Raises:
            RunError: `top_k` spares no disk.
        """
        return Form(self.dtype, self.top_k, classes)


@dataclass(frozen=True)
class Key:
    """Everything that changes what a teacher says, besides the number of the view.

    The number of views is not part of it: view v is the same picture however many there are.

    Attributes:
        teacher: name of its checkpoint folder, for people.
        weights: SHA-256 of its weights.
        model: its architecture and arguments.
        data: fingerprint of the data set, its split included.
        views: fingerprint of what varies between views, and of the seed.
        autocast: `bfloat16`, or `none` for float32: what its forward passes computed in.
        dtype: of the recorded logits.
        rows: N, samples of the split.
        classes: C.
        split: whose samples the rows are, in the order of its ids.
        top_k: how many logits of a row are kept; None for all.
    """

    teacher: str
    weights: str
    model: Mapping[str, Any]
    data: str
    views: str
    autocast: str
    dtype: str
    rows: int
    classes: int
    split: str = TRAIN
    top_k: int | None = None

    @property
    def about(self) -> dict[str, Any]:
        """All of it as plain values; without `top_k`, as ever, where all logits are kept."""
        values = asdict(self)
        if self.top_k is None:
            del values["top_k"]
        return values

    @cached_property
    def digest(self) -> str:
        """Of everything but the name; asked for with every record that is looked up."""
        return fingerprint(FORMAT, {**self.about, "teacher": None})

    @property
    def folder(self) -> str:
        """Name of the folder of this teacher's records."""
        return self.digest[:20]

    @property
    def bytes(self) -> int:
        """Of a view's record."""
        return self.rows * self.form.row_bytes

    @cached_property
    def form(self) -> Form:
        """How its rows are stored."""
        return Form(cast(Dtype, self.dtype), self.top_k, self.classes)


def write_record(path: Path, key: Key, logits_NC: Recorded) -> None:
    """Write a finished record; whole or not at all.

    Args:
        path: of the file.
        key: that it is written under.
        logits_NC: [N, C].

    Raises:
        RunError: the disk is full or cannot be written.
    """
    rows_NR = logits_NC.rows_NR if isinstance(logits_NC, Packed) else key.form.encode(logits_NC)
    values = pa.py_buffer(np.ascontiguousarray(rows_NR))
    flat = pa.Array.from_buffers(pa.from_numpy_dtype(rows_NR.dtype), rows_NR.size, [None, values])
    column = pa.FixedSizeListArray.from_arrays(flat, rows_NR.shape[1])
    about = {"key": key.digest, "sha256": hashlib.sha256(values).hexdigest()}
    schema = pa.schema([pa.field(COLUMN, column.type, nullable=False)], about)
    try:  # what a power cut leaves damaged is found by its checksum
        with (
            replacing(path) as draft,
            draft.open("wb") as file,
            pa.ipc.new_file(file, schema) as writer,
        ):
            writer.write_batch(pa.record_batch([column], schema=schema))
    except OSError as error:
        raise cannot_write(path, error) from None


def read_record(path: Path, key: Key, *, anew: bool = False) -> Recorded | None:
    """The logits [N, C] of a record, through a memory map; None where it is missing or damaged.

    Args:
        path: of the file.
        key: that it must have been written under.
        anew: read it whole even where it is large and a process of this node has done so.

    Raises:
        RunError: a file may be there, but the system cannot read it.
    """
    try:
        file = path.stat()
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source.read_buffer()).get_batch(0)
        about = {k.decode(): v.decode() for k, v in (batch.schema.metadata or {}).items()}
        column = batch.column(COLUMN)
        flat = column.values.to_numpy(zero_copy_only=True)
        (kind, width), shape = key.form.stored, (len(column), column.type.list_size)
        if about["key"] != key.digest or shape != (key.rows, width):
            return None  # the same numbers in other rows have the same checksum
        if len(flat) != key.rows * width or flat.dtype != kind:
            return None
        if not is_sound(file, flat, about["sha256"], anew=anew):
            return None
        return key.form.opened(flat.reshape(shape))
    except (OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        if unreadable(error):
            raise cannot_read(path, error) from None
        return None  # pyarrow's own errors are of these kinds


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error of a disk that is full or cannot be written."""
    return RunError(
        f"{path.parent}: cannot record teachers' outputs ({error.strerror or error}). Free the "
        "disk (`agrekd outputs prune`), or set outputs.store to another folder."
    )
