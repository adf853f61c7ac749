"""MNIST fetched by torchvision: from a server of the test's own, and without a network."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import MNIST

from agrekd_ray.errors import DataError
from tests.test_data import idx_data, write_folder


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that torchvision takes for MNIST's, with small files; gives their folder."""
    folder = write_folder(tmp_path / "published", packed=True)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Silent, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digests = [
        (name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name, _ in MNIST.resources
    ]
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", digests)
    yield folder
    server.shutdown()
    server.server_close()


def test_what_is_missing_is_fetched(
    tmp_path: Path, published: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "deeper" / "mnist"
    data = idx_data(there, download="mnist")
    assert data.fingerprint == idx_data(published).fingerprint
    assert len(list(there.iterdir())) == 4
    assert capfd.readouterr() == ("", "")
    kept = {path.name: path.stat().st_mtime_ns for path in there.iterdir()}
    (there / "t10k-labels-idx1-ubyte").unlink()
    assert idx_data(there, download="mnist").fingerprint == data.fingerprint
    del kept["t10k-labels-idx1-ubyte"]
    assert all((there / name).stat().st_mtime_ns == when for name, when in kept.items())


def test_nothing_is_fetched_where_all_is_there(published: Path) -> None:
    before = {path.name for path in published.iterdir()}
    MNIST.mirrors[:] = ["http://127.0.0.1:9/"]
    idx_data(published, download="mnist")
    assert {path.name for path in published.iterdir()} == before


def test_without_a_network_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(
        DataError, match=r"data.download: mnist cannot be fetched .*refused"
    ) as said:
        idx_data(tmp_path / "mnist", download="mnist")
    assert "put the four IDX files there" in str(said.value)
    assert "\n" not in str(said.value)
    assert not list((tmp_path / "mnist").iterdir())


def test_without_download_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*data.download=mnist or fashion_mnist"):
        idx_data(tmp_path / "mnist")
