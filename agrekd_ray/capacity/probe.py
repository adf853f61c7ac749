"""What one machine says of itself.

The module travels to every node by value, so that one without this package, or with another version
of it, answers too. Hence everything goes in and out as plain values, nothing of ours is imported at
the top, and what cannot be found out is said rather than raised.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "numpy")
"""Whose versions count, beside Python's and this package's own."""
_COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
_LISTENS = "0A"


class Probe:
    """Answers for the machine that it runs on; becomes an actor on each node."""

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
        return {
            "versions": _versions(),
            "code": _code(),
            "accelerators": _accelerators(),
            "memory_free": _memory_free(),
            "shared_memory": shutil.disk_usage(shared).total if shared.is_dir() else None,
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "temporary": _space(Path(tempfile.gettempdir())),
            "folders": {key: _folder(Path(at), name) for key, (at, name) in folders.items()},
            "listeners": _listeners(ports),
            "token": _token(),
            "token_file": _open_token_file(),
        }

    def torch_gpus(self) -> int | str:
        """How many GPUs PyTorch finds, or why it does not start."""
        # Asked in a process of its own: Ray hides them all from one that has none assigned.
        hidden = {} if os.environ.get("CUDA_VISIBLE_DEVICES") else {"CUDA_VISIBLE_DEVICES"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_GPUS],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return int(done.stdout)

    def data(self, settings: Sequence[str]) -> list[dict[str, str]]:
        """Fingerprints of data sets as this machine has them, or why there is none.

        Args:
            settings: of each data set, as JSON.

        Returns:
            For each, `fingerprint` or `error`.
        """
        return [_fingerprint(text) for text in settings]

    def clock(self) -> float:
        """Seconds since the epoch, now."""
        return time.time()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    try:
        import agrekd_ray

        found["agrekd_ray"] = agrekd_ray.__version__
    except Exception as error:
        found["agrekd_ray"] = f"missing ({error})"
    return found


def _code() -> str:
    """Digest of this package's source text; empty where it cannot be imported."""
    try:
        import agrekd_ray
    except Exception:
        return ""
    root = Path(str(agrekd_ray.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _accelerators() -> bool:
    """Whether the machine has device files of GPUs (NVIDIA, AMD)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def _memory_free() -> int | None:
    """Bytes that a program can have: of the machine, or of the container where that is less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        free = found["MemAvailable"] * 1024
    except (OSError, ValueError, KeyError):
        return None
    group = Path("/sys/fs/cgroup")
    for limit, used, table in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:  # without a limit the file says "max", or a number beyond any machine
            most = int((group / limit).read_text(encoding="utf-8"))
            cached = dict(
                line.split() for line in (group / table).read_text(encoding="utf-8").splitlines()
            )
            taken = int((group / used).read_text(encoding="utf-8")) - int(
                cached.get("inactive_file", 0)
            )
        except (OSError, ValueError):
            continue
        free = min(free, max(most - taken, 0))
    return free


def _space(folder: Path) -> dict[str, int]:
    usage = shutil.disk_usage(folder)
    return {"total": usage.total, "free": usage.free}


def _folder(path: Path, name: str) -> dict[str, Any]:
    """A folder that may not be there yet: then its nearest parent that is.

    Args:
        path: the folder.
        name: of a file to look for.
    """
    try:
        there = next(one for one in (path, *path.parents) if one.is_dir())
        return {
            "there": str(there),
            "device": there.stat().st_dev,
            "free": shutil.disk_usage(there).free,
            "writable": os.access(there, os.W_OK | os.X_OK),
            "marked": (there / name).exists(),
        }
    except OSError as error:
        return {"error": error.strerror or str(error)}


def _listeners(ports: Sequence[int]) -> dict[int, list[str]]:
    """Addresses that some process of this machine listens at, by port."""
    found: dict[int, list[str]] = {port: [] for port in ports}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == _LISTENS and int(port, 16) in found:
                found[int(port, 16)].append(_address(address))
    return found


def _address(text: str) -> str:
    """An address out of the kernel's table: each 32-bit word in hexadecimal, bytes reversed."""
    raw = bytes.fromhex(text)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return str(ipaddress.ip_address(words))


def _token() -> bool:
    """Whether the Ray processes of this machine ask for a token."""
    try:
        from ray import _raylet

        raylet: Any = _raylet
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
