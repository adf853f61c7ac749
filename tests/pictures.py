"""Tiny data sets of pictures in the forms that their makers publish, written by the tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Place = tuple[int, int, int]
"""Class, attribute, and split (0, 1, 2) of a sample."""


def spread(per_cell: Sequence[int] = (6, 4, 3)) -> list[Place]:
    """So many samples of each class and attribute in train, val and test, in mixed order."""
    every = [
        (label, attribute, split)
        for split, count in enumerate(per_cell)
        for label in (0, 1)
        for attribute in (0, 1)
        for _ in range(count)
    ]
    return [every[n] for n in np.random.default_rng(0).permutation(len(every))]


def picture(
    number: int,
    label: int,
    attribute: int,
    size: tuple[int, int] = (20, 16),
    encoding: str = "JPEG",
) -> bytes:
    """Its class is where it is bright, its attribute the colour; (width, height)."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (size[1], size[0], 3))
    half = slice(0, size[1] // 2) if label else slice(size[1] // 2, None)
    pixels[half, :, 2 * attribute] += 180
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, encoding, quality=95)
    return file.getvalue()


def waterbirds(folder: Path, places: Sequence[Place] | None = None) -> Path:
    """Waterbirds as published: `metadata.csv`, and pictures in a folder a species."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number, (label, attribute, split) in enumerate(places or spread()):
        name = f"{number % 3:03}.Bird/Bird_{number:04}.jpg"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, label, attribute))
        lines.append(f"{number + 1},{name},{label},{split},{attribute},/o/ocean/{number:08}.jpg")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


ATTRIBUTES = ("5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male", "Young")


def celeba(folder: Path, layout: str, places: Sequence[Place] | None = None) -> Path:
    """CelebA as published (`txt`), as tables (`csv`), or made for group robustness (`metadata`)."""
    places = places or spread()
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number + 1:06}.jpg" for number in range(len(places))]
    signs = [[-1, 2 * label - 1, 1, 2 * attribute - 1, -1] for label, attribute, _ in places]
    for number, (label, attribute, _) in enumerate(places):
        content = picture(number, label, attribute, (16, 20))
        (folder / "img_align_celeba" / names[number]).write_bytes(content)
    if layout == "txt":
        lines = [str(len(places)), " ".join(ATTRIBUTES) + " "]
        lines += [
            f"{name} {' '.join(f'{s:2}' for s in row)}"
            for name, row in zip(names, signs, strict=True)
        ]
        (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
        parts = [f"{name} {split}" for name, (_, _, split) in zip(names, places, strict=True)]
        (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    elif layout == "csv":
        lines = [",".join(("image_id", *ATTRIBUTES))]
        lines += [",".join((name, *map(str, row))) for name, row in zip(names, signs, strict=True)]
        (folder / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
        parts = ["image_id,partition"]
        parts += [f"{name},{split}" for name, (_, _, split) in zip(names, places, strict=True)]
        (folder / "list_eval_partition.csv").write_text("\n".join(parts) + "\n")
    else:
        name, header, order = METADATA[layout]
        lines = [header]
        for number, (label, attribute, split) in enumerate(places):
            values = {"y": label, "split": split, "a": attribute, "n": number}
            cells = [names[number] if key == "file" else str(values[key]) for key in order]
            lines.append(",".join(cells))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


METADATA = {
    "dfr": (
        "celeba_metadata.csv",
        "img_id,img_filename,y,split,place",
        ("n", "file", "y", "split", "a"),
    ),
    "subpop": ("metadata_celeba.csv", "id,filename,split,y,a", ("n", "file", "split", "y", "a")),
}
"""The tables made for group robustness: name, header, and what the columns hold."""
LAYOUTS = ("txt", "csv", *METADATA)

SPLITS = ("train", "val", "test")


def table(folder: Path, places: Sequence[Place] | None = None, *, groups: bool = False) -> Path:
    """A folder of pictures and `table.csv` with path, label, split and, if wanted, sky."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split" + (",sky" if groups else "")]
    for number, (label, attribute, split) in enumerate(places or spread()):
        (folder / f"{number}.jpg").write_bytes(picture(number, label, attribute))
        line = f"{number}.jpg,{('cat', 'dog')[label]},{SPLITS[split]}"
        lines.append(line + (f",{('clear', 'grey')[attribute]}" if groups else ""))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def small(name: str, prepared: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a data set of tiny pictures."""
    counts = {} if name == "table" else {"counts": "any"}
    return {"name": name, "size": 8, "resize": 10, "prepared": str(prepared), **counts, **settings}


BIRDS = ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")
FACES = ("not blond, female", "not blond, male", "blond, female", "blond, male")
"""Groups, in the order of their numbers."""
