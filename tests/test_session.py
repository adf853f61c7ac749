"""How Ray clusters are joined and started: addresses as people write them, and what hinders."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agrekd_ray.cluster.address import Place, cluster_address, read_address
from agrekd_ray.cluster.session import LONGEST_SOCKET, RaySession, _folder_of_sockets
from agrekd_ray.config import load_job
from agrekd_ray.config.faults import JobError
from agrekd_ray.errors import RunError

from .shared import AGREKD
from .test_run import write_job


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("head:6379", Place("head", 6379)),
        (" 10.0.0.7:6379\n", Place("10.0.0.7", 6379)),
        ("Head.Example:6379/", Place("Head.Example", 6379)),
        ("[::1]:6379", Place("::1", 6379)),
        ("[FE80::0:1]:06379", Place("fe80::1", 6379)),
        ("auto", "auto"),
        (" AUTO ", "auto"),
        ("Local", "local"),
    ],
)
def test_an_address_has_many_spellings(text: str, place: Place | str) -> None:
    assert read_address(text) == place
    assert cluster_address(text) == (None if place == "local" else str(place))
    assert read_address(str(place)) == place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no address of a Ray cluster; allowed: auto, host:port"),
        ("head", "has no port; for instance head:6379"),
        ("[::1]", r"has no port; for instance \[::1\]:6379"),
        ("RAY://head:10001", "is Ray Client's, through which no run goes.*: auto, or head:6379 "),
        ("::1:6379", r"an IPv6 address has brackets: \[::1\]:6379"),
        ("http://head:8265", "is a dashboard's, for `ray job submit`.*: auto, or head:6379 "),
        (" HTTPS://[::1] ", r"is a dashboard's.*: auto, or \[::1\]:6379 "),
        ("http://head:8265/#/jobs", "is a dashboard's"),
        ("redis://head:6379", r"is not Ray's \(redis://\)"),
        ("head:0", "'0' is no port"),
        ("head:70000", "'70000' is no port"),
        ("head:six", "'six' is no port"),
        ("head:\N{ARABIC-INDIC DIGIT SIX}", "is no port"),
        ("the head:6379", "'the head' is no host"),
        ("[::g]:6379", r"\[::g\] is no IPv6 address"),
        ("head/x:6379", "no address of a Ray cluster"),
        (":6379", "'' is no host"),
    ],
)
def test_what_is_no_address_is_refused_with_what_would_be_one(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_address(text)


def test_a_job_has_the_address_as_ray_knows_it(tmp_path: Path) -> None:
    path = write_job(tmp_path, tmp_path)
    for written, kept in ((" Head:6379 ", "Head:6379"), ("AUTO", "auto"), ("local", None)):
        assert load_job(path, [f"ray.address={written}"]).ray.address == kept
    assert load_job(path, ['ray.address="[::1]:6379"']).ray.address == "[::1]:6379"
    for written in ("head", "http://head:8265", "ray://head:10001", '""'):
        with pytest.raises(JobError, match=r"ray\.address"):
            load_job(path, [f"ray.address={written}"])
    with pytest.raises(JobError, match=r"""as text: 'ray\.address="\[::1\]:6379"'"""):
        load_job(path, ["ray.address=[::1]:6379"])


WRITTEN = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from("auto local ray:/[]0123456789.abX\t%@é"), max_size=40),
    st.from_regex(r"\A\s*((ray|http|RAY)://)?(\[[0-9a-f:.]*\]|[a-z0-9.-]*)(:[0-9]{0,6})?/?\s*\Z"),
)


@given(WRITTEN)
def test_any_text_is_an_address_or_refused_in_one_line(text: str) -> None:
    said, place = "", None
    try:
        place = read_address(text)
    except ValueError as error:
        said = str(error)
    assert len(said.splitlines()) == (place is None)
    if place is None:
        return
    assert read_address(str(place)) == place
    assert read_address(f"\t{place} ") == place


def refused(address: str) -> str:
    """What is said of it."""
    with pytest.raises(RunError) as error:
        RaySession(address, 1, print)
    said = str(error.value)
    assert len(said.splitlines()) == 1
    return said


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A port where a connection is accepted and answered; None accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            kept = []
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                if answer is None:
                    kept.append(client)
                    continue
                client.sendall(answer)
                client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@contextmanager
def web() -> Iterator[int]:
    """A web server, like the dashboard."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def unused() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No session of the suite's is taken for the one that is asked for."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_what_answers_and_is_no_cluster_is_refused(alone: None) -> None:
    """Ray itself would go on for minutes."""
    with answering(None) as silent, answering(b"") as closing, web() as server:
        addresses = [f"localhost:{silent}", f"127.0.0.1:{closing}", f" LocalHost:{server}/"]
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(refused, addresses))
    for address, text in zip(addresses, said, strict=True):
        assert text.startswith(f"ray.address = {address.strip()}: no Ray cluster answers there (")
        assert "something listens there, but no answer within" in text


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "[::1]:{}", "LocalHost:{}", "{}.invalid:1"])
def test_where_nobody_listens_it_is_said_who_refused(alone: None, form: str) -> None:
    port = unused()
    assert "no Ray cluster answers there (" in (said := refused(form.format(port)))
    assert "refused" in said or "not known" in said or "Cannot assign" in said


def test_an_address_out_of_the_environment_is_named_as_such(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = unused()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert refused("Auto").startswith(f"RAY_ADDRESS = 127.0.0.1:{port}: no Ray cluster answers")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert refused("auto").startswith("RAY_ADDRESS = http://127.0.0.1:8265: this address is a dash")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert "unset it" in refused("auto")


def test_the_dashboards_port_is_recognised(alone: None) -> None:
    assert "8265 is as a rule the dashboard's port" in refused("nowhere.invalid:8265")


def test_a_cluster_with_another_token_or_a_port_of_another_part_is_refused(
    ray_cluster: Any, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agrekd_ray.cluster.reach import refusal

    host, _, port = ray_cluster.address.rpartition(":")
    assert refusal(host, int(port)) == ""
    raylet = ray_cluster.head_node.node_manager_port
    assert "no Ray cluster's control service" in refused(f"{host}:{raylet}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    assert "asks for another token" in refused(ray_cluster.address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "counts only with RAY_AUTH_MODE=token" in refused(ray_cluster.address)


def test_a_temporary_folder_with_a_long_name_is_left_for_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    told: list[str] = []
    long = tmp_path / ("ö" * 45)  # characters are not bytes
    monkeypatch.setenv("TMPDIR", str(long))
    assert _folder_of_sockets(told.append) == Path("/tmp/ray")
    (line,) = told
    assert line.startswith(f"TMPDIR = {long}: a name too long")
    assert not long.exists()
    monkeypatch.setenv("RAY_TMPDIR", str(long))  # which somebody has chosen for Ray
    with pytest.raises(RunError, match=r"RAY_TMPDIR = .*too long.*RAY_TMPDIR=/tmp"):
        _folder_of_sockets(told.append)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert _folder_of_sockets(told.append) == Path("/tmp/ray")
    assert told == [line]


def test_the_longest_name_that_is_taken_is_one_that_ray_takes() -> None:
    """Ray's own check, with the name that it would give its socket."""
    from ray._private.utils import validate_socket_filepath

    validate_socket_filepath("x" * LONGEST_SOCKET)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("x" * (LONGEST_SOCKET + 1))


@pytest.mark.parametrize("place", ["/proc/none", "{file}", "{file}/deeper"])
def test_a_temporary_folder_that_cannot_be_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", place.format(file=file))
    monkeypatch.setattr("agrekd_ray.cluster.session.LONGEST_SOCKET", 300)
    with pytest.raises(RunError, match=r"TMPDIR = .*cannot keep its files there.*RAY_TMPDIR=/tmp"):
        _folder_of_sockets(print)


def test_whatever_keeps_ray_from_starting_is_one_error(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    faults: list[BaseException] = [
        OSError(28, "No space left on device", "/tmp/ray/x"),
        RuntimeError("Failed to start GCS.\n  Last 2 lines of error files:\n  E one\n  E two"),
        AssertionError(),
        TimeoutError("The raylet has not come up"),
        ray.exceptions.AuthenticationError("no token"),
    ]

    def fail(**settings: Any) -> None:
        raise faults[0]

    monkeypatch.setattr(ray, "init", fail)
    while faults:
        with pytest.raises(RunError, match=r"Ray cannot start on this machine \(.+\).*RAY_TMPDIR="):
            RaySession(None, 1, print)
        faults.pop(0)
    faults.append(SystemExit(15))  # of Ray's own handler of SIGTERM
    with pytest.raises(KeyboardInterrupt):
        RaySession(None, 1, print)


def test_ray_that_is_slow_to_start_is_started_once_more(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    tries: list[dict[str, Any]] = []

    def fail(**settings: Any) -> None:
        tries.append(settings)
        raise RuntimeError("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", fail)
    said: list[str] = []
    with pytest.raises(RunError, match=r"timed out during startup.*RAY_TMPDIR=/ANOTHER/FOLDER"):
        RaySession(None, 1, said.append)
    assert len(tries) == 2
    assert said == ["Ray was slow to start on this machine, and has been given up; once more."]


def test_ray_starts_below_a_long_temporary_folder(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    environment = {**os.environ, "TMPDIR": str(long)}
    environment.pop("RAY_TMPDIR", None)
    done = subprocess.run(
        [*AGREKD, "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert "a name too long for Ray's sockets, so Ray keeps its files in /tmp/ray" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 node: " in done.stdout, done.stdout + done.stderr


def test_no_call_of_ray_joins_a_cluster_or_starts_one_by_itself() -> None:
    """Not before our own start, nor after our end: that cluster would be somebody else's."""
    program = (
        "from agrekd_ray.cluster.environment import prepare\n"
        "prepare(starts_cluster=True)\n"
        "import ray\n"
        "for call in (ray.nodes, ray.get_runtime_context().get_accelerator_ids):\n"
        "    try:\n"
        "        call()\n"
        "    except Exception as error:\n"
        "        assert not ray.is_initialized()\n"
        "        print('refused:', str(error).splitlines()[0])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ENABLE_AUTO_CONNECT"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("refused:") == 2, done.stdout
    assert done.stdout.count("has not been started") == 2, done.stdout


def test_modules_in_the_users_folder_stand_for_no_others(tmp_path: Path, store: Path) -> None:
    """Neither in the driver nor in Ray's processes."""
    for name in ("random", "logging", "json", "queue", "types", "string"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    job = write_job(tmp_path, store, methods=["one_hot"])
    done = subprocess.run(
        [Path(sys.executable).with_name("agrekd"), "run", job],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the wrong module" not in done.stdout + done.stderr
