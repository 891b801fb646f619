"""An existing iterative solver, pty-chi's LSQML, in an interpreter of its own.

pty-chi sets torch's default device and dtype, pins packages of its own, and imports one transform of torchvision. So it
never runs inside a process of ours: each call starts ``ptychi_worker.py`` as a script, in the interpreter named by
``PTYCHONN_PEER_PYTHON`` or in the present one, and exchanges ``.npz`` files with it. This module needs only numpy.

Conventions: exit wave = ``probe * object[patch]``; frame = ``|fftshift(fft2(ifftshift(exit), norm="ortho"))|**2`` in
counts, with the direct beam at pixel ``(N // 2, N // 2)``. A position is the object pixel (row, column), fractions
allowed, under probe pixel ``(N // 2, N // 2)``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.processors import free_processors, passive

#: Names the interpreter that has pty-chi; the present one when unset.
PYTHON_VARIABLE = "PTYCHONN_PEER_PYTHON"

#: Frames updated together. On every sixteenth frame of the Siemens star 4, 16 and 33 end within 0.002 in correlation.
BATCH_SIZE = 16

#: The same while the probe is being found.
JOINT_BATCH_SIZE = 40

#: Damping of the object's preconditioner. On every sixteenth frame, 80 epochs reach a correlation of 0.853 with 0.02,
#: 0.863 with 0.1 (pty-chi's default), 0.867 with 0.5, and 0.866 with 1 and 3.
DAMPING = 0.5

#: The same while the probe is being found: pty-chi's default.
JOINT_DAMPING = 0.1

#: Share of the least-squares step taken, pty-chi's own default, and while settling at the end of a joint solution.
STEP, SETTLING_STEP = 0.9, 0.3

#: Frames times epochs, fewest and most epochs: see `settled_epochs`.
_FRAME_EPOCHS, _FEWEST, _MOST = 7_800, 15, 300

_WORKER = Path(__file__).with_name("ptychi_worker.py").resolve()

#: Exit status of the worker when its interpreter has no pty-chi; `ptychi_worker.MISSING` is the same.
_MISSING = 3


@dataclass(frozen=True)
class Solution:
    """What the solver made of one set of frames.

    Attributes
    ----------
    object : (H, W) complex64
        After the last epoch.
    probe : (N, N) complex64
        In square roots of counts; the given one where it was known.
    epochs : (K,) int
        When each snapshot was taken; the last is the final one.
    snapshots : (K, H, W) complex64
    seconds : (K,) float
        Wall time of the solver alone up to each snapshot: no import, no transfer between processes.
    cpu_seconds : (K,) float
        The same in process CPU time, all threads together: fair on a busy machine.
    loss : (last epoch,) float
        ``sum((sqrt(counts) - |F|)**2) / sum(counts)`` of each epoch, as pty-chi sees it while updating.
    software, device : str
    threads : int
        torch threads used.
    """

    object: NDArray[np.complex64]
    probe: NDArray[np.complex64]
    epochs: NDArray[np.int64]
    snapshots: NDArray[np.complex64]
    seconds: NDArray[np.float64]
    cpu_seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    software: str
    device: str
    threads: int


@dataclass(frozen=True)
class SolverSettings:
    """How the solver is run.

    Parameters
    ----------
    batch_size : int
        Frames updated together.
    device : {"cpu", "gpu"}
    threads : int
        torch threads; 0 takes as many as processors are free.
    seed : int
        Of the order of the frames.
    """

    batch_size: int = BATCH_SIZE
    device: str = "cpu"
    threads: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "gpu"):
            raise ValueError(f"device: got {self.device!r}; allowed are 'cpu' and 'gpu'")


class SolverError(RuntimeError):
    """The solver did not give an answer; its last words in one line, all of them as a note."""


class SolverMissingError(SolverError):
    """The interpreter asked for the solver has no pty-chi."""


def solver_python() -> str:
    """Path of the interpreter that runs the solver: ``PTYCHONN_PEER_PYTHON`` or the present one."""
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def solver_version() -> str | None:
    """Version of pty-chi in the solver's interpreter, None when it has none."""
    code = "import importlib.metadata as m; print(m.version('ptychi'))"
    try:
        done = subprocess.run([solver_python(), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def reconstruct_with_probe(
    frames: NDArray[Any],
    positions_px: NDArray[np.floating],
    probe: NDArray[np.complexfloating],
    shape: tuple[int, int],
    *,
    epochs: int | Sequence[int] | None = None,
    settings: SolverSettings | None = None,
) -> Solution:
    """Object from frames through a known, fixed probe, starting from a flat object.

    Parameters
    ----------
    frames : (n, N, N) real
        Counts, direct beam at pixel (N // 2, N // 2).
    positions_px : (n, 2) float
        Row and column of each patch's centre, object pixels.
    probe : (N, N) complex
        Square roots of counts.
    shape : (H, W)
        Of the object, pixels. Every patch must lie inside with one pixel to spare.
    epochs : int or increasing sequence of int, optional
        How long to run, or after which epochs to keep the object; `settled_epochs` when not given.
    settings : SolverSettings, optional

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        For shapes or positions that do not fit.
    SolverMissingError
        When the interpreter has no pty-chi.
    SolverError
        When pty-chi fails; with its own words.
    """
    marks = _marks(settled_epochs(len(frames)) if epochs is None else epochs)
    stages = [{"epochs": marks, "step": STEP, "damping": DAMPING, "probe": False}]
    return _solve(frames, positions_px, probe, shape, stages, settings or SolverSettings())


def reconstruct_probe_and_object(
    frames: NDArray[Any],
    positions_px: NDArray[np.floating],
    probe: NDArray[np.complexfloating],
    shape: tuple[int, int],
    *,
    epochs: int = 45,
    settling_epochs: int = 20,
    settings: SolverSettings | None = None,
) -> Solution:
    """Object and probe together, from a first guess of the probe and a flat object.

    The guess is first scaled to the frames' mean counts. The last `settling_epochs` take smaller steps, which ends the
    small oscillation that full steps keep up. pty-chi leaves the object with a mean intensity near 1 in the scanned
    area.

    Parameters
    ----------
    frames, positions_px, shape
        As in `reconstruct_with_probe`.
    probe : (N, N) complex
        First guess; its scale does not matter.
    epochs, settling_epochs : int
        With full and with smaller steps.
    settings : SolverSettings, optional
        In batches of 40 by default.

    Returns
    -------
    Solution
        One snapshot, after the last epoch.

    Raises
    ------
    ValueError, SolverMissingError, SolverError
        As in `reconstruct_with_probe`.
    """
    guess = np.asarray(probe)
    power = float(np.sum(np.abs(guess) ** 2))
    if power == 0 or not np.isfinite(power):
        raise ValueError("probe: its total intensity is 0 or not finite; give the beamline's first guess of the probe")
    counts = float(np.asarray(frames).sum(axis=(-2, -1), dtype=np.float64).mean())
    stages = [{"epochs": _marks(epochs), "step": STEP, "damping": JOINT_DAMPING, "probe": True}]
    if settling_epochs:
        stages.append(stages[0] | {"epochs": _marks(settling_epochs), "step": SETTLING_STEP})
    scaled = guess * np.sqrt(counts / power)
    return _solve(frames, positions_px, scaled, shape, stages, settings or SolverSettings(batch_size=JOINT_BATCH_SIZE))


def settled_epochs(frames: int) -> int:
    """Epochs after which more changed no correlation by more than 0.004 on the measured Siemens star."""
    return int(np.clip(_FRAME_EPOCHS // frames, _FEWEST, _MOST)) if frames > 0 else _MOST


def _marks(epochs: int | Sequence[int]) -> list[int]:
    marks = [int(epochs)] if isinstance(epochs, (int, np.integer)) else [int(mark) for mark in epochs]
    if not marks or marks[0] < 1 or any(later <= earlier for earlier, later in pairwise(marks)):
        raise ValueError(f"epochs: got {epochs}; an integer of 1 or more, or an increasing sequence of such, is needed")
    return marks


def _solve(
    frames: NDArray[Any],
    positions_px: NDArray[np.floating],
    probe: NDArray[np.complexfloating],
    shape: tuple[int, int],
    stages: list[dict[str, Any]],
    settings: SolverSettings,
) -> Solution:
    """Check what is asked for, and have it done in the solver's interpreter."""
    counts, positions = np.asarray(frames, dtype=np.float32), np.asarray(positions_px, dtype=np.float64)
    n, rows, columns = counts.shape if counts.ndim == 3 else (0, 0, 0)
    if n == 0 or rows != columns or np.shape(probe) != (rows, columns) or positions.shape != (n, 2):
        raise ValueError(
            f"got frames {counts.shape}, probe {np.shape(probe)}, positions {positions.shape}; "
            "needed are (n, N, N), (N, N) and (n, 2)"
        )
    low, high = positions.min(axis=0) - rows / 2 - 1, positions.max(axis=0) + rows / 2 + 1
    if np.any(low < 0) or np.any(high > np.asarray(shape)):
        raise ValueError(
            f"shape: got {shape} px, but the patches reach from {low.round(1)} to {high.round(1)} px; "
            "enlarge the object or shift the positions"
        )
    settings = replace(settings, threads=settings.threads or free_processors())
    request = {"stages": stages, **asdict(settings), "batch_size": min(settings.batch_size, n)}
    with tempfile.TemporaryDirectory(prefix="ptychonn-solver-") as folder:
        asked, answered = Path(folder, "asked.npz"), Path(folder, "answered.npz")
        np.savez(
            asked,
            frames=counts,
            positions=positions,
            probe=np.asarray(probe, dtype=np.complex64),
            shape=np.asarray(shape),
            request=np.asarray(json.dumps(request)),
        )
        _run([solver_python(), str(_WORKER), str(asked), str(answered)])
        return _read(answered, (rows, columns), shape, settings.threads)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=passive(os.environ))
    except OSError as error:
        raise SolverMissingError(
            f"{command[0]} cannot be started ({error.strerror}); name an interpreter with pty-chi in {PYTHON_VARIABLE}"
        ) from None
    if done.returncode == 0:
        return
    output = done.stderr.strip()
    last = output.splitlines()[-1] if output else "without a word"
    missing = done.returncode == _MISSING
    failed = SolverMissingError(last) if missing else SolverError(f"the solver ended with {done.returncode}: {last}")
    failed.add_note(output[-4000:])
    raise failed


def _read(path: Path, probe_shape: tuple[int, int], shape: tuple[int, int], threads: int) -> Solution:
    """Read an answer, and believe it only where it can be one."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as answer:
            found = Solution(
                object=answer["snapshots"][-1],
                probe=answer["probe"],
                epochs=answer["epochs"],
                snapshots=answer["snapshots"],
                seconds=answer["seconds"],
                cpu_seconds=answer["cpu_seconds"],
                loss=answer["loss"],
                software=str(answer["software"]),
                device=str(answer["device"]),
                threads=threads,
            )
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise SolverError(f"the solver's answer cannot be read ({error}); is {solver_python()} a Python?") from None
    if found.object.shape != tuple(shape) or found.probe.shape != probe_shape:
        raise SolverError(
            f"the solver answered with an object {found.object.shape} and a probe {found.probe.shape} px; asked for "
            f"were {tuple(shape)} and {probe_shape}"
        )
    if not np.isfinite(found.object).all() or not np.isfinite(found.probe).all():
        raise SolverError("the solver diverged: its object or probe holds NaN; give fewer epochs or a better probe")
    return found
