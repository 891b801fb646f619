"""Keeps one worker alive: a process that is started again when it dies, or a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO

import bluesky_ptychonn
from bluesky_ptychonn.backoff import Backoff
from bluesky_ptychonn.live.pipeline.problems import ProblemKind
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.session import LOG, WorkerStatus, count_unfinished
from bluesky_ptychonn.live.worker import MISCONFIGURED, Worker
from bluesky_ptychonn.processors import passive

log = logging.getLogger(__name__)

_FIRST_S, _LONGEST_S = 0.5, 60.0  # before a worker is started again: at most this, so that frames do not stay undone
_RESUME_LONGEST_S = 600.0
_ERRORS_BYTES = 1 << 20
_HOPELESS = 2  # failures in a row, by its own error, of a worker that is not waited for at the end
_LOOK_S = 0.1  # how often to look whether it failed
_CALM_S = 60.0  # a worker that lived this long starts with a clean slate


class Supervisor(ABC):
    """Keeps a worker alive until it is closed.

    Attributes
    ----------
    restarts : int
        How often the worker had to be started again.
    problem : str
        Why there is no worker at this moment, in words; empty when all is well.
    """

    def __init__(self, folder: Path) -> None:
        self.restarts = 0
        self.problem = ""
        self._folder = folder
        self._closing = threading.Event()
        self._backoff = Backoff(_FIRST_S, _LONGEST_S)

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Let the worker finish what was journaled, at most `timeout` s; whether it did."""

    @abstractmethod
    def detach(self) -> None:
        """Tell the worker that no more will come, without waiting for long."""


class WorkerSupervisor(Supervisor):
    """A worker process, started again, later each time, when it dies.

    The folder has the settings in it; the catalog's key goes down the worker's input, where no other process sees it.
    """

    def __init__(self, folder: Path, settings: ReconstructionSettings, api_key: str | None) -> None:
        super().__init__(folder)
        self._settings = settings
        self._api_key = api_key
        self._gave_up = False
        self._own_failures = 0  # in a row
        self._process = _start(self._folder, self._settings, self._api_key)
        self._watch = threading.Thread(target=self._watch_over, name="ptychonn worker watch", daemon=True)
        self._watch.start()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""
        return not self._gave_up and not self._closing.is_set()

    def _watch_over(self) -> None:
        while True:
            try:
                code = self._process.wait(_CALM_S)
            except subprocess.TimeoutExpired:
                self._backoff.succeed()
                self._own_failures, self.problem = 0, ""
                continue
            _close_input(self._process)
            if self._closing.is_set():
                return
            if code == MISCONFIGURED:
                self._gave_up = True
                return
            self._own_failures = self._own_failures + 1 if code > 0 else 0  # one that was killed may well do better
            if not self._restart(code):
                return

    def _restart(self, code: int) -> bool:
        """Start the worker again, after a while; False when the session is closed meanwhile."""
        wait_s = self._backoff.fail()
        times = f", {self._backoff.failures} times in a row" if self._backoff.failures > 1 else ""
        message = f"worker ended with code {code}{times}"
        while True:
            self._report(f"{message}; starting it again in {wait_s:g} s; frames stay in the journal")
            if self._closing.wait(wait_s):
                return False
            try:
                self._process = _start(self._folder, self._settings, self._api_key)
            except OSError as error:  # no memory or no process to be had
                message, wait_s = f"worker cannot be started: {error}", self._backoff.longest_s
                continue
            self.restarts += 1
            return True

    def _report(self, problem: str) -> None:
        """Note it for who asks for the status, here or in another shell; the session's notifier warns once."""
        status = WorkerStatus.load(self._folder)
        if status.state == "failed" and status.problem:
            problem = f"{problem}. It said: {status.problem}"
        self.problem = problem
        log.info("%s. See %s", problem, self._folder / LOG)
        status.state, status.problem, status.problem_kind = "starting", problem, ProblemKind.WORKER
        with contextlib.suppress(OSError):
            status.save(self._folder)

    def detach(self) -> None:
        """Tell the worker that no more will come, and leave it to finish by itself."""
        self._closing.set()
        _close_input(self._process)

    def close(self, timeout: float) -> bool:
        """End a worker that failed, or is not done in time; see `Supervisor.close`."""
        self.detach()
        end = time.monotonic() + timeout
        while True:
            try:
                finished = self._process.wait(_LOOK_S) == 0
                break
            except subprocess.TimeoutExpired:
                if self._failed or time.monotonic() > end:
                    self._process.kill()
        self._watch.join(1.0)
        return finished

    @property
    def _failed(self) -> bool:
        """Whether the worker that is there has failed, or is about to begin as others before it that failed."""
        status = WorkerStatus.load(self._folder)
        mine = status.pid == self._process.pid
        if mine and status.state == "failed":
            return True
        return self._own_failures >= _HOPELESS and not (mine and status.state == "ready")


class ThreadSupervisor(Supervisor):
    """A worker in a thread of this process, in which its factory is made."""

    def __init__(
        self, folder: Path, settings: ReconstructionSettings, make_factory: Callable[[], ComponentFactory]
    ) -> None:
        super().__init__(folder)
        self._settings = settings
        self._make_factory = make_factory
        self._thread = threading.Thread(target=self._run, name="ptychonn worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # On Linux a thread has a priority of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._settings.nice)
        while True:
            worker = Worker(self._folder, self._settings, self._make_factory)
            try:
                return worker.run(self._closing)
            except Exception as error:  # noqa: BLE001  # said in status and log, and told the session
                wait_s = self._backoff.fail()
                self.problem = f"worker ended with {type(error).__name__}: {error}; starting it again in {wait_s:g} s"
                if worker.misconfigured or self._closing.wait(wait_s):
                    return None
                self.restarts += 1

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self, timeout: float) -> bool:
        """Let the worker finish what was journaled, at most `timeout` s; whether it did."""
        self._closing.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def detach(self) -> None:
        """Let the worker finish; a thread ends with its process, so wait for it a little."""
        self.close(10.0)


def resume(sessions: list[Path], api_key: str | None) -> threading.Thread:
    """Let workers finish sessions that were left behind, one after the other, in the background.

    What cannot be finished now, because the catalog is away or a raw run not whole, is tried again, as long as this
    process lives.
    """

    def work() -> None:
        left, backoff = list(sessions), Backoff(_LONGEST_S, _RESUME_LONGEST_S)
        while True:
            for folder in list(left):
                log.info("taking up the runs that were left unfinished in %s", folder)
                try:
                    process = _start(folder, ReconstructionSettings.load(folder), api_key)
                    _close_input(process)  # no more will come: finish and end
                    code = process.wait()
                except (OSError, ValueError) as error:
                    log.info("%s: %s", folder, error)
                    continue
                if code == MISCONFIGURED or not count_unfinished(folder):
                    left.remove(folder)
            if not left:
                return
            time.sleep(backoff.fail())

    thread = threading.Thread(target=work, name="ptychonn taking up", daemon=True)
    thread.start()
    return thread


def _start(folder: Path, settings: ReconstructionSettings, api_key: str | None) -> subprocess.Popen[bytes]:
    with _error_file(folder) as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bluesky_ptychonn.live.worker", str(folder)],
            stdin=subprocess.PIPE,  # its end tells the worker that we closed, or died
            stdout=errors,
            stderr=errors,
            env=_environment(settings),
            start_new_session=True,  # Ctrl-C pauses the plan; the worker goes on
        )
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # it ended at once: who waits for it is told so
            process.stdin.write(f"{api_key or ''}\n".encode())
            process.stdin.flush()
    return process


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _error_file(folder: Path) -> IO[bytes]:
    """File for what a worker says before and after it has its log; nowhere, on a disk that will not take it."""
    path = (folder / LOG).with_suffix(".err")
    try:
        if path.exists() and path.stat().st_size > _ERRORS_BYTES:
            path.replace(path.with_suffix(".err.1"))
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _environment(settings: ReconstructionSettings) -> dict[str, str]:
    environment = passive({key: value for key, value in os.environ.items() if key != "TILED_API_KEY"})
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(settings.threads))
    # Tiled's client repeats a request for 45 s on its own; the worker knows better when to try again.
    environment |= {"TILED_RETRY_ATTEMPTS": "2", "TILED_RETRY_TIMEOUT": "1.0"}
    # The worker must run this very package, also where it was found by the current folder alone.
    package = str(Path(bluesky_ptychonn.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    return environment
