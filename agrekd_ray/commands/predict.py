"""`agrekd predict`: classes and probabilities of pictures or texts, as CSV."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from agrekd_ray.errors import RunError
from agrekd_ray.trained import open_student


def predict(
    folder: Path,
    sources: Sequence[Path],
    output: Path | None,
    column: str | None,
    images: Path | None,
    job: Path | None,
) -> None:
    """Write a row a sample to a file, or to standard output.

    Args:
        folder: of the student.
        sources: see `TrainedStudent.predict_files`, as for `column` and `images`.
        output: the CSV file; None is standard output.
        column: of a table.
        images: folder of a table's pictures.
        job: see `open_student`.

    Raises:
        AgrekdError: there is no such student, a sample is broken, or the file cannot be written.
    """
    table = open_student(folder, job).predict_files(*sources, column=column, images=images)
    if output is None:
        table.to_csv(sys.stdout, index=False)
        return
    try:
        table.to_csv(output, index=False)
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror or error}).") from None
    counts = ", ".join(f"{name} {count:,}" for name, count in table["class"].value_counts().items())
    print(f"{output}: {len(table):,} samples: {counts}")
