"""Keeps one worker alive: a process that is started again when it dies, or a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import bluesky_ptychonn
from bluesky_ptychonn.stream.parts import Workshop
from bluesky_ptychonn.stream.session import KEY_VARIABLE, LOG, Order, WorkerStatus
from bluesky_ptychonn.stream.worker import WRONG, Worker

log = logging.getLogger(__name__)

_MOST_RESTARTS = 5
_CALM_S = 300.0  # a worker that lived this long starts with a clean slate


class Keeper(Protocol):
    """Keeps a worker alive until it is closed."""

    @property
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""

    @property
    def restarts(self) -> int:
        """How often the worker had to be started again."""

    def close(self, timeout: float) -> bool:
        """Let the worker finish what was journaled, at most `timeout` s; whether it did."""

    def let_go(self) -> None:
        """Tell the worker that no more will come, without waiting for long."""


class ProcessKeeper:
    """A worker process, started again, later each time, when it dies.

    Parameters
    ----------
    folder : Path
        The session's folder, with its order in it.
    order : Order
        The same order, for its number of threads.
    api_key : str or None
        Key of the catalog; travels in the environment.
    """

    def __init__(self, folder: Path, order: Order, api_key: str | None) -> None:
        self._folder = folder
        self._environment = _environment(order, api_key)
        self._closing = threading.Event()
        self._gave_up = False
        self.restarts = 0
        self._process = self._start()
        self._watch = threading.Thread(target=self._watch_over, name="ptychonn worker watch", daemon=True)
        self._watch.start()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._folder / LOG).with_suffix(".err").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "bluesky_ptychonn.stream.worker", str(self._folder)],
                stdin=subprocess.PIPE,  # its end tells the worker that we closed, or died
                stdout=errors,
                stderr=errors,
                env=self._environment,
                start_new_session=True,  # Ctrl-C pauses the plan; the worker goes on
            )

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether a worker is there, or will be again."""
        return not self._gave_up and not self._closing.is_set()

    def _watch_over(self) -> None:
        wait_s = 0.5
        while True:
            try:
                self._process.wait(_CALM_S)
            except subprocess.TimeoutExpired:
                wait_s, self.restarts = 0.5, 0
                continue
            self._close_input()
            if self._closing.is_set():
                return
            if self._process.returncode == WRONG:
                self._gave_up = True
                return
            words = f"worker ended with code {self._process.returncode}"
            if self.restarts >= _MOST_RESTARTS:
                self._say(
                    f"{words}, {self.restarts} times in a row; frames stay in the journal. See {self._folder / LOG}"
                )
                self._gave_up = True
                return
            log.warning("%s; starting it again in %.1f s", words, wait_s)
            if self._closing.wait(wait_s):
                return
            self.restarts += 1
            wait_s *= 2
            self._process = self._start()

    def _say(self, problem: str) -> None:
        log.error("%s", problem)
        status = WorkerStatus.load(self._folder)
        status.state, status.problem = "failed", f"{problem}: {status.problem}" if status.problem else problem
        with contextlib.suppress(OSError):
            status.save(self._folder)

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


def take_up(sessions: list[Path], api_key: str | None) -> threading.Thread:
    """Let workers finish sessions that were left behind, one after the other, in the background."""

    def work() -> None:
        for folder in sessions:
            log.warning("taking up the runs that were left unfinished in %s", folder)
            with (folder / LOG).with_suffix(".err").open("ab") as errors:
                subprocess.run(
                    [sys.executable, "-m", "bluesky_ptychonn.stream.worker", str(folder)],
                    stdin=subprocess.DEVNULL,  # no more will come: finish and end
                    stdout=errors,
                    stderr=errors,
                    env=_environment(Order.load(folder), api_key),
                    start_new_session=True,
                    check=False,
                )

    thread = threading.Thread(target=work, name="ptychonn taking up", daemon=True)
    thread.start()
    return thread


def _environment(order: Order, api_key: str | None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "TILED_API_KEY"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(order.threads)
    if api_key is not None:
        environment[KEY_VARIABLE] = api_key
    # The worker must run this very package, also where it was found by the current folder alone.
    package = str(Path(bluesky_ptychonn.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    return environment


class ThreadKeeper:
    """A worker in a thread of this process.

    Parameters
    ----------
    folder : Path
        The session's folder.
    order : Order
        What to do.
    make_workshop : callable
        Makes the workshop, in the thread.
    """

    restarts = 0

    def __init__(self, folder: Path, order: Order, make_workshop: Callable[[Order], Workshop]) -> None:
        self._closing = threading.Event()
        self._worker = Worker(folder, order, make_workshop)
        self._order = order
        self._thread = threading.Thread(target=self._run, name="ptychonn worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # On Linux a thread has a priority of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._order.nice)
        with contextlib.suppress(Exception):  # the worker has said so in its status and log
            self._worker.run(self._closing)

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
