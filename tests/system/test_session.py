"""A real IPython process with profile_startup/: attach, sparse plan, query."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PROMPT = r"\r?\nIn \[\d+\]: "
Ask = Callable[[str], str]


@pytest.fixture(scope="module")
def ask(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Type a line into the session; returns what it prints."""
    folder = tmp_path_factory.mktemp("session")
    config = folder / "ptychonn.toml"
    config.write_text((repository / "profile_startup/ptychonn.toml").read_text().replace("../build/session/", ""))
    (folder / "ipython/profile_default").mkdir(parents=True)
    (folder / "ipython/profile_default/startup").symlink_to(repository / "profile_startup")
    session = pexpect.spawn(
        sys.executable,
        ["-m", "IPython", f"--ipython-dir={folder / 'ipython'}", "--simple-prompt", "--colors=NoColor", "--no-banner"],
        env={**os.environ, "PTYCHONN_CONFIG": str(config), "TERM": "dumb"},
        cwd=str(folder),
        encoding="utf-8",
        timeout=240,
        dimensions=(50, 400),
    )
    session.expect(PROMPT)
    assert "Traceback" not in session.before, session.before

    def ask(line: str) -> str:
        session.sendline(line)
        session.expect(PROMPT)
        return str(session.before).split("\r\n", 1)[-1]

    yield ask
    session.sendline("exit")
    session.expect(pexpect.EOF)
    session.close()


def test_everything_is_attached(ask: Ask) -> None:
    assert "running" in ask("catalog")
    assert "LiveReconstruction simulated-zp64" in ask("live")
    assert "camera" in ask("camera.name")


def test_the_garbage_collector_leaves_what_start_up_brought_alone(ask: Ask) -> None:
    """A full collection stops a scan for as long as it takes."""
    frozen, left = map(int, re.findall(r"\d+", ask("import gc; (gc.get_freeze_count(), len(gc.get_objects()))"))[-2:])
    assert frozen > 100_000
    assert left < frozen / 4


def test_a_sparse_scan_is_reconstructed_and_found(ask: Ask) -> None:
    said = ask(
        "uid, = RE(sparse_ptycho_scan([camera], stage.x, stage.y, 1.2, 1.2, model='simulated-zp64', step_um=0.4))"
    )
    assert "Error" not in said, said
    assert "complete" in ask("live.wait(uid)")
    found = ask("reconstructions(catalog, raw=uid, status='complete')")
    assert re.search(r"PtychoReconstruction \w{8} scan 1, complete, 16/16 frames", found), found
    assert re.search(r"\(\d\d+, \d\d+\)", ask("_[0].phase.read().shape"))


def test_a_wrong_plan_is_refused_before_anything_moves(ask: Ask) -> None:
    said = ask("RE(sparse_ptycho_scan([camera], stage.x, stage.y, 1, 1, model='simulated-zp64', step_um=7))")
    assert "a step of 7 µm was never measured" in said
    assert "idle" in ask("RE.state")
