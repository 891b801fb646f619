"""Metrics of a training in a real catalog: the table that comes back is the one that went in."""

from __future__ import annotations

import math
import sys
import uuid
from pathlib import Path

import pytest

from bluesky_ptychonn.card import load_card
from bluesky_ptychonn.catalog.connection.server import CatalogServer
from bluesky_ptychonn.catalog.registry.registry import Registry
from bluesky_ptychonn.catalog.registry.training_metrics import METRICS, get_metrics, put_metrics
from bluesky_ptychonn.cli import main
from bluesky_ptychonn.recon.models.library import WEIGHTS_FILE, place
from bluesky_ptychonn.recon.training.metrics_table import METRICS_FILE, write_rows

ROWS = [
    {"step": 10, "frames": 160, "seconds": 0.1 + 0.2, "loss": 1 / 3, "held_out_simulated": math.nan},
    {"step": 20, "frames": 320, "seconds": 1e-7, "loss": 0.25, "held_out_simulated": 0.07},
]


@pytest.fixture
def model(tmp_path: Path, small_model: Path) -> Path:
    card = load_card(small_model).model_copy(update={"name": f"m-{uuid.uuid4().hex[:12]}"})
    folder = place(card, (small_model / WEIGHTS_FILE).read_bytes(), tmp_path / "made")
    write_rows(folder / METRICS_FILE, ROWS)
    return folder


def test_metrics_travel_with_the_model(
    catalog_server: CatalogServer,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry = Registry(catalog_server)
    name = load_card(model).name
    version = registry.publish(model)
    got = registry.fetch(name, version, to=tmp_path / "here")
    assert (got / METRICS_FILE).read_text() == (model / METRICS_FILE).read_text()
    for row, was in zip(registry.metrics(name, version), ROWS, strict=True):
        assert row == pytest.approx(was, rel=0, abs=0, nan_ok=True)
    frame = catalog_server.models[name][version][METRICS].read()  # a plain table for anyone who looks
    assert frame["loss"].tolist() == [1 / 3, 0.25]

    monkeypatch.setattr(sys, "argv", ["ptychonn", "models", "show", name, "--catalog", str(catalog_server.folder)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert f"metrics of its training: 2 rows in models/{name}/{version}/metrics" in capsys.readouterr().out


def test_an_interrupted_table_is_written_anew_and_none_is_none(catalog_server: CatalogServer, model: Path) -> None:
    registry = Registry(catalog_server)
    name = load_card(model).name
    (model / METRICS_FILE).unlink()
    version = registry.publish(model)
    assert registry.metrics(name, version) == ()
    node = registry._at(name, version)
    put_metrics(node, ROWS[:1])
    put_metrics(node, ROWS)
    assert [row["step"] for row in get_metrics(node)] == [10, 20]
