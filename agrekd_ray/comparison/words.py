"""What messages say of names that are not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from agrekd_ray.errors import listed


def near(word: str, known: Iterable[str]) -> str:
    """What was probably meant, or else what there is."""
    known = list(dict.fromkeys(known))
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lower, 1)
    if found:
        return f" Did you mean {lower[found[0]]}?"
    return f" There are: {listed(known)}." if known else ""
