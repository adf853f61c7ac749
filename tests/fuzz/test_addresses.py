"""Addresses of clusters in many spellings: each is refused in one line, and nothing hangs."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import pytest

from agrekd_ray.cluster.session import RaySession
from agrekd_ray.errors import RunError

from ..test_session import answering, unused, web

HOSTS = ["127.0.0.1", "localhost", "[::1]", "::1", "[0:0::1]", "127.1", "", "no host", "no.invalid"]
SCHEMES = ["", "", "", "ray://", "http://", "tcp://", "//", "ray:/"]
PORTS = [":{port}", ":0{port}", ":{port}/", "", ":", ":{port}{port}", ": {port}", ":{port}#", ":x"]
CASES: list[Callable[[str], str]] = [str, str, str.upper, str.title]
BLANKS = ["", "", " ", "\t", "\n", "\u00a0", "\u200b"]


def spelling(rng: Random, port: int) -> str:
    """An address of this machine, or what may be taken for one."""
    text = rng.choice(SCHEMES) + rng.choice(HOSTS) + rng.choice(PORTS).format(port=port)
    return rng.choice(BLANKS) + rng.choice(CASES)(text) + rng.choice(BLANKS)


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(n, marks=pytest.mark.fuzz) for n in range(1000, 1200))]
)
def test_an_address_of_no_cluster(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    rng = Random(f"address {seed}")
    with answering(None) as silent, answering(b"HTTP/1.1 400\r\n\r\n") as closing, web() as server:
        address = spelling(rng, rng.choice([silent, closing, server, unused()]))
        if rng.random() < 0.3:
            monkeypatch.setitem(os.environ, "RAY_ADDRESS", address or "x")
            address = "auto"
        print(repr(address), repr(os.environ.get("RAY_ADDRESS")))
        with pytest.raises(RunError) as error:
            RaySession(address, 1, print)
    assert len(str(error.value).splitlines()) == 1
