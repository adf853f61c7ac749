"""What one machine says of itself.

The module travels to every node by value, so that one without this package, or with another version
of it, answers too. Hence everything goes in and out as plain values, nothing of ours is imported at
the top but what travels along, and what cannot be found out is said rather than raised.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agrekd_ray.machine import free_memory

SUMS, SAID = 3, 200
"""Sums of which the quickest counts, and characters of an error that are told."""
PACKAGES = ("ray", "torch", "numpy")
"""Whose versions count, beside Python's and this package's own."""


class Probe:
    """Answers for the machine that it runs on; becomes an actor on each node."""

    _store: Any = None

    def examine(
        self, folders: Mapping[str, tuple[str, str]], ports: Sequence[int]
    ) -> dict[str, Any]:
        """Everything that is found out at once.

        Args:
            folders: by key of the job, their path and the name of a file to look for there.
            ports: whose listeners are named.

        Returns:
            Attributes of `Machine`.
        """
        shared = Path("/dev/shm")
        temporary = shutil.disk_usage(tempfile.gettempdir())
        package, code = _package()
        return {
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in PACKAGES},
                "agrekd_ray": package,
            },
            "code": code,
            # Device files of NVIDIA's GPUs, or AMD's.
            "accelerators": any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists(),
            "memory_free": free_memory(),
            "shared_memory": shutil.disk_usage(shared).total if shared.is_dir() else None,
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "temporary": {"total": temporary.total, "free": temporary.free},
            "folders": {key: _folder(Path(at), name) for key, (at, name) in folders.items()},
            "listeners": _listeners(ports),
            "token": _token(),
            "token_file": _open_token_file(),
        }

    def torch_gpus(self) -> int | str:
        """How many GPUs PyTorch finds, or why it does not start."""
        # Asked in a process of its own: Ray hides them all from one that has none assigned.
        given = {**os.environ}
        if not given.get("CUDA_VISIBLE_DEVICES"):
            given.pop("CUDA_VISIBLE_DEVICES", None)
        program = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        done = subprocess.run(
            program, env=given, capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return int(done.stdout)

    def data(self, settings: Sequence[str]) -> list[dict[str, str]]:
        """`fingerprint` or `error` of data sets on this machine, whose settings come as JSON."""
        return [_fingerprint(text) for text in settings]

    def bucket(self, address: str, store: str) -> str:
        """Why this machine cannot write to, and read from, an object store; empty where it can."""
        try:
            from agrekd_ray.logits.remote import Remote

            Remote(address, Path(store)).look()
        except Exception as error:  # of another version of this package, too
            return " ".join(str(error).split())
        return ""

    def clock(self) -> float:
        """Seconds since the epoch, now."""
        return time.time()

    def host(self) -> tuple[str, int]:
        """Address and port at which this process lets others find each other for `sum`."""
        import ray
        from torch._C._distributed_c10d import TCPStore

        address = ray.util.get_node_ip_address()
        self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self._store.port

    def sum(
        self,
        backend: str,
        rank: int,
        world: int,
        at: tuple[str, int],
        size: int,
        seconds: float,
    ) -> float | str:
        """Seconds in which so many bytes were summed with the others, or why they were not.

        Args:
            backend: `nccl` or `gloo`.
            rank: number of this process, 0 for the one that is their host.
            world: how many there are.
            at: address and port of the host.
            size: in bytes.
            seconds: that all this may take.
        """
        try:
            import torch
            import torch.distributed as dist
            from torch._C._distributed_c10d import TCPStore

            longest = timedelta(seconds=seconds)
            store = self._store if rank == 0 else TCPStore(*at, timeout=longest)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world, timeout=longest
            )
            device = "cuda" if backend == "nccl" else "cpu"
            values, took = torch.zeros(size // 4, device=device), []
            for _ in range(SUMS):
                dist.barrier()
                began = time.perf_counter()
                dist.all_reduce(values)
                values[0].item()  # a GPU is waited for
                took.append(time.perf_counter() - began)
            dist.barrier()  # the host stays as long as it is needed
            return min(took)
        except Exception as error:
            return " ".join(str(error).split())[:SAID]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _package() -> tuple[str, str]:
    """Version of this package and a digest of its source text, which is empty without it."""
    try:
        import agrekd_ray
    except Exception as error:
        return f"missing ({error})", ""
    root = Path(str(agrekd_ray.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return agrekd_ray.__version__, digest.hexdigest()[:12]


def _folder(path: Path, name: str) -> dict[str, Any]:
    """A folder that may not be there yet: then its nearest parent that is.

    Args:
        path: the folder.
        name: of a file to look for.
    """
    try:
        nearest = next(folder for folder in (path, *path.parents) if folder.is_dir())
        return {
            "there": str(nearest),
            "device": nearest.stat().st_dev,
            "free": shutil.disk_usage(nearest).free,
            "writable": os.access(nearest, os.W_OK | os.X_OK),
            "marked": (nearest / name).exists(),
        }
    except OSError as error:
        return {"error": error.strerror or str(error)}


def _listeners(ports: Sequence[int]) -> dict[int, list[str]]:
    """Addresses that some process of this machine listens at, by port."""
    import psutil  # Ray brings it along

    addresses: dict[int, list[str]] = {port: [] for port in ports}
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp") if ports else ():
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port in addresses:
                addresses[connection.laddr.port].append(connection.laddr.ip)
    return addresses


def _token() -> bool:
    """Whether the Ray processes of this machine ask for a token."""
    try:
        raylet: Any = importlib.import_module("ray._raylet")
        return bool(raylet.get_authentication_mode() != raylet.AuthenticationMode.DISABLED)
    except Exception:  # not in every version
        return os.environ.get("RAY_AUTH_MODE", "") not in ("", "disabled")


def _open_token_file() -> str:
    """Ray's file of the token, where it is used and others than its owner can read it."""
    if "RAY_AUTH_TOKEN" in os.environ or not _token():
        return ""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    try:
        return str(file) if file.stat().st_mode & 0o077 else ""
    except OSError:
        return ""


def _fingerprint(settings: str) -> dict[str, str]:
    try:
        from pydantic import TypeAdapter

        from agrekd_ray.data import DataSettings, open_dataset

        opened = open_dataset(TypeAdapter(DataSettings).validate_json(settings))
        return {"fingerprint": opened.fingerprint}
    except Exception as error:  # of a user's function, or of another version of this package
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
