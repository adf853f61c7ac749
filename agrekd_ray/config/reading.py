"""A YAML file with `key.path=value` overrides merged in."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from agrekd_ray.config.faults import Fault, JobError

MOST_VALUES = 1_000_000
"""In one file, with all that its anchors stand for."""
_NOT_YAML = (OmegaConfBaseException, YAMLError, ValueError, RecursionError)


def read_job(path: Path, overrides: Iterable[str] = (), what: str = "job") -> dict[str, Any]:
    """A job's raw values: the YAML file with `key.path=value` overrides merged in.

    Args:
        path: the file.
        overrides: changes to it.
        what: kind of file, in words.

    Raises:
        JobError: the file is missing or no YAML mapping, or an override has no `=`.
    """
    no_mapping = f"holds no keys; a {what} is a YAML mapping"
    try:
        text = path.read_text()
    except OSError as error:
        near = [*difflib.get_close_matches(path.name, _neighbours(path), 1), None][0]
        raise JobError(
            str(path),
            [
                Fault(
                    what,
                    "",
                    f"cannot be read ({error.strerror or error})",
                    near,
                )
            ],
        ) from None
    except UnicodeDecodeError:
        raise JobError(str(path), [Fault(what, "", "is no text file, so no YAML")]) from None
    except ValueError:
        raise JobError(str(path), [Fault(what, "", "no path has a null character")]) from None
    pairs = list(overrides)
    wrong = [pair for pair in pairs if not re.match(r"^[A-Za-z_][\w.]*=", pair)]
    if wrong:
        raise JobError(
            str(path), [Fault(pair, "", "an override is written key.path=value") for pair in wrong]
        )
    try:
        _check_size(text)
        job = OmegaConf.create(text)
        if not OmegaConf.is_dict(job) or not job:
            raise JobError(str(path), [Fault(what, "", no_mapping)])
        merged, faults = _overridden(job, pairs)
        if faults:
            raise JobError(str(path), faults)
        return typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except AssertionError:  # OmegaConf's answer to a document that is one number
        raise JobError(str(path), [Fault(what, "", no_mapping)]) from None
    except _NOT_YAML as error:
        problem = f"is no valid YAML ({_one_line(error)})"
        raise JobError(str(path), [Fault(what, "", problem)]) from None


def yaml_values(text: str) -> Any:
    """What a YAML document holds.

    Raises:
        YAMLError, ValueError, RecursionError: no YAML, or one that would fill the memory.
    """
    _check_size(text)
    return yaml.safe_load(text)


def _check_size(text: str) -> None:
    """Refuse a few lines whose anchors stand for millions of values."""
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


def _overridden(job: Any, pairs: Sequence[str]) -> tuple[Any, list[Fault]]:
    """The job with the overrides merged in, and what is wrong with each of them."""
    faults = []
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            job = OmegaConf.merge(job, OmegaConf.from_dotlist([pair]))
        except TypeError:  # a key inside a list, like seeds.0
            problem = "reaches into a list; override the list as a whole, key=[a,b]"
            faults.append(Fault(key, value, problem))
        except _NOT_YAML as error:
            faults.append(Fault(key, value, f"is no valid YAML ({_one_line(error)})"))
    return job, faults


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _neighbours(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
