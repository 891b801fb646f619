"""Run pty-chi on what ``iterative.py`` wrote: started by it as a script, never imported.

    python bluesky_ptychonn/recon/iterative_worker.py ASKED.npz ANSWERED.npz

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


def _options(api: Any, stage: dict[str, Any], order: dict[str, Any]) -> Any:
    options = api.LSQMLOptions()
    solver = options.reconstructor_options
    solver.num_epochs = stage["epochs"][-1]
    solver.batch_size = order["batch_size"]
    # Batches spread over the scan: neighbours in one batch would average their updates instead of building on them.
    solver.batching_mode = api.BatchingModes.UNIFORM
    solver.default_device = api.Devices.GPU if order["device"] == "gpu" else api.Devices.CPU
    solver.random_seed = order["seed"]
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
    """Do what `asked` holds and write it to `answered`; the other half of `iterative._solve`."""
    api, task_class = _import_ptychi()  # first: what is missing is said before seconds go into importing torch
    import torch

    with np.load(asked) as given:
        frames, positions, probe = given["frames"], given["positions"], given["probe"]
        shape, order = tuple(given["shape"]), json.loads(str(given["order"]))
    if order["threads"]:
        torch.set_num_threads(order["threads"])
    size = frames.shape[-1]
    estimate = np.ones((1, *shape), dtype=np.complex64)
    # pty-chi's transform is not normalised: its probe is ours divided by N.
    modes = (probe / size).astype(np.complex64)[None, None]
    y, x = positions.T.astype(np.float32)
    marks: list[int] = []
    snapshots, seconds, cpu_seconds, losses = [], [], [], []
    spent = spent_cpu = 0.0
    finished = 0
    for number, stage in enumerate(order["stages"], start=1):
        with task_class(
            _options(api, stage, order),
            diffraction_data=frames,
            object_data=estimate,
            probe_data=modes,
            probe_position_x_px=x,
            probe_position_y_px=y,
        ) as task:
            before = 0
            for mark in stage["epochs"]:
                start, start_cpu = time.perf_counter(), time.process_time()
                task.run(mark - before)
                estimate = task.get_data_to_cpu("object", as_numpy=True).copy()  # waits for the device
                spent += time.perf_counter() - start
                spent_cpu += time.process_time() - start_cpu
                before = mark
                if number == len(order["stages"]):
                    marks.append(finished + mark)
                    snapshots.append(estimate[0])
                    seconds.append(spent)
                    cpu_seconds.append(spent_cpu)
            modes = task.get_data_to_cpu("probe", as_numpy=True).copy()
            losses.append(task.reconstructor.loss_tracker.table["loss"].to_numpy(dtype=np.float64))
            finished += before
    np.savez(
        answered,
        snapshots=np.stack(snapshots).astype(np.complex64),
        probe=(modes[0, 0] * size).astype(np.complex64),
        epochs=np.asarray(marks),
        seconds=np.asarray(seconds),
        cpu_seconds=np.asarray(cpu_seconds),
        # pty-chi gives the mean squared difference of amplitudes a pixel.
        loss=np.concatenate(losses) * frames.size / frames.sum(dtype=np.float64),
        software=np.asarray(f"pty-chi {importlib.metadata.version('ptychi')} LSQML"),
        device=np.asarray(torch.cuda.get_device_name() if order["device"] == "gpu" else "cpu"),
    )


if __name__ == "__main__":
    try:
        _answer(Path(sys.argv[1]), Path(sys.argv[2]))
    except ImportError as missing:
        sys.stderr.write(
            f"{sys.executable} has no pty-chi ({missing}); install it there (pip install --no-deps ptychi==2.2.0 && "
            "pip install scikit-learn tqdm), or name an interpreter that has it in PTYCHONN_PEER_PYTHON\n"
        )
        sys.exit(MISSING)
