"""Threads wait without spinning, and are as many as processors are free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bluesky_ptychonn import processors
from bluesky_ptychonn.processors import free_processors, passive, usable_processors

_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}


@pytest.mark.parametrize(
    "entry",
    ["import bluesky_ptychonn; bluesky_ptychonn.Reconstructor", "from bluesky_ptychonn.cli import main; main()"],
)
def test_every_way_in_lets_openmp_sleep_while_it_waits(entry: str) -> None:
    """OpenMP itself says what it was told when torch loaded it."""
    code = f"import sys; sys.argv = ['ptychonn', 'train', '--probe', 'none.npy', '--out', 'none']; {entry}"
    environment = _CLEAN | {"OMP_DISPLAY_ENV": "VERBOSE"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "GOMP_SPINCOUNT = '0'" in said.stderr, said.stderr


def test_what_the_user_chose_holds() -> None:
    assert passive({"OMP_WAIT_POLICY": "active"}) == {"OMP_WAIT_POLICY": "active"}
    assert passive({"A": "1"})["OMP_WAIT_POLICY"] == "passive"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors without limits; files say what else there is."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, file in (("_STAT", "stat"), ("_CGROUPS", "groups"), ("_OWN_CGROUP", "own")):
        monkeypatch.setattr(processors, name, tmp_path / file)
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    return tmp_path


def test_the_narrowest_limit_holds(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_processors() == 8
    (machine / "own").write_text("0::/a/b\n")
    (machine / "groups/a/b/cpu.max").write_text("max 100000\n")
    assert usable_processors() == 8
    (machine / "groups/a/cpu.max").write_text("350000 100000\n")  # of a group above ours
    assert usable_processors() == 3
    (machine / "own").write_text("4:cpu,cpuacct:/elsewhere\n")  # version 1, a path of the host's
    (machine / "groups/cpu").mkdir()
    (machine / "groups/cpu/cpu.cfs_quota_us").write_text("50000\n")
    (machine / "groups/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_processors() == 1
    (machine / "own").write_text("")
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert usable_processors() == 2


@pytest.mark.parametrize(("busy", "free"), [(0, 8), (3, 5), (8, 1)])
def test_only_idle_processors_are_taken(machine: Path, monkeypatch: pytest.MonkeyPatch, busy: int, free: int) -> None:
    """Of twelve, four are others' alone: what these do is of no importance."""

    def write(ticks: int) -> None:
        rows = [(ticks, 0) if number < busy or number > 7 else (0, ticks) for number in range(12)]
        (machine / "stat").write_text("".join(f"cpu{k} {b} 0 0 {i} 0 0 0 0 0 0\n" for k, (b, i) in enumerate(rows)))

    write(0)
    monkeypatch.setattr("time.sleep", lambda _: write(10))
    assert free_processors() == free


def test_without_a_word_from_the_system_all_usable_are_taken(machine: Path) -> None:
    assert free_processors(0.0) == 8
