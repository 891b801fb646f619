"""Everything a beamline has, in processes of their own: catalog server, proxy before it, session, worker, IOC."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from bluesky_ptychonn.beamline.ioc import IocProcess
from bluesky_ptychonn.catalog.connection.connect import connect
from bluesky_ptychonn.catalog.connection.server import CatalogServer, serve_catalog
from bluesky_ptychonn.live.session import WorkerStatus
from tests.system.faults.proxy import Proxy

MODEL = "simulated-zp64"


@dataclass
class Scan:
    """What a session said of one scan."""

    uid: str = ""
    events: list[int] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)  # of an event's frame in its file, by what the camera counted
    exit_status: str = ""
    error: str = ""
    stall_s: float = 0.0
    stall_cpu_s: float = 0.0  # of the longest stall: what the session's process worked in it, all threads,
    stall_gc_s: float = 0.0  # collected garbage,
    stall_stolen_s: float = 0.0  # and what the machine's other guests took
    gap_s: float = 0.0
    callback_s: float = 0.0
    over: bool = False
    ended: float = 0.0


class Session:
    """A `session.py` under way."""

    def __init__(self, scene: Scene) -> None:
        self.scan = Scan()
        self.said: dict[str, Any] = {}
        self.folder: Path
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        settings = scene.folder / "settings.json"
        settings.write_text(json.dumps(scene.settings))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **scene.environment}
        with (scene.folder / "session.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("session.py")), str(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(scene.server.api_key)
        self.folder = Path(self.wait_for("ready", 120)["ready"])

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            news = json.loads(line)
            if "start" in news:
                self.scan.uid = news["start"]
            elif "event" in news:
                self.scan.events.append(news["event"])
                self.scan.rows[news["event"]] = news["captured"] - 1
            elif "stop" in news:
                self.scan.exit_status = news["stop"]
                self.scan.ended = time.monotonic()
            else:
                self._news.put(news)
        self._news.put(None)

    def wait_for(self, word: str, timeout: float) -> dict[str, Any]:
        """Next news with this word; RuntimeError when the session dies first, TimeoutError when it says nothing."""
        end = time.monotonic() + timeout
        while True:
            try:
                news = self._news.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"session said no {word!r} within {timeout:g} s") from None
            if news is None:
                raise RuntimeError(f"session ended with code {self.process.wait(10)} before it said {word!r}")
            if word in news:
                return news

    def begin(self, points: int, **order: Any) -> Scan:
        """Start a scan; `wait_over` waits for its end."""
        self.scan = Scan()
        self._send(json.dumps({"do": "scan", "points": points, **order}))
        return self.scan

    def wait_over(self, timeout: float) -> Scan:
        """Wait until the scan is over; one whose session was killed is over too."""
        try:
            news = self.wait_for("over", timeout)
        except RuntimeError:
            self.scan.error, self.scan.ended = "session died", time.monotonic()
        else:
            self.scan.error = news.pop("over")
            vars(self.scan).update(news)
        self.scan.over = True
        return self.scan

    def status(self) -> dict[str, Any]:
        """What the user would see."""
        self._send(json.dumps({"do": "status"}))
        return self.wait_for("status", 30)

    @property
    def worker_pid(self) -> int:
        """Of the worker as it says itself."""
        return WorkerStatus.load(self.folder).pid

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait(10)

    def close(self, timeout: float = 90.0) -> None:
        """End in good order, or not."""
        if self.alive:
            with contextlib.suppress(OSError, RuntimeError, TimeoutError):
                self._send(json.dumps({"do": "close", "timeout": timeout}))
                self.wait_for("closed", timeout + 30)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            if self.alive:
                self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class SmallDisk:
    """A file system of a few megabytes that can be filled; needs the right to mount."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"no small disk: {done.stderr.strip()}")
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no byte."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * (1 << 16))
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 512)

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount."""
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)


class Scene:
    """A beamline to be disturbed.

    Parameters
    ----------
    folder : Path
        For everything; must not exist.
    seed : int
        Of the proxy's luck.
    exposure_s : float
        Of one frame.
    channel_access : bool
        Whether devices are stock ophyd on a simulated IOC, else simulated in the session.
    small_disks : bool
        Whether catalog and session lie on small file systems that can be filled.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        *,
        exposure_s: float = 0.03,
        channel_access: bool = False,
        small_disks: bool = False,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.frames = folder / "frames"
        self.frames.mkdir()
        self.catalog_disk = SmallDisk(folder / "catalog", 256) if small_disks else None
        self.session_disk = SmallDisk(folder / "state", 64) if small_disks else None
        self.ioc = IocProcess("TEST:") if channel_access else None
        self.server = self._serve()
        self.proxy = Proxy(self._port, seed)
        self.settings = {
            "uri": f"http://127.0.0.1:{self.proxy.port}/api/v1",
            "frames": str(self.frames),
            "journals": str(folder / "state" / "journals"),
            "backup": str(folder / "state" / "backup"),
            "model": MODEL,
            "exposure_s": exposure_s,
            "channel_access": channel_access,
        }
        self.session = Session(self)

    @property
    def environment(self) -> dict[str, str]:
        """For the session's process."""
        here = {"XDG_STATE_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        return here | (self.ioc.environment if self.ioc is not None else {})

    @property
    def _port(self) -> int:
        return int(self.server.uri.split(":")[2].split("/")[0])

    def _serve(self) -> CatalogServer:
        return serve_catalog(self.folder / "catalog", readable=[self.frames])

    @property
    def client(self) -> Any:
        """The catalog, without the proxy."""
        return connect(self.server)

    def kill_server(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server's process."""
        os.kill(self.server.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server._process.wait(10)

    def restart_server(self) -> None:
        """Serve the same folder again."""
        self.server.close()
        self.server = self._serve()
        self.proxy.target = self._port

    def mend(self) -> None:
        """Make everything whole that may be broken; who lives goes on living."""
        for disk in (self.catalog_disk, self.session_disk):
            if disk is not None:
                disk.empty()
        for pid in (self.server.pid, self.session.worker_pid, self.ioc.pid if self.ioc is not None else 0):
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGCONT)
        if not self.server.running:
            self.restart_server()
        self.proxy.mend()
        if not self.session.alive:
            self.session.close()
            self.session = Session(self)

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(Exception):
            self.session.close()
        self.server.close()
        self.proxy.close()
        if self.ioc is not None:
            self.ioc.close()
        for disk in (self.catalog_disk, self.session_disk):
            if disk is not None:
                disk.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
