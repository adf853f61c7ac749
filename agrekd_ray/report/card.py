"""A model card: what a student is, what it was measured on, and where it is weak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agrekd_ray.models import Manifest
from agrekd_ray.report.labels import labels_used
from agrekd_ray.report.tables import Column, Table, markdown, texts
from agrekd_ray.results import Metrics, StudentResult
from agrekd_ray.results.frame import epochs, last_weights
from agrekd_ray.results.many import are_many, ends, ends_in_words
from agrekd_ray.results.metrics import METRICS, is_distilled, label, setting_text

_FEW = 30
"""Samples of a group, below which an accuracy says little."""


def model_card(
    name: str, manifest: Manifest, outcome: StudentResult | None, settings: dict[str, Any]
) -> str:
    """The card of a student, as Markdown.

    Args:
        name: of the model, its first heading.
        manifest: of its checkpoint.
        outcome: what was measured of it; None where its run has gone.
        settings: of the resolved job that made it; empty where that has gone.
    """
    method = str(manifest.made_by.get("method", ""))
    labels = ""
    if outcome is not None and "ensemble" in settings:
        known = any(metrics.groups_known for metrics in outcome.splits.values())
        line = labels_used({**settings, "methods": [method]}, groups_known=known)
        labels = f"L{line[1:]}."
    taught = "distilled from an ensemble of teachers" if is_distilled(method) else "trained"
    seed = manifest.made_by.get("seed")
    by = f" by {label(method)}, seed {seed}" if method else ""
    parts = [
        f"# {name}",
        f"A classifier of {len(manifest.classes)} classes ({', '.join(manifest.classes)}), {taught}"
        f"{by}. It takes samples of the shape {list(manifest.shape)} and gives logits.",
        _block("Data", settings.get("data"), manifest.data),
        labels,
    ]
    if outcome is not None:
        parts += [_measured(split, outcome.splits[split]) for split in outcome.splits]
        parts.append(_teachers(outcome))
    parts.append(_block("Architecture", manifest.model.model_dump(mode="json")))
    parts.append(_block("Training", manifest.made_by.get("training")))
    parts.append(_block("Distillation", manifest.made_by.get("lesson")))
    parts.append(_limits(outcome.splits.get("test") if outcome else None))
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(title: str, values: Any, fingerprint: str = "") -> str:
    """Settings, a line each."""
    if not isinstance(values, dict) or not values:
        return ""
    lines = [f"- {key}: {setting_text(value)}" for key, value in values.items()]
    if fingerprint:
        lines.append(f"- fingerprint: {fingerprint}")
    return "\n".join([f"## {title}", "", *lines])


def _measured(split: str, metrics: Metrics) -> str:
    """All accuracies on a split, and those by group."""
    every = texts(
        {"metric": "Metric", "value": "%"},
        [(METRICS[name].label, f"{100 * share:.1f}") for name, share in metrics.scalars().items()],
        ("value",),
    )
    groups = metrics.groups if metrics.groups_known else {}
    shown = ends(groups)
    by_group = texts(
        {"group": "Group", "samples": "Samples", "value": "Accuracy, %"},
        [
            (name, f"{metrics.counts.get(name, 0):,}", f"{100 * a:.1f}")
            for name, a in ((name, groups[name]) for name in shown)
        ],
        ("samples", "value"),
    )
    among = f"Groups, {ends_in_words(len(groups))}:" if len(shown) < len(groups) else ""
    by_name = _table(by_group) if groups else ""
    parts = [f"## Measured on `{split}`", _table(every), among, by_name]
    return "\n\n".join(part for part in parts if part)


def _teachers(outcome: StudentResult) -> str:
    """Who taught whom, in the last epoch."""
    if not outcome.history or not outcome.history[-1].weights:
        return ""
    last = replace(outcome, history=outcome.history[-1:])
    weights = last_weights(epochs([last])).round(3)
    if are_many(len(weights), len(weights.columns)):
        return f"## Teachers\n\n{outcome.teachers} teachers."
    names = [str(teacher) for teacher in weights.columns]
    rows = [(str(group), *map(str, row)) for (_, group), row in weights.iterrows()]
    table = texts({"group": "Training group", **dict(zip(names, names, strict=True))}, rows, names)
    text = f"{outcome.teachers} teachers; the mean weight of each in the last epoch:"
    return "\n\n".join(["## Teachers", text, _table(table)])


def _table(columns: list[Column]) -> str:
    return markdown(Table("", columns))


def _limits(tested: Metrics | None) -> str:
    """What the figures do not say, and what they say against it."""
    lines = []
    if tested is not None and tested.groups:
        worst = min(tested.groups, key=lambda group: tested.groups[group])
        kind = "group" if tested.groups_known else "class"
        lines.append(
            f"It is right in {100 * tested.accuracy:.1f} % of all test samples, but in "
            f"{100 * tested.groups[worst]:.1f} % of the {kind} {worst}."
        )
        if not tested.groups_known:
            lines.append("The data name no groups: what it relies on besides the class is unknown.")
        rare = [name for name, count in tested.counts.items() if count < _FEW]
        if are_many(len(rare)):
            kinds = "groups" if tested.groups_known else "classes"
            lines.append(f"Of {len(rare):,} {kinds} there are less than {_FEW} test samples each.")
        for group in () if are_many(len(rare)) else rare:
            lines.append(
                f"Of {group} there are {tested.counts[group]} test samples, too few to say."
            )
        lines.append(
            f"Its confidence is {100 * tested.ece:.1f} points off on average (ECE, 15 bins)."
        )
    if tested is None:
        lines.append("Nothing is known of how well it does: its run has gone.")
    lines.append(
        "Groups that were not measured may fare worse, and so may data of another source than the "
        "test split's. It has no class for what is none of its classes."
    )
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines)])
