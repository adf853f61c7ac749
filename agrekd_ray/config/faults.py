"""What is wrong with a job or a search, in a user's words."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agrekd_ray.data import DataSettings
from agrekd_ray.data.custom import FACTORIES
from agrekd_ray.errors import AgrekdError, nearest
from agrekd_ray.passwords import without_password
from agrekd_ray.settings import A_BLOCK, A_NUMBER, A_WORD, Settings


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a job.

    Attributes:
        key: dotted path.
        value: as given, in words; empty where it is missing.
        problem: what is wrong and what is allowed.
        nearest: the valid name that was probably meant, or None.
    """

    key: str
    value: str
    problem: str
    nearest: str | None = None

    def __str__(self) -> str:
        given = f" = {self.value}" if self.value else ""
        hint = f" Did you mean {self.nearest}?" if self.nearest else ""
        return without_password(f"{self.key}{given}: {self.problem}.{hint}")


class JobError(AgrekdError):
    """A job with faults, all of them.

    Attributes:
        faults: in the order of the job.
    """

    exit_code = 2

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {f}" for f in faults)]))


def elsewhere(found: Sequence[Fault], known: Sequence[Fault]) -> list[Fault]:
    """Those faults whose key neither is one that is known to be faulty, nor a part of it."""
    return [
        fault
        for fault in found
        if not any(
            f"{fault.key}.".startswith(f"{other.key}.")
            or f"{other.key}.".startswith(f"{fault.key}.")
            for other in known
        )
    ]


def faults_of(error: ValidationError, model: type[Settings]) -> list[Fault]:
    """What pydantic found, in a user's words.

    Args:
        error: of the validation.
        model: that the values were to be of.
    """
    details = error.errors(include_url=False)
    faulty = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}
    return [
        _fault(detail, model)
        for detail in details
        # pydantic counts a list's faulty entries as missing ones
        if not (detail["type"] == "too_short" and detail["loc"] in faulty)
    ]


_WORDS = {
    "model_type": "must be a mapping (a block of keys)",
    "model_attributes_type": "must be a mapping (a block of keys)",
    "dict_type": "must be a mapping (a block of keys)",
    "invalid_key": "a key must be text",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entry",
    "path_type": "must be a path",
    "string_type": "must be text (a number in quotes is text)",
}
"""Pydantic's kinds of error that speak of Python, in a job's words."""


def _fault(detail: ErrorDetails, model: type[Settings]) -> Fault:
    """A fault in a job's words out of pydantic's error."""
    loc = list(detail["loc"])
    choice = None
    if len(loc) > 1 and loc[0] == "data" and loc[1] in _tags():
        choice = str(loc.pop(1))  # pydantic names the union's choice; a job does not
    loc = [part for part in loc if part not in (A_NUMBER, A_WORD, A_BLOCK)]
    key = ".".join(map(str, loc))
    kind, context = detail["type"], detail.get("ctx", {})
    value = detail["input"]
    shown = str(value) if isinstance(value, str | int | float | bool) else ""
    if value is None and kind != "missing":
        shown = "null"
    if kind == "extra_forbidden":
        names = names_at(loc[:-1], model, choice)
        near = nearest(str(loc[-1]), names)
        problem = f"unknown key; known here: {', '.join(names)}"
        return Fault(key, shown, problem, near and ".".join([*map(str, loc[:-1]), near]))
    if kind == "missing":
        return Fault(key, "", "is missing")
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = [
            word.strip("' ")
            for word in re.split(r", | or ", context.get("expected") or context["expected_tags"])
        ]
        if kind == "union_tag_invalid":
            allowed += FACTORIES
        near = nearest(str(context.get("tag", value)), allowed, 0.5)
        if kind == "union_tag_invalid":
            key, shown = f"{key}.name", str(context["tag"])
        return Fault(key, shown, f"must be one of {', '.join(allowed)}", near)
    if kind == "union_tag_not_found":
        return Fault(f"{key}.name", "", f"is missing; one of {', '.join(_tags())}")
    if kind in _WORDS:
        one = f"; of one, [{shown}]" if kind == "tuple_type" and shown else ""
        return Fault(key, shown, _WORDS[kind].format(**context) + one)
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "string_pattern_mismatch":
        message = "letters, digits, '_', '-' and '.', beginning with a letter or digit"
    problem = message if kind == "value_error" and "number" not in message else f"must be {message}"
    return Fault(key, shown, problem.rstrip("."))


def _tags() -> list[str]:
    return [_tag(option) for option in _models_in(DataSettings)]


def _tag(option: type[Settings]) -> str:
    return str(typing.get_args(option.model_fields["name"].annotation)[0])


def _models_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def names_at(
    loc: Sequence[str | int], model: type[Settings], choice: str | None = None
) -> list[str]:
    """Known keys of the block at a path.

    Args:
        loc: the path.
        model: of the whole.
        choice: name of the job's data set, where the block depends on it.
    """
    models: list[type[Settings]] = [model]
    free = False  # the block's own keys are the user's
    for part in loc:
        if free:
            free = False
            continue
        fields = [m.entries()[str(part)] for m in models if str(part) in m.entries()]
        models = [model for field in fields for model in _models_in(field.annotation)]
        free = any(typing.get_origin(field.annotation) is dict for field in fields)
        if part == "data" and choice:
            models = [model for model in models if _tag(model) == choice]
    return sorted({name for model in models for name in model.entries()}) if not free else []
