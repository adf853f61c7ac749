"""Parts by name: strategies, measures, selection rules, data sets, models."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

Part = TypeVar("Part")
_OURS = __name__.partition(".")[0]


class Registry(dict[str, Part]):
    """Parts of one kind by name, ours and those of plugins, in the order they were registered.

    Args:
        kind: of the parts, in words.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self._makers: dict[str, Callable[..., Any]] = {}

    def add(self, name: str, part: Part, maker: Callable[..., Any]) -> None:
        """Register a part; a module that is imported anew, or a cell that is run again, replaces.

        Args:
            name: as jobs write it.
            part: what is looked up.
            maker: the function that was decorated.

        Raises:
            ValueError: no name that a job can write, or another module's.
        """
        if not re.fullmatch(r"[a-z_]\w*", name):
            raise ValueError(f"{self._kind} {name!r}: a name is of letters, digits and _")
        other = self._makers.get(name, maker).__module__
        if other != maker.__module__:
            raise ValueError(f"{self._kind} {name!r} is {other}'s already; take another name")
        self[name], self._makers[name] = part, maker

    def maker(self, name: str) -> Callable[..., Any] | None:
        """The function of a user's own that stands behind a name; None for ours."""
        maker = self._makers[name]
        return None if maker.__module__.partition(".")[0] == _OURS else maker
