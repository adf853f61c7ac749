"""What a stranger on the network gets from the ports that Ray opens: nothing."""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .shared import own_processes

OK, UNIMPLEMENTED, UNAUTHENTICATED = 0, 12, 16
"""States of gRPC."""
READING = [
    "NodeInfoGcsService/GetAllNodeInfo",
    "JobInfoGcsService/GetAllJobInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "NodeManagerService/GetSystemConfig",
    "CoreWorkerService/GetCoreWorkerStats",
]
"""Methods of the control service (GCS), a raylet and a worker that change nothing."""
ACTING = [
    "JobInfoGcsService/AddJob",
    "ActorInfoGcsService/CreateActor",
    "InternalKVGcsService/InternalKVPut",
    "NodeManagerService/RequestWorkerLease",
    "NodeManagerService/ShutdownRaylet",
    "ObjectManagerService/Pull",
    "ObjectManagerService/Push",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/KillActor",
    "CoreWorkerService/Exit",
    "RayletDriver/Init",
    "RayletDriver/ClusterInfo",
]
"""Methods that run code, end processes or hand out data; the last are Ray Client's."""
DAEMONS = ("gcs_server", "raylet/raylet", "Agent")
STRANGERS = [None, "f" * 64, ""]
"""Tokens of those who do not have it."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """Of HTTP/2."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Kind and content of every frame until the connection ends."""
    buffer = b""
    while chunk := connection.recv(65536):
        buffer += chunk
        while len(buffer) >= 9 and len(buffer) >= (end := 9 + int.from_bytes(buffer[:3], "big")):
            yield buffer[3], buffer[9:end]
            buffer = buffer[end:]


def call(host: str, port: int, method: str, token: str | None) -> int | None:
    """The state in which a call with an empty message ends; None where nobody speaks gRPC."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/ray.rpc.{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    block = b"".join(  # without compression; up to 126 bytes need no second byte of length
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in header)
        for header in headers.items()
    )
    with socket.create_connection((host, port)) as connection, suppress(ConnectionResetError):
        connection.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 0))  # no table of known headers
            + frame(HEADERS, 4, 1, block)
            + frame(DATA, 1, 1, bytes(5))
        )
        for kind, content in frames(connection):
            _, status, rest = content.partition(b"grpc-status")
            if kind == HEADERS and status:
                return int(rest[1 : 1 + rest[0]])
    return None


def web(host: str, port: int, path: str, token: str | None) -> int:
    """The state of an answer of HTTP."""
    connection = http.client.HTTPConnection(host, port)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request("POST", path, headers=headers)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def listeners(process: int) -> Iterator[tuple[str, int]]:
    """Addresses and TCP ports at which a process listens."""
    folder = Path(f"/proc/{process}")
    sockets = set()
    for path in (folder / "fd").iterdir():
        with suppress(OSError):  # one that has just been closed
            sockets.add(str(path.readlink()))
    for table in ("tcp", "tcp6"):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                words, _, port = local.partition(":")
                everywhere = not words.strip("0")
                host = socket.inet_ntoa(struct.pack("=I", int(words[-8:], 16)))
                yield "127.0.0.1" if everywhere else host, int(port, 16)


@pytest.fixture
def ports(ray_session: Any) -> Iterator[set[tuple[str, int]]]:
    """Where the control service, a raylet, an agent, a worker and a driver listen."""
    if not Path("/proc/self/net/tcp").exists():
        pytest.skip("the listening sockets of other processes cannot be read here")

    class Worker:
        def process(self) -> int:
            return os.getpid()

    worker = ray_session.remote(Worker).options(num_cpus=0).remote()
    process = ray_session.get(worker.process.remote())
    stay = [os.getpid(), process]
    for one in own_processes():
        with suppress(OSError):  # a worker without work ends when it likes
            if "ray::IDLE" not in (name := Path(f"/proc/{one}/cmdline").read_text()):
                stay += [one] * any(part in name for part in DAEMONS)
    yield {place for one in stay for place in listeners(one)}
    ray_session.kill(worker)


def test_who_has_no_token_or_another_gets_nothing_from_any_port(ports: Any) -> None:
    spoken, agents = {}, []
    for place in sorted(ports):
        for method in READING:
            spoken[place, method] = call(*place, method, os.environ["RAY_AUTH_TOKEN"])
        if all(spoken[place, method] is None for method in READING):
            agents.append(place)
    for method in READING:  # each is answered somewhere to those who have it
        assert OK in {state for (_, asked), state in spoken.items() if asked == method}
    for place in sorted(ports - {*agents}):
        for token in STRANGERS:
            states = {method: call(*place, method, token) for method in (*READING, *ACTING)}
            assert {*states.values()} <= {UNAUTHENTICATED, UNIMPLEMENTED}, (place, states)
            assert UNAUTHENTICATED in states.values(), (place, states)
    for place in agents:
        paths = ("/get_or_create_runtime_env", "/get_runtime_envs_info")
        assert web(*place, paths[1], os.environ["RAY_AUTH_TOKEN"]) == 200
        for token in STRANGERS:
            assert {web(*place, path, token) for path in paths} <= {401, 403}
    assert agents


def test_a_driver_without_the_token_cannot_join(
    ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.cluster.reach import refusal

    host, _, port = ray_cluster.address.rpartition(":")
    assert refusal(host, int(port)) == ""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    assert "asks for another token" in refusal(host, int(port))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "asks for another token" in refusal(host, int(port))


def test_a_cluster_that_a_run_starts_has_a_token_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from agrekd_ray.cluster import environment

    tokens = []
    for _ in range(2):
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        environment.prepare(starts_cluster=True)
        assert os.environ["RAY_AUTH_MODE"] == "token"
        tokens.append(os.environ["RAY_AUTH_TOKEN"])
    assert len(set(tokens)) == 2
    assert all(len(token) == 64 for token in tokens)
