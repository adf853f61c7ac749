"""An exported program as plain data: what `torch.export` wrote, without what could run code.

`torch.export.load` unpickles, and evaluates expressions: a file from an untrusted hand can run
code in it. So a program is read that way once, where its owner vouches for it, and kept as a list
of calls to PyTorch's own operators (JSON) beside its tensors (safetensors). What is kept needs no
trust any more: it names operators of `torch.ops.aten` and arithmetic, and nothing else is called.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agrekd_ray.errors import CheckpointError, first_line

EXPORTED = "exported"
"""Name of the architecture in a manifest."""
_ARITHMETIC = {
    name: getattr(operator, name)
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg"),
        *("eq", "ne", "lt", "le", "gt", "ge", "getitem"),
    )
}
_FORBIDDEN = {"from_file"}
"""Operators that touch more than tensors."""
_CHECKS = ("_assert", "sym_constrain_range")
"""Operators that only check what a run shows anyway, some of them the device of the export."""
_INSTEAD = {"view": "reshape"}
"""Operators that hold for any memory layout, for those that the export's layout sufficed for."""


class Program(nn.Module):
    """Runs a list of calls.

    Args:
        graph: `inputs` (the tensors by position, the samples' name last), `calls` and `output`.
        tensors: weights and constants, `t0`, `t1`, ...

    Raises:
        CheckpointError: a call that is not allowed, or a graph that is damaged.
    """

    def __init__(self, graph: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        for name, value in tensors.items():
            self.register_buffer(name, value)
        try:
            self._calls = [
                (str(name), _operator(str(target)), args, kwargs, [str(d) for d in done])
                for name, target, args, kwargs, done in graph["calls"]
            ]
            self._weights = {str(name): f"t{n}" for n, name in enumerate(graph["weights"])}
            self._input, self._output = str(graph["input"]), str(graph["output"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"damaged program ({first_line(error)})") from None
        if missing := set(self._weights.values()) ^ set(tensors):
            raise CheckpointError(f"damaged program (tensors {', '.join(sorted(missing))})")

    def forward(self, inputs: Tensor) -> Tensor:
        """Samples [B, ...] -> logits [B, C]."""
        values: dict[str, Any] = {
            name: self.get_buffer(tensor) for name, tensor in self._weights.items()
        }
        values[self._input] = inputs
        for name, call, args, kwargs, done in self._calls:
            values[name] = call(
                *_decoded(args, values, inputs.device), **_decoded(kwargs, values, inputs.device)
            )
            for finished in done:
                del values[finished]
        return values[self._output]


def read_program(path: Path) -> Program:
    """The program in a file that torch.export.save wrote. Its owner must be trusted.

    Raises:
        CheckpointError: damaged, not one tensor in and one out, exported in training mode, or made
            of more than PyTorch's own operators.
    """
    try:
        exported = torch.export.load(path)
        exported = exported.run_decompositions({})
    except Exception as error:  # whatever the reader meets
        raise CheckpointError(
            f"{path}: no program that torch.export.save of this torch wrote ({first_line(error)})."
        ) from None
    try:
        return Program(*_converted(exported))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def to_text(program: Program) -> str:
    """The graph, for a checkpoint's file."""
    return json.dumps(program.graph, allow_nan=False, separators=(",", ":"))


def from_text(text: str, tensors: dict[str, Tensor]) -> Program:
    """A program out of a checkpoint's file.

    Raises:
        CheckpointError: damaged, or more than operators of PyTorch.
    """
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged program ({first_line(error)})") from None
    if not isinstance(graph, dict):
        raise CheckpointError("damaged program (no JSON object)")
    return Program(graph, tensors)


def _converted(exported: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    signature = exported.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise CheckpointError("the program changes its own buffers; export it after model.eval()")
    known = {**exported.state_dict, **exported.constants}
    weights: list[str] = []
    tensors: dict[str, Tensor] = {}
    inputs: list[str] = []
    for spec in signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            inputs.append(spec.arg.name)
        elif isinstance(value := known.get(spec.target), Tensor):
            # Its own memory, whatever it shared: safetensors wants each tensor once.
            tensors[f"t{len(weights)}"] = value.detach().clone().contiguous()
            weights.append(spec.arg.name)
        else:
            raise CheckpointError(f"the program holds {spec.target}, which is no tensor")
    outputs = [spec.arg.name for spec in signature.output_specs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise CheckpointError(
            f"the program takes {len(inputs)} inputs and gives {len(outputs)} outputs; export a "
            "model that takes the samples and returns the logits alone"
        )
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    calls = [node for node in calls if not _only_checks(node)]
    if other := {n.op for n in exported.graph.nodes} - {"placeholder", "call_function", "output"}:
        raise CheckpointError(f"the program holds {', '.join(sorted(other))}, which is no operator")
    last = {name: n for n, node in enumerate(calls) for name in _read(node)}
    graph = {
        "weights": weights,
        "input": inputs[0],
        "output": outputs[0],
        "calls": [
            [
                node.name,
                _named(node.target),
                _encoded(node.args),
                _encoded(node.kwargs),
                [name for name in _read(node) if last[name] == n and name != outputs[0]],
            ]
            for n, node in enumerate(calls)
        ],
    }
    return graph, tensors


def _only_checks(node: Any) -> bool:
    """Whether nothing but a check would be lost with the node."""
    return str(node.target).removeprefix("aten.").startswith(_CHECKS)


def _read(node: Any) -> Iterator[str]:
    return (source.name for source in node.all_input_nodes)


def _named(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    name = getattr(target, "__name__", str(target))
    if _ARITHMETIC.get(name) is target:
        return name
    raise CheckpointError(
        f"the program calls {target}, which is no operator of PyTorch; import its state dict"
    )


def _operator(name: str) -> Callable[..., Any]:
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    library, _, rest = name.partition(".")
    operation, _, overload = rest.partition(".")
    packet = getattr(torch.ops.aten, operation, None) if library == "aten" else None
    if operation in _FORBIDDEN or not isinstance(packet, torch._ops.OpOverloadPacket):
        raise CheckpointError(f"the program calls {name}, which is not allowed")
    if overload not in packet.overloads():
        raise CheckpointError(f"the program calls {name}, which this torch does not know")
    if operation in _INSTEAD and overload == "default":
        return getattr(torch.ops.aten, _INSTEAD[operation]).default
    return getattr(packet, overload)


def _encoded(value: Any) -> Any:
    """Arguments as JSON: what is more than a plain value is an object of one key."""
    if isinstance(value, torch.fx.Node):
        return {"of": value.name}
    if isinstance(value, torch.device):
        return {"device": None}  # where the samples are
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encoded(entry) for entry in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _encoded(entry) for key, entry in value.items()}}
    raise CheckpointError(f"the program holds a {type(value).__name__}, which is no plain value")


def _decoded(value: Any, values: dict[str, Any], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decoded(entry, values, device) for entry in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "of":
        return values[content]
    if kind == "device":
        return device
    if kind == "torch":
        constant = getattr(torch, content)
        if isinstance(constant, torch.dtype | torch.layout | torch.memory_format):
            return constant
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: _decoded(entry, values, device) for key, entry in content.items()}
    raise CheckpointError(f"damaged program ({kind})")
