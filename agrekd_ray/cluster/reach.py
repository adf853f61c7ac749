"""Whether a Ray cluster answers at an address, within seconds.

Ray goes on trying for minutes, cannot be interrupted meanwhile, and fills the screen. So this file
is run as a process of its own, which an alarm ends; there it imports nothing of the package.
"""

from __future__ import annotations

import ipaddress
import signal
import socket
import subprocess
import sys

SECONDS = 6
"""That the cluster has to answer, once Python and Ray have started."""
REFUSED = 3
"""Exit code of the process; with any other, nothing is known, and Ray itself is asked."""
LISTENS = "something listens there"


def refusal(host: str, port: int) -> str:
    """Why no cluster can be joined; empty where one answers, or nothing is known against it.

    Args:
        host: name or address; empty where Ray shall find the cluster of this machine.
        port: the port.
    """
    asked = subprocess.run(
        [sys.executable, "-P", __file__, host, str(port)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if asked.returncode == -signal.SIGALRM:
        listens = f"{LISTENS}, but " if LISTENS in asked.stdout else ""
        return f"{listens}no answer within {SECONDS} s"
    return asked.stdout.splitlines()[-1] if asked.returncode == REFUSED else ""


def _main(host: str, port: str) -> None:
    import ray.exceptions
    from ray._private import services  # as `ray.init` and `ray health-check` do it
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    if host:
        hosts = [host]
        if host == "localhost" or _is_loopback(host):
            hosts.append(ray.util.get_node_ip_address())  # which Ray itself takes in its place
        _connect(hosts, int(port))
        print(LISTENS, flush=True)
    try:
        if host:
            address = services.canonicalize_bootstrap_address(services.build_address(host, port))
        else:
            address = services.canonicalize_bootstrap_address("auto")
            _take_token()
    except ConnectionError:
        _refuse("none runs on this machine")
    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        _refuse(
            f"{address} asks for another token than RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token has here; it counts only with RAY_AUTH_MODE=token"
        )
    except (ray.exceptions.RayError, ValueError) as error:
        said = next(iter(str(error).split("\n")), "").strip(" :")
        _refuse(f"{LISTENS} that is no Ray cluster's control service: {said}".rstrip(": "))


def _take_token() -> None:
    """As Ray does with a cluster that it has found itself."""
    from ray._private.authentication import authentication_token_setup as setup

    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _connect(hosts: list[str], port: int) -> None:
    reasons = []
    for host in hosts:
        try:
            socket.create_connection((host, port)).close()
            return
        except (OSError, UnicodeError) as error:
            reasons.append(f"{host}: {error}")
    _refuse("; ".join(dict.fromkeys(reasons)))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse(why: str) -> None:
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(why, flush=True)
    sys.exit(REFUSED)


if __name__ == "__main__":
    _main(*sys.argv[1:])
