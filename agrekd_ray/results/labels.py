"""How reports name methods, splits and teachers: the one place for these words."""

from __future__ import annotations

ALL = "all samples"
"""Stands among the groups for all of them."""

_METHODS = {
    "one_hot": "One-hot",
    "one_hot_dfr": "One-hot + DFR",
    "deep_ensemble": "Deep ensemble (ERM)",
    "deep_ensemble_dfr": "Deep ensemble (DFR)",
    "teacher_vote": "Teachers, vote",
    "random": "Random",
    "aver": "AVER",
    "ae_kd": "AE-KD",
    "ca_mkd": "CA-MKD",
    "govern": "Govern",
    "agre_kd": "AGRE-KD",
    "winner": "Winner",
    "default": "Default",
}
_REFERENCES = {"one_hot", "one_hot_dfr", "deep_ensemble", "deep_ensemble_dfr", "teacher_vote"}
_FAMILIES = {"dfr": "debiased (DFR)", "erm": "biased (ERM)", "own": "own checkpoints"}


def label(method: str) -> str:
    """A method as people read it; the name itself, with spaces, where it has no label."""
    return _METHODS.get(method, method.replace("_", " "))


def is_distilled(method: str) -> bool:
    """Whether teachers taught the student; no for references and for votes."""
    return method not in _REFERENCES


def family(kind: str) -> str:
    """What the teachers of one `TeacherResult.kind` have in common, in words."""
    return _FAMILIES.get(kind, kind)
