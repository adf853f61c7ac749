"""Forecasts beside measurements: the table of the workload `plan`."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def plan_conclusions(figures: dict[str, Any]) -> dict[str, float]:
    """Median errors, without sign, of all forecasts and of each fleet's."""
    errors = [[abs(cell["error"]) for cell in fleet["cells"]] for fleet in figures["fleets"]]
    found = {"median error of the forecast": statistics.median(itertools.chain(*errors))}
    for fleet, its in zip(figures["fleets"], errors, strict=True):
        found[f"median error, {_name(fleet)}"] = statistics.median(its)
    return found


def render_plan(figures: dict[str, Any], console: Console) -> None:
    """A row a cell: forecast, measurement, error."""
    console.print("\nplan: live steps, forecast and measured")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Fleet", "Teachers", "Actors", "Forecast, ms", "Measured, ms", "Error, %"):
        table.add_column(name, justify="left" if name == "Fleet" else "right", no_wrap=True)
    table.add_column("Held up by", no_wrap=True)
    for fleet in figures["fleets"]:
        for cell in fleet["cells"]:
            table.add_row(
                _name(fleet),
                str(cell["teachers"]),
                str(cell["actors"]),
                f"{cell['forecast_ms']:.1f}",
                f"{cell['measured_ms']:.1f}",
                f"{100 * cell['error']:+.0f}",
                cell["bottleneck"],
            )
    console.print(table)
    for fleet in figures["fleets"]:
        times, costs = fleet["times"], fleet["times"]["costs"]
        console.print(
            f"{_name(fleet)}: student {times['step_ms']:.1f} ms, inputs {times['inputs_ms']:.1f}, "
            f"call {costs['call_ms']:.2f}, actor {costs['actor_ms']:.2f}, "
            f"host {costs['host_ms']:.2f}, backbone {costs['backbone_ms']:.2f}, "
            f"weighing {costs['weigh_ms']:.2f}",
            soft_wrap=True,
        )
    for name, value in plan_conclusions(figures).items():
        console.print(f"{name}: {value:.3f}")


def _name(fleet: dict[str, Any]) -> str:
    return (
        f"{fleet['delay_ms']} ms, {fleet['backbones_per_actor']} an actor, "
        f"look-ahead {fleet['look_ahead']}"
    )
