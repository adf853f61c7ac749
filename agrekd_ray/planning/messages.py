"""Bytes of what travels in a step; a test holds them to the pickles of the real messages."""

from __future__ import annotations

from collections.abc import Sequence

FLOAT, ID = 4, 8
QUESTION, REPLIES, ANSWER = 440, 230, 410
"""Bytes of a message without its numbers and names."""
NAME, VIEW = 3, 30
"""Bytes of a name besides its letters, and of a coming batch besides its ids."""


def question_bytes(names: Sequence[int], samples: int, classes: int, ahead: int) -> int:
    """Of a `Question`: lesson, ids of this batch and the coming ones, student's logits.

    Args:
        names: lengths of the members' names.
        samples: asked for.
        classes: C.
        ahead: coming batches that are named.
    """
    ids = (1 + ahead) * samples * ID + ahead * VIEW
    return QUESTION + sum(names) + NAME * len(names) + ids + samples * classes * FLOAT


def replies_bytes(names: Sequence[int], samples: int, classes: int, *, entropy: bool) -> int:
    """Of an actor's `Replies`: its teachers' gradients.

    Args:
        names: lengths of its teachers' names.
        samples: asked for.
        classes: C.
        entropy: whether the teachers' cross-entropies come along.
    """
    numbers = len(names) * samples * (classes + (1 if entropy else 0))
    return REPLIES + sum(names) + NAME * len(names) + numbers * FLOAT


def answer_bytes(teachers: int, samples: int, classes: int) -> int:
    """Of an `Answer`: gradient, loss and fallback by sample; weights, pulls, losses by teacher."""
    by_sample = classes * FLOAT + FLOAT + 1
    return ANSWER + samples * (by_sample + 2 * teachers * FLOAT) + teachers
