"""Checkpoints as any script might have written them: all give the weights that went in."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from ..test_weights import network, random_wrapping, read, same


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_many_wrappings_give_the_same_weights(seed: int, tmp_path: Path) -> None:
    whole = network(seed)
    net, _ = read(tmp_path, random_wrapping(Random(seed), whole.state_dict()))
    assert same(net, whole)
