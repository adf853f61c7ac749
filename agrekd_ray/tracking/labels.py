"""How reports name methods, splits and teachers: the one place for these words."""

from __future__ import annotations

_METHODS = {
    "one_hot": "One-hot",
    "one_hot_dfr": "One-hot + DFR",
    "deep_ensemble_erm": "Deep ensemble (ERM)",
    "deep_ensemble_dfr": "Deep ensemble (DFR)",
    "teachers_vote": "Teachers, vote",
    "random": "Random",
    "aver": "AVER",
    "ae_kd": "AE-KD",
    "ca_mkd": "CA-MKD",
    "govern": "Govern",
    "agre_kd": "AGRE-KD",
}
_ALIASES = {"deep_ensemble": "deep_ensemble_erm", "vote": "teachers_vote"}
_WITHOUT_TEACHING = {
    "one_hot",
    "one_hot_dfr",
    "deep_ensemble_erm",
    "deep_ensemble_dfr",
    "teachers_vote",
}
_FAMILIES = {"dfr": "debiased (DFR)", "erm": "biased (ERM)", "own": "own checkpoints"}


def label(method: str) -> str:
    """A method as people read it; the name itself, with spaces, where it has no label."""
    return _METHODS.get(_ALIASES.get(method, method), method.replace("_", " "))


def is_distilled(method: str) -> bool:
    """Whether teachers taught the student; no for references and for votes."""
    return _ALIASES.get(method, method) not in _WITHOUT_TEACHING


def family(kind: str) -> str:
    """What the teachers of one `Member.kind` have in common, in words."""
    return _FAMILIES.get(kind, kind)
