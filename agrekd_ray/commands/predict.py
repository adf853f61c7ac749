"""`agrekd predict`: classes and probabilities of pictures or texts, as CSV."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.trained import open_student


def predict(
    folder: Path,
    sources: Sequence[Path],
    output: Path | None,
    column: str | None,
    images: Path | None,
    job: Path | None,
    console: Console,
) -> None:
    """Write a row a sample to a file, or to standard output.

    Args:
        folder: of the student.
        sources: see `TrainedStudent.predict_files`, as for `column` and `images`.
        output: the CSV file; None is standard output.
        column: of a table.
        images: folder of a table's pictures.
        job: see `open_student`.
        console: for progress, where it is a terminal and the rows go to a file.

    Raises:
        AgrekdError: there is no such student, a sample is broken, or the file cannot be written.
    """
    wanted = functools.partial(
        open_student(folder, job).predict_files, *sources, column=column, images=images
    )
    if output is None:
        wanted().to_csv(sys.stdout, index=False)
        return
    table = _shown(wanted, console) if console.is_terminal else wanted()
    try:
        table.to_csv(output, index=False)
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror or error}).") from None
    counts = ", ".join(f"{name} {count:,}" for name, count in table["class"].value_counts().items())
    print(f"{output}: {len(table):,} samples: {counts}")


def _shown(predict: Callable[..., pd.DataFrame], console: Console) -> pd.DataFrame:
    """Predictions, with a line of progress while they are made."""
    shown = 0

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if not shown:
            display.stage("predict", total, "samples")
        display.advance("", done - shown)
        shown = done

    with Display(console) as display:
        display.stage("predict", 0, "")
        return predict(progress=progress)
