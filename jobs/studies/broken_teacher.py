"""Makes a broken teacher for jobs/studies/guard.yaml, which names it in `ensemble.checkpoints`.

`broken_teacher.py FOLDER` makes one that was never trained, for coloured digits;
`broken_teacher.py FOLDER CHECKPOINT 3 4 5 6 7 8 9 0 1 2` another teacher with its classes in that
order, as a wrong list of classes would do. Both with Python, in this environment.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from agrekd_ray.data import open_dataset
from agrekd_ray.data.colored import ColoredDigits
from agrekd_ray.models import Classifier, Manifest, Model, build, load, save
from agrekd_ray.settings import fingerprint


def untrained() -> tuple[Classifier, Manifest]:
    """A three-layer CNN with the weights that training would begin with."""
    data = open_dataset(ColoredDigits(name="colored_digits"))
    model = Model(name="cnn_deep", args={"width": 16})
    made_by = {"kind": "untrained", "seed": 50}
    manifest = Manifest(
        model, data.shape, data.classes, fingerprint(made_by), data.fingerprint, made_by=made_by
    )
    return build(model, data.shape, len(data.classes), seed=50), manifest


def reordered(folder: Path, order: list[int]) -> tuple[Classifier, Manifest]:
    """A teacher that says of class i what it meant for class order[i]."""
    model, manifest = load(folder)
    if sorted(order) != list(range(len(manifest.classes))):
        sys.exit(f"the order must hold each of 0 to {len(manifest.classes) - 1} once")
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
    made_by = {"kind": "reordered", "of": manifest.fingerprint, "order": order}
    return model, replace(manifest, fingerprint=fingerprint(made_by), made_by=made_by)


if __name__ == "__main__":
    place, *of = sys.argv[1:]
    made = reordered(Path(of[0]), [int(number) for number in of[1:]]) if of else untrained()
    save(Path(place), *made)
