"""Keeps one worker alive: a process that is started again when it dies, or a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import bluesky_ptychonn
from bluesky_ptychonn.live.pipeline.protocols import ComponentFactory
from bluesky_ptychonn.live.pipeline.settings import ReconstructionSettings
from bluesky_ptychonn.live.session import LOG, WorkerStatus, unfinished
from bluesky_ptychonn.live.worker import WRONG, Worker

log = logging.getLogger(__name__)

_LONGEST_S = 60.0  # between tries to start a worker again: as long as the session lives, frames do not stay undone
_LONGEST_TAKING_UP_S = 600.0
_ERRORS_BYTES = 1 << 20
_CALM_S = 60.0  # a worker that lived this long starts with a clean slate


class Supervisor(Protocol):
    """Keeps a worker alive until it is closed."""

    @property
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""

    @property
    def restarts(self) -> int:
        """How often the worker had to be started again."""

    @property
    def problem(self) -> str:
        """Why there is no worker at this moment, in words; empty when all is well."""

    def close(self, timeout: float) -> bool:
        """Let the worker finish what was journaled, at most `timeout` s; whether it did."""

    def let_go(self) -> None:
        """Tell the worker that no more will come, without waiting for long."""


class WorkerSupervisor:
    """A worker process, started again, later each time, when it dies.

    Parameters
    ----------
    folder : Path
        The session's folder, with its order in it.
    order : ReconstructionSettings
        The same order, for its number of threads.
    api_key : str or None
        Key of the catalog; goes down the worker's input, where no other process sees it.
    """

    def __init__(self, folder: Path, order: ReconstructionSettings, api_key: str | None) -> None:
        self._folder = folder
        self._environment = _environment(order)
        self._api_key = api_key
        self._closing = threading.Event()
        self._gave_up = False
        self.restarts = 0
        self.problem = ""
        self._process = self._start()
        self._watch = threading.Thread(target=self._watch_over, name="ptychonn worker watch", daemon=True)
        self._watch.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with _errors(self._folder) as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "bluesky_ptychonn.live.worker", str(self._folder)],
                stdin=subprocess.PIPE,  # its end tells the worker that we closed, or died
                stdout=errors,
                stderr=errors,
                env=self._environment,
                start_new_session=True,  # Ctrl-C pauses the plan; the worker goes on
            )
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # it ended at once: its watch says so
                process.stdin.write(_first_line(self._api_key))
                process.stdin.flush()
        return process

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""
        return not self._gave_up and not self._closing.is_set()

    def _watch_over(self) -> None:
        in_a_row = 0
        while True:
            try:
                code = self._process.wait(_CALM_S)
            except subprocess.TimeoutExpired:
                in_a_row, self.problem = 0, ""
                continue
            self._close_input()
            if self._closing.is_set():
                return
            if code == WRONG:
                self._gave_up = True
                return
            in_a_row += 1
            if not self._again(code, in_a_row):
                return

    def _again(self, code: int, in_a_row: int) -> bool:
        """Start the worker again, after a while; False when the session is closed meanwhile."""
        wait_s = min(0.5 * 2 ** min(in_a_row - 1, 16), _LONGEST_S)
        times = f", {in_a_row} times in a row" if in_a_row > 1 else ""
        words = f"worker ended with code {code}{times}"
        while True:
            self._say(f"{words}; starting it again in {wait_s:g} s; frames stay in the journal")
            if self._closing.wait(wait_s):
                return False
            try:
                self._process = self._start()
            except OSError as error:  # no memory or no process to be had
                words, wait_s = f"worker cannot be started: {error}", _LONGEST_S
                continue
            self.restarts += 1
            return True

    def _say(self, problem: str) -> None:
        """Say it to who asks for the status, here or in another shell; the session's notifier warns once."""
        said = WorkerStatus.load(self._folder)
        if said.state == "failed" and said.problem:
            problem = f"{problem}. It said: {said.problem}"
        self.problem = problem
        log.info("%s. See %s", problem, self._folder / LOG)
        said.state, said.problem = "starting", problem
        with contextlib.suppress(OSError):
            said.save(self._folder)

    def let_go(self) -> None:
        """Tell the worker that no more will come, and leave it to finish by itself."""
        self._closing.set()
        self._close_input()

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def close(self, timeout: float) -> bool:
        """Let the worker finish what was journaled, at most `timeout` s, then end it; whether it finished."""
        self.let_go()
        try:
            finished = self._process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            finished = False
        self._watch.join(1.0)
        return finished


def resume(sessions: list[Path], api_key: str | None) -> threading.Thread:
    """Let workers finish sessions that were left behind, one after the other, in the background.

    What cannot be finished now, because the catalog is away or a raw run not whole, is tried again, as long as this
    process lives.
    """

    def work() -> None:
        left, wait_s = list(sessions), _LONGEST_S
        while left:
            for folder in list(left):
                log.info("taking up the runs that were left unfinished in %s", folder)
                try:
                    code = _finish(folder, api_key)
                except (OSError, ValueError) as error:
                    log.info("%s: %s", folder, error)
                    continue
                if code == WRONG or not unfinished(folder):
                    left.remove(folder)
            if left:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_TAKING_UP_S)

    thread = threading.Thread(target=work, name="ptychonn taking up", daemon=True)
    thread.start()
    return thread


def _finish(folder: Path, api_key: str | None) -> int:
    """Let a worker finish what is in a session's folder; returns its exit code."""
    with _errors(folder) as errors:
        return subprocess.run(
            [sys.executable, "-m", "bluesky_ptychonn.live.worker", str(folder)],
            input=_first_line(api_key),  # and no more will come: finish and end
            stdout=errors,
            stderr=errors,
            env=_environment(ReconstructionSettings.load(folder)),
            start_new_session=True,
            check=False,
        ).returncode


def _errors(folder: Path) -> IO[bytes]:
    """File for what a worker says before and after it has its log; nowhere, on a disk that will not take it."""
    path = (folder / LOG).with_suffix(".err")
    try:
        if path.exists() and path.stat().st_size > _ERRORS_BYTES:
            path.replace(path.with_suffix(".err.1"))
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _first_line(api_key: str | None) -> bytes:
    return f"{api_key or ''}\n".encode()


def _environment(order: ReconstructionSettings) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "TILED_API_KEY"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(order.threads)
    # Tiled's client repeats a request for 45 s on its own; the worker knows better when to try again.
    environment |= {"TILED_RETRY_ATTEMPTS": "2", "TILED_RETRY_TIMEOUT": "1.0"}
    # The worker must run this very package, also where it was found by the current folder alone.
    package = str(Path(bluesky_ptychonn.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    return environment


class ThreadSupervisor:
    """A worker in a thread of this process.

    Parameters
    ----------
    folder : Path
        The session's folder.
    order : ReconstructionSettings
        What to do.
    make_factory : callable
        Makes the factory, in the thread.
    """

    def __init__(
        self,
        folder: Path,
        order: ReconstructionSettings,
        make_factory: Callable[[ReconstructionSettings], ComponentFactory],
    ) -> None:
        self._closing = threading.Event()
        self._folder = folder
        self._order = order
        self._make_factory = make_factory
        self.restarts = 0
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="ptychonn worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # On Linux a thread has a priority of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._order.nice)
        wait_s = 0.5
        while True:
            worker = Worker(self._folder, self._order, self._make_factory)
            try:
                return worker.run(self._closing)
            except Exception as error:  # noqa: BLE001  # said in status and log, and told the session
                self.problem = f"worker ended with {type(error).__name__}: {error}; starting it again in {wait_s:g} s"
                if worker.cannot or self._closing.wait(wait_s):
                    return None
                self.restarts += 1
                wait_s = min(2 * wait_s, _LONGEST_S)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self, timeout: float) -> bool:
        """Let the worker finish what was journaled, at most `timeout` s; whether it did."""
        self._closing.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def let_go(self) -> None:
        """Let the worker finish; a thread ends with its process, so wait for it a little."""
        self.close(10.0)
