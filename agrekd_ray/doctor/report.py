"""What the doctor says: a line a node, then the findings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from agrekd_ray.doctor.facts import Cluster, Node
from agrekd_ray.doctor.findings import ERROR, Finding, counted
from agrekd_ray.doctor.needs import Needs


def show(cluster: Cluster, needs: Needs, findings: Sequence[Finding], console: Console) -> None:
    """Print it: a table on a terminal, a plain line a finding elsewhere."""
    for node in cluster.nodes:
        _say(console, f"{node.name}: {_in_words(node)}")
    if needs.memory:
        disk = sum(needs.disk.values())
        _say(
            console,
            f"the job: {decimal(needs.memory)} of memory besides its data, {decimal(disk)} on disk",
        )
    if findings and console.is_terminal:
        console.print(_table(findings))
    for finding in findings if not console.is_terminal else ():
        _say(
            console,
            f"{finding.level}: {finding.node}: {finding.check}: {finding.problem}. "
            f"Remedy: {finding.remedy}.",
        )
    count = len(cluster.nodes)
    nodes = f"{count} node{'s' * (count != 1)}"
    if findings:
        worst = any(finding.level == ERROR for finding in findings)
        _say(console, f"{nodes}: {counted(findings)}", "red" if worst else "yellow")
    else:
        _say(console, f"{nodes}: nothing is wrong", "green")


def _in_words(node: Node) -> str:
    counted = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs"
    if node.facts is None:
        return f"{counted}; does not answer"
    facts = node.facts
    free = decimal(facts.memory_free) if facts.memory_free is not None else "unknown"
    versions = ", ".join(f"{name} {found}" for name, found in facts.versions.items())
    return f"{counted}, {free} of memory free, {versions}"


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Node", "Check", "Finding", "Remedy"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        cells = (finding.node, finding.check, finding.problem, finding.remedy)
        style = "red" if finding.level == ERROR else "yellow"
        table.add_row(*map(Text, cells), style=style)
    return table


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)
