"""A few faults at random moments, each in real processes; ``python -m benchmarks.faults`` has the hundreds."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.system.faults.kinds import KINDS
from tests.system.faults.oracle import judge
from tests.system.faults.proxy import Proxy
from tests.system.faults.scene import Scene
from tests.system.faults.trial import Trial, run_trial

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

TRIED = ["none", "server: kill -9, restart", "worker: kill -9", "plan paused, resumed", "both disks full"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    try:
        made = Scene(folder / "scene", 7, small_disks=True)
    except PermissionError:  # only root may mount
        made = Scene(folder / "plain", 7)
    with made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("fault", TRIED)
def test_a_fault_harms_no_scan_and_costs_no_frame(scene: Scene, fault: str) -> None:
    if KINDS[fault].small_disks and scene.session_disk is None:
        pytest.skip("this user may not mount a small file system")
    trial = run_trial(scene, fault, f"test/{fault}", points=25)
    assert trial.fine, trial
    assert (trial.frames, trial.status, trial.named) == (25, "complete", {})
    assert trial.callback_ms is not None
    assert trial.callback_ms < 2000  # it waited for nothing but a disk


@pytest.mark.slow
def test_a_killed_session_costs_no_frame(scene: Scene) -> None:
    """The next session takes up what the killed one left: raw run, journal, reconstruction."""
    trial = run_trial(scene, "session: kill -9", "test/2", points=25)
    assert trial.fine, trial
    assert 0 < trial.frames <= 25
    assert trial.status in ("complete", "partial")  # cut short by the fault itself, and said so
    said = scene.session.status()
    assert "all runs delivered" in said["raw"]


@pytest.mark.slow
def test_what_the_oracle_would_see(scene: Scene) -> None:
    """It finds a lost frame, one nobody took, another frame's image and a raw event that is missing."""
    trial = run_trial(scene, "none", "test/oracle", points=9)
    assert trial.fine, trial
    scan, root = scene.session.scan, scene.client
    assert judge(root, scan, scene.frames).fine
    more = judge(root, replace(scan, events=[*scan.events, 10]), scene.frames)
    assert (more.lost, more.raw_missing, more.fine) == ([10], 1, False)
    less = judge(root, replace(scan, events=scan.events[:-1]), scene.frames)
    assert "frames that were never taken: [9]" in less.words
    (path,) = [path for path in scene.frames.iterdir() if _is_of(root, scan.uid, path)]
    with _rotated(path):
        assert judge(root, scan, scene.frames).wrong == list(range(1, 10))
    assert judge(root, scan, scene.frames).fine


def _is_of(root: object, uid: str, path: Path) -> bool:
    node = root["raw"][uid]["primary"]  # type: ignore[index]
    image = getattr(node, "base", node)["camera_image"]
    return path.name in str(image.include_data_sources().data_sources()[0].assets[0].data_uri)


class _rotated:  # noqa: N801  reads as a function
    """Each frame of a file in the place of the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _move(self, by: int) -> None:
        import h5py
        import numpy as np

        with h5py.File(self._path, "r+", locking=False) as file:
            file["/entry/data/data"][:] = np.roll(file["/entry/data/data"][:], by, axis=0)

    def __enter__(self) -> None:
        self._move(1)

    def __exit__(self, *_: object) -> None:
        self._move(-1)


@pytest.fixture
def behind() -> Iterator[Proxy]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda proxy: proxy.refuse(), httpx.ConnectError),
        (lambda proxy: proxy.fall_silent(), httpx.ReadTimeout),
        (lambda proxy: setattr(proxy, "cut_share", 1.0), httpx.ReadError),
    ],
)
def test_the_proxy_misbehaves_and_mends(behind: Proxy, spoil: Callable[[Proxy], None], error: type[Exception]) -> None:
    address = f"http://127.0.0.1:{behind.port}/"
    with httpx.Client(timeout=1.0) as kept:
        assert kept.get(address).text == "ok"
        spoil(behind)
        with pytest.raises((error, httpx.RemoteProtocolError)):
            kept.get(address)
    with pytest.raises((error, httpx.RemoteProtocolError)):
        httpx.get(address, timeout=1.0)
    behind.mend()
    assert httpx.get(address, timeout=5.0).text == "ok"


def test_the_proxy_is_slow_and_answers_with_errors(behind: Proxy) -> None:
    address = f"http://127.0.0.1:{behind.port}/"
    behind.delay_s = 0.3
    began = time.monotonic()
    assert httpx.get(address, timeout=5.0).text == "ok"
    assert time.monotonic() - began >= 0.3
    behind.mend()
    behind.error_share = 1.0
    assert httpx.get(address, timeout=5.0).status_code == 503


def test_a_trial_that_lost_something_is_not_fine() -> None:
    assert Trial("none", "0").fine
    for spoilt in (
        {"lost": [1]},
        {"doubled": [1]},
        {"wrong": [1]},
        {"raw_missing": 1},
        {"harmed": "x"},
        {"words": "x"},
    ):
        assert not Trial("none", "0", **spoilt).fine  # type: ignore[arg-type]
