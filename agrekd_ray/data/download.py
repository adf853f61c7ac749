"""MNIST and Fashion-MNIST, fetched by torchvision from where their makers and keepers put them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

from agrekd_ray.errors import DataError

Fetched = Literal["mnist", "fashion_mnist"]


def fetch_idx(folder: Path, which: Fetched) -> None:
    """Put the four IDX files into a folder, those that it does not have already.

    Args:
        folder: made where it is missing.
        which: data set.

    Raises:
        DataError: there is no network, or the folder cannot be written.
    """
    import torchvision.datasets as published

    kind = {"mnist": published.MNIST, "fashion_mnist": published.FashionMNIST}[which]

    def is_there(name: str) -> bool:
        return (folder / name).exists() or (folder / f"{name}.gz").exists()

    if all(is_there(Path(name).stem) for name, _ in kind.resources):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision's own progress is for a terminal.
        shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
        # Beside the files that it is for, so that each can take its place at once.
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(shown),
        ):
            kind(place, download=True)
            for path in sorted(Path(place).glob("*/raw/*-ubyte")):
                if not is_there(path.name):
                    os.replace(path, folder / path.name)
    except (OSError, RuntimeError) as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise DataError(
            f"data.download: {which} cannot be fetched into {folder} ({reason}). Without a "
            "network, put the four IDX files there (plain or .gz) and set data.download=null."
        ) from None
