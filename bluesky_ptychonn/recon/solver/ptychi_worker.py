"""Run pty-chi on what ``ptychi.py`` wrote: started by it as a script, never imported.

    python bluesky_ptychonn/recon/solver/ptychi_worker.py ASKED.npz ANSWERED.npz

Its interpreter needs pty-chi, torch and numpy, and nothing of this project.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

#: Exit status when this interpreter has no pty-chi.
MISSING = 3


def _import_ptychi() -> tuple[Any, Any]:
    """pty-chi's options and task, with a stand-in for torchvision while importing where that is absent.

    Of torchvision pty-chi 2.2 imports ``GaussianBlur`` alone, to smooth a random first object, which is never asked for
    here. torchvision has no build for every torch, so its absence must not keep the solver out.
    """
    absent = importlib.util.find_spec("torchvision") is None
    if absent:
        package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
        transforms.GaussianBlur = _NoGaussianBlur  # type: ignore[attr-defined]
        package.transforms = transforms  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}
    try:
        return importlib.import_module("ptychi.api"), importlib.import_module("ptychi.api.task").PtychographyTask
    finally:
        if absent:
            del sys.modules["torchvision"], sys.modules["torchvision.transforms"]


class _NoGaussianBlur:
    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("pty-chi wants torchvision's GaussianBlur, which is not installed here")


def _options(api: Any, stage: dict[str, Any], request: dict[str, Any]) -> Any:
    options = api.LSQMLOptions()
    solver = options.reconstructor_options
    solver.num_epochs = stage["epochs"][-1]
    solver.batch_size = request["batch_size"]
    # Batches spread over the scan: neighbours in one batch would average their updates instead of building on them.
    solver.batching_mode = api.BatchingModes.UNIFORM
    solver.default_device = api.Devices.GPU if request["device"] == "gpu" else api.Devices.CPU
    solver.random_seed = request["seed"]
    # The scale is known (fixed probe) or set beforehand (first guess), and later stages must not be rescaled.
    solver.rescale_probe_intensity_in_first_epoch = False
    solver.preconditioning_damping_factor = stage["damping"]
    target = options.object_options
    target.optimal_step_size_scaler = stage["step"]
    target.remove_object_probe_ambiguity.enabled = stage["probe"]
    # pty-chi puts a position between the pixels N/2 - 1 and N/2 of a patch; half a pixel less puts it on pixel N/2.
    target.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    target.position_origin_coords = [-0.5, -0.5]
    options.probe_options.optimizable = stage["probe"]
    options.probe_options.optimal_step_size_scaler = stage["step"]
    options.probe_options.orthogonalize_incoherent_modes.enabled = False
    options.probe_position_options.optimizable = False
    return options


def _answer(asked: Path, answered: Path) -> None:
    """Do what `asked` holds and write it to `answered`; the other half of `ptychi._solve`."""
    api, task_class = _import_ptychi()  # first: what is missing is said before seconds go into importing torch
    import torch

    with np.load(asked) as given:
        frames, positions, probe = given["frames"], given["positions"], given["probe"]
        shape, request = tuple(given["shape"]), json.loads(str(given["request"]))
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    size = frames.shape[-1]
    # pty-chi's transform is not normalised: its probe is ours divided by N.
    solving = _Solving(api, task_class, request, (probe / size).astype(np.complex64)[None, None], shape)
    for stage in request["stages"]:
        solving.run(stage, frames, positions)
    np.savez(
        answered,
        snapshots=np.stack(solving.snapshots).astype(np.complex64),
        probe=(solving.probe[0, 0] * size).astype(np.complex64),
        epochs=np.asarray(solving.marks),
        seconds=np.asarray(solving.seconds),
        cpu_seconds=np.asarray(solving.cpu_seconds),
        # pty-chi gives the mean squared difference of amplitudes a pixel.
        loss=np.concatenate(solving.losses) * frames.size / frames.sum(dtype=np.float64),
        software=np.asarray(f"pty-chi {importlib.metadata.version('ptychi')} LSQML"),
        device=np.asarray(torch.cuda.get_device_name() if request["device"] == "gpu" else "cpu"),
    )


class _Solving:
    """Object and probe under way through the stages, and what is kept of the last one."""

    def __init__(self, api: Any, task_class: Any, request: dict[str, Any], probe: Any, shape: tuple[int, ...]) -> None:
        self._api, self._task_class, self._request = api, task_class, request
        self.object, self.probe = np.ones((1, *shape), dtype=np.complex64), probe
        self.snapshots: list[Any] = []
        self.marks: list[int] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.losses: list[Any] = []
        self._spent = self._spent_cpu = 0.0
        self._finished = 0

    def run(self, stage: dict[str, Any], frames: Any, positions: Any) -> None:
        """Go through one stage, with a snapshot at each of its marks where it is the last."""
        y, x = positions.T.astype(np.float32)
        with self._task_class(
            _options(self._api, stage, self._request),
            diffraction_data=frames,
            object_data=self.object,
            probe_data=self.probe,
            probe_position_x_px=x,
            probe_position_y_px=y,
        ) as task:
            before = 0
            for mark in stage["epochs"]:
                start, start_cpu = time.perf_counter(), time.process_time()
                task.run(mark - before)
                self.object = task.get_data_to_cpu("object", as_numpy=True).copy()  # waits for the device
                self._spent += time.perf_counter() - start
                self._spent_cpu += time.process_time() - start_cpu
                before = mark
                if stage is self._request["stages"][-1]:
                    self.marks.append(self._finished + mark)
                    self.snapshots.append(self.object[0])
                    self.seconds.append(self._spent)
                    self.cpu_seconds.append(self._spent_cpu)
            self.probe = task.get_data_to_cpu("probe", as_numpy=True).copy()
            self.losses.append(task.reconstructor.loss_tracker.table["loss"].to_numpy(dtype=np.float64))
        self._finished += before


if __name__ == "__main__":
    try:
        _answer(Path(sys.argv[1]), Path(sys.argv[2]))
    except ImportError as missing:
        sys.stderr.write(
            f"{sys.executable} has no pty-chi ({missing}); install it there (pip install --no-deps ptychi==2.2.0 && "
            "pip install scikit-learn tqdm), or name an interpreter that has it in PTYCHONN_PEER_PYTHON\n"
        )
        sys.exit(MISSING)
