"""The base of every block of settings, and the blocks that several parts share.

A block of settings stands beside the code that it steers; `config.py` puts the blocks together
to a job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticKnownError


class Settings(BaseModel):
    """Immutable, without unknown keys, without NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def entries(cls) -> dict[str, FieldInfo]:
        """What a file may say in such a block, by key."""
        return cls.model_fields


class OpenSettings(Settings):
    """A block with further keys for what plugins have registered when it is read.

    Their values are kept as they are written to files.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def of_plugins(cls) -> type[Settings]:
        """The further keys, as a block."""
        raise NotImplementedError

    @classmethod
    def entries(cls) -> dict[str, FieldInfo]:
        """See `Settings.entries`; with those of plugins."""
        return {**super().entries(), **cls.of_plugins().model_fields}

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, values: Any, checked: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(values, dict):
            return checked(values)
        found: list[InitErrorDetails] = []
        settings, further = None, None
        try:
            settings = checked({key: values[key] for key in values if key in cls.model_fields})
        except ValidationError as error:
            found += error.errors()  # type: ignore[arg-type]
        try:
            others = {key: values[key] for key in values if key not in cls.model_fields}
            further = cls.of_plugins().model_validate(others)
        except ValidationError as error:
            found += error.errors()  # type: ignore[arg-type]
        if settings is None or further is None:
            raise ValidationError.from_exception_data(cls.__name__, found)
        settings.__pydantic_extra__.update(further.model_dump())
        return settings

    def block(self, name: str) -> dict[str, Any]:
        """What a block in this one says, by key; empty where there is no such block."""
        block = getattr(self, name, {})
        return block.model_dump() if isinstance(block, Settings) else dict(block)


def options_of(
    name: str, function: Callable[..., Any], defaults: Mapping[str, Any]
) -> type[Settings]:
    """A block of options of a registered function, checked by their annotations.

    Args:
        name: that the function is registered under.
        function: whose arguments the options are.
        defaults: of the options, by name.
    """
    kinds = get_type_hints(function, include_extras=True)
    fields: Any = {key: (kinds.get(key, Any), default) for key, default in defaults.items()}
    made: type[Settings] = create_model(f"Options of {name}", __base__=Settings, **fields)
    return made


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number, not {str(value).lower()}")
    return value


def _false_is_off(value: Any) -> Any:
    return "off" if value is False else value


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[Any], Any]:
    """A check that a value is one of the names that are registered when it is looked at."""

    def check(value: Any) -> Any:
        if value not in (known := tuple(names())):
            raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, known))})
        return value

    return check


AUTO: Literal["auto"] = "auto"


def _gpus(value: Any) -> Any:
    if value == AUTO:
        return AUTO
    try:
        share = float(_no_bool(value))
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("must be auto, or a share of a GPU, 0 to 1: a process uses one GPU")
    return share


def absolute(path: Path) -> Path:
    """The path from the root on, `~` being the home.

    Raises:
        ValueError: there is no such home, or no file that holds the path could be read again.
    """
    try:
        path = path.expanduser().absolute()
        str(path).encode()
    except RuntimeError as error:  # ~nobody
        raise ValueError(f"a folder; {error}") from None
    except UnicodeEncodeError:  # bytes of another encoding
        raise ValueError("a path in UTF-8; rename the folder or file") from None
    return path


MOST_SEEDS = 2**31
"""A seed is below it."""
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, lt=2**31)]
Whole = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**31)]
Seed = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=MOST_SEEDS)]
Share = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0)]
Momentum = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]
Gpus = Annotated[
    float | Literal["auto"], BeforeValidator(lambda gpus: AUTO if gpus is None else _gpus(gpus))
]
"""GPUs of a process: a share of one, 0 for none; `auto`, or null, takes what the cluster has."""
GpusIfAny = Annotated[
    float | Literal["auto"] | None,
    BeforeValidator(lambda gpus: None if gpus is None else _gpus(gpus)),
]
"""The same, where null leaves it to another key."""
Numbers = Literal["float32", "bfloat16"]
"""What a forward pass computes in; `bfloat16` where that is exact enough (mixed precision)."""
Compile = Annotated[Literal["off", "default", "cuda_graphs"], BeforeValidator(_false_is_off)]
"""Whether and how torch.compile is used; `off` is a truth value to YAML 1.1."""
Precision = Literal["auto"] | Numbers
"""`auto` is bfloat16 on a GPU that has it, and float32 elsewhere."""
LocalPath = Annotated[Path, AfterValidator(absolute)]
A_NUMBER, A_WORD, A_BLOCK = "a number", "a word", "a block"
"""How pydantic names the choices of a union (`WholeOrAll`) in a path; no key has a space."""
WholeOrAll = Annotated[
    Annotated[Whole, Tag(A_NUMBER)] | Annotated[Literal["all"], Tag(A_WORD)],
    Discriminator(lambda value: A_WORD if isinstance(value, str) else A_NUMBER),
]


def a_number(gpus: float | Literal["auto"] | None) -> float:
    """GPUs of a process, where the nodes have been looked at (`run.gpus`)."""
    if gpus is None or gpus == AUTO:
        raise TypeError("gpus: auto has not been made a number yet")
    return gpus


class Precise(Settings):
    """A block with the precision of forward passes; an earlier version called it `autocast`.

    Attributes:
        precision: of the forward passes.
    """

    precision: Precision = "auto"

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_version(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "autocast" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "autocast"}
        for old, precision in ((None, "float32"), ("none", "float32"), ("bfloat16", "bfloat16")):
            if values["autocast"] == old:
                return {**rest, "precision": precision}
        return values


class Training(Precise):
    """How one model is trained; the same vocabulary for teachers and students.

    Attributes:
        epochs: passes over the training split.
        batch_size: samples a step, over all workers.
        optimizer: `sgd` or `adamw`.
        learning_rate: at the peak of the schedule.
        momentum: of SGD; AdamW ignores it.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: of the learning rate after the warm-up, to zero for `cosine` and `linear`.
        warmup_epochs: linear warm-up, in epochs (fractions allowed).
        clip_norm: largest norm of the gradient, or null for no clipping.
        precision: of the forward passes in training and in evaluation.
        compile: `default` has torch.compile write kernels for the model's steps, `cuda_graphs` also
            replays them without the host's help; the first steps take minutes.
        deterministic: a GPU takes kernels alone that repeat themselves to the last bit.
        save_every_minutes: between states within an epoch, of which the last one is what a killed
            training goes on from. Every epoch ends in one; a shorter one has no other. The weights
            are the same whatever it is.
    """

    epochs: Annotated[Count, Field(le=100_000)] = 15
    batch_size: Count = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.05
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    clip_norm: Positive | None = None
    compile: Compile = "off"
    deterministic: bool = False
    save_every_minutes: Positive = 10

    @model_serializer(mode="wrap")
    def _dumped(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if info.context == FINGERPRINT:  # as they were before there were such keys
            exact = values.pop("precision") != "bfloat16"
            values["autocast"] = "none" if exact else "bfloat16"
            del values["save_every_minutes"]
            for key in ("compile", "deterministic"):
                if values[key] == type(self).model_fields[key].default:
                    del values[key]
        return values


FINGERPRINT = "fingerprint"
"""The context in which settings are dumped for a fingerprint."""
NodeResources = dict[str, Positive]
"""Custom resources of Ray that a process takes, by name."""
NodeLabels = dict[str, str]
"""Labels that a node must have, in Ray's notation: `a`, `!a`, `in(a,b)` or `!in(a,b)` by key."""


def fingerprint(*parts: Any) -> str:
    """SHA-256, as hexadecimal, of anything made of JSON values, settings and paths.

    Equal values give equal fingerprints in every process and on every machine.
    """
    text = json.dumps(parts, sort_keys=True, default=_plain, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", context=FINGERPRINT)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no fingerprint for {type(value).__name__}")
