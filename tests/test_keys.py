"""The reference of a job's keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from agrekd_ray.commands.keys import reference
from agrekd_ray.errors import AgrekdError

PAGE = Path(__file__).parent.parent / "docs/keys.md"


def test_the_page_is_what_the_command_prints() -> None:
    _, _, listed = PAGE.read_text().partition("\n## ")
    assert f"## {listed}" == reference() + "\n", "agrekd keys has other keys than docs/keys.md"


def test_a_key_has_default_values_and_meaning() -> None:
    assert reference("temperature") == (
        "## distillation\n\n- `distillation.temperature` = `4.0` (number > 0): the paper's tau, "
        "which softens the answers of teachers and student; 1 does not."
    )
    lines = reference("student.training.*").splitlines()
    assert any(
        line.startswith("- `student.training.epochs` = `15` (whole number ≥ 1 and ≤ 100,000): ")
        for line in lines
    )
    (name,) = reference("student.model.name").splitlines()[2:]
    assert name.startswith("- `student.model.name` (required; string): ")
    assert any('= `"sgd"` (`sgd` or `adamw`): ' in line for line in lines)
    size, *_ = [line for line in reference("data.size").splitlines() if "table" in line]
    assert size.startswith("- `data.size` = `224` (waterbirds, celeba, table; whole number ≥ 1): ")


def test_a_pattern_without_a_key_names_the_nearest() -> None:
    with pytest.raises(AgrekdError, match=r"Did you mean distillation\.temperature"):
        reference("distilation.temperature")
