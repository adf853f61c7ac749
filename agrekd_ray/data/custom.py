"""Any other data set: a function of the user's own that returns one."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, Literal

from pydantic import Field

from agrekd_ray.data.contract import check_contract
from agrekd_ray.data.dataset import Dataset
from agrekd_ray.errors import AgrekdError, DataError
from agrekd_ray.settings import LocalPath, Seed, Settings


class Custom(Settings):
    """A data set that a Python function makes.

    Naming a module here runs it, in every process of the job: that is what this is for. A job file
    from somebody else deserves the care that a program from them would.

    Attributes:
        name: `custom`.
        factory: `package.module:function`; called as `function(seed=..., **args)`, it returns a
            `Dataset` and gives equal ones in every process.
        args: further arguments of the function.
        folder: is put on the module search path first; null leaves the path as it is.
        seed: given to the function.
    """

    name: Literal["custom"]
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    args: dict[str, Any] = Field(default_factory=dict)
    folder: LocalPath | None = None
    seed: Seed = 0

    def open(self) -> Dataset:
        """What the function returns.

        Raises:
            DataError: there is no such module or function, it fails, or what it returns is no data
                set.
        """
        module_name, _, function_name = self.factory.partition(":")
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
        try:
            dataset = function(seed=self.seed, **self.args)
            check_contract(dataset, f"data.factory: {self.factory}")
        except AgrekdError:
            raise
        except Exception as error:
            raise DataError(f"data.factory: {self.factory} failed ({_said(error)}).") from error
        return dataset


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
