"""Two real processes train one network over Gloo: they end equal, and as one process with both batches would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig
from bluesky_ptychonn.recon.networks.direct import DirectConfig
from bluesky_ptychonn.recon.networks.families import build_network
from bluesky_ptychonn.recon.training.distributed import process_group
from bluesky_ptychonn.recon.training.fit import TrainingConfig, fit
from bluesky_ptychonn.recon.training.losses import amplitude_phase_loss, probe_weight
from bluesky_ptychonn.recon.training.schedule import rate
from tests.support.scans import PROBE

CONFIG = TrainingConfig(
    network=DirectConfig(frame_size=32, patch_size=16, width=0.125, input_root=True, input_scale=5.0),
    synthetic=SyntheticConfig(photons=3e4, sample="texture"),
    loss="amplitude_phase",
    frames=64,
    batch_size=8,
    learning_rate=5e-3,
    ema=0.0,
    save_every_s=1e-9,
)
OTHER = """
import sys, numpy as np, torch
from pathlib import Path
from bluesky_ptychonn.recon.training.distributed import process_group
from bluesky_ptychonn.recon.training.fit import TrainingConfig, fit
Path(sys.argv[3] + ".ready").touch()
told = []
config = TrainingConfig.model_validate_json(sys.argv[1])
with process_group("cpu"):
    for batch_norm in (False, True):
        network = config.network.model_copy(update={"batch_norm": batch_norm})
        trained, record = fit(np.load(sys.argv[2]), config.model_copy(update={"network": network}),
                              checkpoint=Path(sys.argv[3]), progress=lambda *a: told.append(a))
        torch.save(trained.state_dict(), f"{sys.argv[3]}.{batch_norm}")
assert not told and not Path(sys.argv[3]).exists() and record["frames"] == 64
"""


def test_two_processes_end_equal_and_as_one_with_both_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe_port:
        port = probe_port.getsockname()[1]
    np.save(tmp_path / "probe.npy", PROBE)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = [CONFIG.model_dump_json(), str(tmp_path / "probe.npy"), str(tmp_path / "theirs")]
    command = [sys.executable, "-c", OTHER, *arguments]
    other = subprocess.Popen(command, env=os.environ | place | {"RANK": "1"}, cwd=repository)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "theirs.ready").exists():  # else this process would wait for one that died
            assert other.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        for name, value in {**place, "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        told: list[tuple[int, int, float]] = []
        normal = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"batch_norm": True})})
        with process_group("cpu"):
            plain, record = fit(PROBE, CONFIG, checkpoint=tmp_path / "ours", progress=lambda *a: told.append(a))
            normed, _ = fit(PROBE, normal)
        assert other.wait(120) == 0
    finally:
        other.kill()
        other.wait()
    assert [done for done, _, _ in told] == [16, 32, 48, 64]
    assert record["frames"] == 64
    for network, file in ((plain, "theirs.False"), (normed, "theirs.True")):
        theirs = torch.load(tmp_path / file, weights_only=True)
        assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())
    for name, value in _alone().items():
        torch.testing.assert_close(plain.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="ours belongs to another number of processes"):
        fit(PROBE, CONFIG, checkpoint=tmp_path / "ours")


def _alone() -> dict[str, torch.Tensor]:
    """The same four steps written out: both batches at once through one network."""
    torch.manual_seed(CONFIG.seed)
    network = build_network(CONFIG.network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
    data = SimulatedFrames(PROBE, 16, 8, CONFIG.synthetic, CONFIG.seed)
    for step in range(4):
        optimiser.param_groups[0]["lr"] = CONFIG.learning_rate * rate(step, 4)
        both = [data.batch(2 * step + rank) for rank in (0, 1)]
        patches = network(torch.cat([counts for counts, _, _ in both]))
        truth = torch.cat([truth for _, _, truth in both])
        weight = probe_weight(both[0][1], 16, 2.0, 0.01)
        optimiser.zero_grad()
        amplitude_phase_loss(patches, truth, weight).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return network.state_dict()
