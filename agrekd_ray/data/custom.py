"""Any other data set: a function of the user's own that returns one, which is checked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field

from agrekd_ray.core.registry import Registry
from agrekd_ray.data.dataset import DFR, SELECT, TEST, TRAIN, Dataset, Groups, Prepared
from agrekd_ray.data.in_memory import InMemory
from agrekd_ray.errors import AgrekdError, DataError, near
from agrekd_ray.settings import LocalPath, Seed, Settings

_FIELDS = ("classes", "shape", "fingerprint", "views_fingerprint", "splits", "size", "groups")
_METHODS = ("view", "inputs", "labels")


FACTORIES: Registry[Callable[..., Any]] = Registry("data set")
"""Functions of plugins that make a data set, by name."""


def dataset(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function of `seed` and further arguments as a data set.

    What it returns is told in `Custom.factory`. A job names it: `data: {name: NAME, ...}`.

    Args:
        name: as jobs write it.

    Raises:
        ValueError: the name is another's.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FACTORIES.add(name, function, function)
        return function

    return register


def of_factory(data: Any) -> Any:
    """A job's raw `data` that names a plugin's data set, as a `custom` one; all else as it is."""
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in FACTORIES:
        return data
    args = {key: value for key, value in data.items() if key not in ("name", "seed")}
    seed = {"seed": data["seed"]} if "seed" in data else {}
    return {"name": "custom", "factory": name, "args": args, **seed}


class Custom(Settings):
    """A data set that a Python function makes.

    Naming a module here runs it, in every process of the job: that is what this is for. A job file
    from somebody else deserves the care that a program from them would.

    Attributes:
        name: `custom`.
        factory: `package.module:function`, or the name of a plugin's data set; called as
            `function(seed=..., **args)`, it returns a `Dataset`, or `{train, val, test}` of
            samples, labels and groups, and gives equal ones in every process.
        args: further arguments of the function.
        folder: is put on the module search path first; null leaves the path as it is.
        seed: given to the function.
    """

    name: Literal["custom"]
    factory: Annotated[str, Field(pattern=r"^([A-Za-z_][\w.]*:)?[A-Za-z_]\w*$")]
    args: dict[str, Any] = Field(default_factory=dict)
    folder: LocalPath | None = None
    seed: Seed = 0

    def open(self) -> Dataset:
        """What the function returns.

        Raises:
            DataError: there is no such module or function, it fails, or what it returns is no data
                set.
        """
        function = FACTORIES.get(self.factory) or self._imported()
        try:
            made = function(seed=self.seed, **self.args)
            if isinstance(made, Mapping):
                made = InMemory.for_job(made, self.seed)
            check_contract(made, f"data.factory: {self.factory}")
        except AgrekdError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise DataError(f"data.factory: {self.factory} failed ({_said(error)}).") from error
        return cast(Dataset, made)

    def _imported(self) -> Callable[..., Any]:
        """The function out of its module."""
        module_name, colon, function_name = self.factory.partition(":")
        if not colon:
            raise DataError(
                f"data.factory: no plugin has a data set {self.factory!r}; a function is named "
                f"package.module:function.{near(self.factory, FACTORIES)}"
            )
        if self.folder is not None and str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # a user's module may raise anything
            hint = "" if self.folder else " Set data.folder to the folder that the module is in."
            raise DataError(
                f"data.factory: {module_name} cannot be imported ({_said(error)}).{hint}"
            ) from None
        function = getattr(module, function_name, None)
        if not callable(function):
            raise DataError(f"data.factory: {module_name} has no function {function_name}.")
        return cast(Callable[..., Any], function)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def check_contract(dataset: Any, source: str) -> None:
    """Refuse an object that is no `Dataset`.

    Args:
        dataset: the object.
        source: of it, in words.

    Raises:
        DataError: says all that is missing or wrong.
    """
    kind = type(dataset)
    # On the class: asking the object for a fingerprint could prepare a whole data set.
    missing = [
        name
        for name in (*_FIELDS, *_METHODS)
        if not hasattr(kind, name) and name not in getattr(dataset, "__dict__", {})
    ]
    faults = [f"no {', no '.join(missing)}"] if missing else list(_faults(dataset))
    if faults:
        raise DataError(
            f"{source}: {kind.__name__} is no data set: {'; '.join(faults)}. See "
            "agrekd_ray.data.dataset.Dataset for what one has."
        )


def _faults(dataset: Any) -> Iterator[str]:
    size, classes, splits = dataset.size, dataset.classes, dataset.splits
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        yield "classes is no tuple of names"
        return
    if not isinstance(dataset.shape, tuple) or not all(isinstance(n, int) for n in dataset.shape):
        yield "shape is no tuple of whole numbers"
    if not isinstance(splits, dict) or set(splits) != {TRAIN, DFR, SELECT, TEST}:
        yield f"splits is no dict with {TRAIN}, {DFR}, {SELECT} and {TEST}"
        return
    for name, ids in splits.items():
        if not isinstance(ids, np.ndarray) or ids.dtype.kind != "i" or ids.ndim != 1:
            yield f"splits[{name!r}] is no array of ids"
        elif not len(ids):
            yield f"splits[{name!r}] is empty"
        elif ids.min() < 0 or ids.max() >= size or not (np.diff(ids) > 0).all():
            yield f"splits[{name!r}] are not sorted ids below {size}, each once"
        else:
            yield from _labels(dataset, name, ids)
    yield from _groups(dataset.groups, size)
    if not isinstance(dataset.view(0), int):
        yield "view(0) is no whole number"
    if not isinstance(dataset, Prepared):  # asking for inputs would prepare all of them
        yield from _inputs(dataset)


def _labels(dataset: Any, name: str, ids: np.ndarray) -> Iterator[str]:
    labels_B = dataset.labels(ids[:100])
    if not isinstance(labels_B, torch.Tensor) or labels_B.dtype != torch.int64:
        yield f"labels of {name} are no int64 tensor"
    elif labels_B.shape != (len(ids[:100]),):
        yield f"labels of {len(ids[:100])} ids of {name} have the shape {tuple(labels_B.shape)}"
    elif int(labels_B.min()) < 0 or int(labels_B.max()) >= len(dataset.classes):
        yield f"labels of {name} are not below {len(dataset.classes)}, the number of classes"


def _groups(groups: Any, size: int) -> Iterator[str]:
    if not isinstance(groups, Groups):
        yield "groups is no agrekd_ray.data.Groups (Groups.unknown where there are none)"
        return
    for name, kinds_N, names in (
        ("attribute_N", groups.attribute_N, groups.attributes),
        ("group_N", groups.group_N, groups.names),
    ):
        if kinds_N.shape != (size,) or kinds_N.dtype.kind != "i":
            yield f"groups.{name} is no array of {size} whole numbers"
        elif size and not 0 <= kinds_N.min() <= kinds_N.max() < len(names):
            yield f"groups.{name} are not below {len(names)}, the number of names"
    member_NK = groups.overlapping_NK
    wanted = (size, len(groups.overlapping))
    if member_NK is not None and (member_NK.shape != wanted or member_NK.dtype != np.bool_):
        yield f"groups.overlapping_NK is not bool {list(wanted)}"


def _inputs(dataset: Any) -> Iterator[str]:
    if not isinstance(dataset.fingerprint, str) or not isinstance(dataset.views_fingerprint, str):
        yield "fingerprint or views_fingerprint is no text"
    ids = dataset.splits[TRAIN][:2]
    for epoch in (None, 0):
        inputs = dataset.inputs(ids, epoch)
        wanted = (len(ids), *dataset.shape)
        if not isinstance(inputs, torch.Tensor) or inputs.shape != wanted:
            yield f"inputs(ids, {epoch}) are no tensor of the shape {wanted}"
        elif inputs.dtype not in (torch.float32, torch.int64):
            yield f"inputs(ids, {epoch}) are {inputs.dtype}; images are float32, tokens int64"
        elif inputs.dtype == torch.float32 and not 0 <= inputs.min() <= inputs.max() <= 1:
            yield f"inputs(ids, {epoch}) are not in [0, 1]; models bring their own normalisation"
