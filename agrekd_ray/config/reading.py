"""A YAML file with `key.path=value` overrides merged in."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from agrekd_ray.config.faults import Fault, JobError
from agrekd_ray.errors import nearest
from agrekd_ray.files import DamagedError, read_text
from agrekd_ray.plugins import located

MOST_VALUES = 1_000_000
"""In one file, with all that its anchors stand for."""
_NOT_YAML = (OmegaConfBaseException, YAMLError, ValueError, RecursionError)
_AMBIGUOUS = {
    re.compile(
        r"[-+]?0[bo]?[0-9_]+"
    ): "octal or binary to some programs, decimal or text to others",
    re.compile(
        r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    ): "a number to the base of 60, or text",
    re.compile(r"(?i:yes|no|on|off)"): "a truth value to some programs, text to others",
}
"""What YAML 1.1 and 1.2 read differently, and as what."""


def read_job(path: Path, overrides: Iterable[str] = (), what: str = "job") -> dict[str, Any]:
    """A job's raw values: the YAML file with `key.path=value` overrides merged in.

    Raises:
        JobError: what `read_values` finds.
    """
    values, faults = read_values(path, overrides, what)
    if faults or values is None:
        raise JobError(str(path), faults)
    return values


def read_values(
    path: Path, overrides: Iterable[str] = (), what: str = "job"
) -> tuple[dict[str, Any] | None, list[Fault]]:
    """A job's raw values, as far as they can be read, and what cannot be.

    The file is missing or no YAML mapping, an override has no `=`, or a value is one that YAML 1.1
    and 1.2 read differently (`010`, `1:30`, `no`).

    Args:
        path: the file.
        overrides: changes to it.
        what: kind of file, in words.
    """
    pairs, faults = _pairs(overrides)
    try:
        text = read_text(path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        return None, [*faults, Fault(what, "", problem, nearest(path.name, _neighbours(path)))]
    except DamagedError as error:
        return None, [*faults, Fault(what, "", str(error))]
    except ValueError:
        return None, [*faults, Fault(what, "", "no path has a null character")]
    no_mapping = Fault(what, "", f"holds no keys; a {what} is a YAML mapping")
    try:
        faults += ambiguous(text)
        job = OmegaConf.create(text)
        if not OmegaConf.is_dict(job) or not job:
            return None, [*faults, no_mapping]
        merged, of_overrides = _overridden(job, pairs)
        faults += of_overrides
        values = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
        if isinstance(named := values.get("plugins"), list):
            values["plugins"] = [located(plugin, path.parent) for plugin in named]
        return values, faults
    except AssertionError:  # OmegaConf's answer to a document that is one number
        return None, [*faults, no_mapping]
    except _NOT_YAML as error:
        return None, [*faults, Fault(what, "", f"is no valid YAML ({_one_line(error)})")]


def with_overrides(
    values: Mapping[str, Any], overrides: Iterable[str]
) -> tuple[dict[str, Any], list[Fault]]:
    """A resolved job's values with overrides merged in, and what is wrong with these."""
    pairs, faults = _pairs(overrides)
    merged, found = _overridden(OmegaConf.create(dict(values)), pairs)
    return typing.cast(dict[str, Any], OmegaConf.to_container(merged)), [*faults, *found]


def _pairs(overrides: Iterable[str]) -> tuple[list[str], list[Fault]]:
    """Overrides that have a key and a value, and faults for the others."""
    faults, pairs = [], []
    for pair in overrides:
        if re.match(r"^[A-Za-z_][\w.]*=", pair):
            pairs.append(pair)
        else:
            faults.append(Fault(pair, "", "an override is written key.path=value"))
    return pairs, faults


def yaml_values(text: str) -> Any:
    """What a YAML document holds.

    Raises:
        YAMLError, ValueError, RecursionError: no YAML, or one that would fill the memory.
    """
    _document(text)
    return yaml.safe_load(text)


def ambiguous(text: str, key: str = "") -> list[Fault]:
    """Values and keys, not in quotes, that YAML 1.1 and 1.2 read differently.

    Args:
        text: a YAML document.
        key: that it is the value of.

    Raises:
        YAMLError, ValueError, RecursionError: no YAML, or one that would fill the memory.
    """
    seen: set[int] = set()

    def faults(node: yaml.Node, parts: tuple[str, ...]) -> Iterator[Fault]:
        if id(node) in seen:  # an anchor's
            return
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            for spelling, reading in _AMBIGUOUS.items():
                if node.style is None and spelling.fullmatch(node.value):
                    plain = _unambiguous(node.value)
                    problem = f"{reading}; write {plain}, or '{node.value}' in quotes for text"
                    yield Fault(".".join(parts), node.value, problem)
        elif isinstance(node, yaml.SequenceNode):
            for number, part in enumerate(node.value):
                yield from faults(part, (*parts, str(number)))
        elif isinstance(node, yaml.MappingNode):
            for name, part in node.value:
                inside = (*parts, str(name.value))
                yield from faults(name, inside)
                yield from faults(part, inside)

    document = _document(text)
    return [] if document is None else list(faults(document, (key,) if key else ()))


def _unambiguous(value: str) -> str:
    """How a number or truth value that was meant is written."""
    if value.lower() in ("yes", "on"):
        return "true"
    if value.lower() in ("no", "off"):
        return "false"
    return value.lstrip("+0") or "0" if value.isdecimal() else "a decimal number"


def _document(text: str) -> yaml.Node | None:
    """The nodes of a document; refuses a few lines whose anchors stand for millions of values."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        sizes[id(node)] = MOST_VALUES + 1  # until it is known: within itself, it has no end
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    document = yaml.compose(text, yaml.SafeLoader)
    if document is not None and size(document) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, with all that its anchors stand for")
    return document


def _overridden(job: Any, pairs: Sequence[str]) -> tuple[Any, list[Fault]]:
    """The job with the overrides merged in, and what is wrong with each of them."""
    faults = []
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            faults += ambiguous(value, key)
            if value.strip() == "{}" and OmegaConf.select(job, key):
                problem = f"changes nothing, for blocks are merged; {key}=null empties it"
                faults.append(Fault(key, value, problem))
            job = OmegaConf.merge(job, OmegaConf.from_dotlist([pair]))
        except TypeError:  # a key inside a list, like seeds.0
            problem = "reaches into a list; override the list as a whole, key=[a,b]"
            faults.append(Fault(key, value, problem))
        except _NOT_YAML as error:
            problem = f"is no valid YAML ({_one_line(error)}); as text: '{key}=\"{value}\"'"
            faults.append(Fault(key, value, problem))
    return job, faults


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _neighbours(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
