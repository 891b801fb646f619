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
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sessions, with profile_startup/ and its configuration."""
    folder = tmp_path_factory.mktemp("session")
    config = folder / "ptychonn.toml"
    config.write_text((repository / "profile_startup/ptychonn.toml").read_text().replace("../build/session/", ""))
    (folder / "ipython/profile_default").mkdir(parents=True)
    (folder / "ipython/profile_default/startup").symlink_to(repository / "profile_startup")
    return folder


def start(folder: Path, *options: str) -> pexpect.spawn[str]:
    """A session, before its first prompt."""
    return pexpect.spawn(
        sys.executable,
        ["-m", "IPython", f"--ipython-dir={folder / 'ipython'}", "--colors=NoColor", "--no-banner", *options],
        env={**os.environ, "PTYCHONN_CONFIG": str(folder / "ptychonn.toml"), "TERM": "dumb"},
        cwd=str(folder),
        encoding="utf-8",
        timeout=240,
        dimensions=(50, 400),
    )


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Ask]:
    """Type a line into the session; returns what it prints."""
    session = start(folder, "--simple-prompt")
    session.expect(PROMPT)
    assert "Traceback" not in session.before, session.before
    assert "  RE(sparse_ptycho_scan([camera], stage.x, stage.y, 2, 2, model=live.model, step_um=0.4))" in session.before
    assert "The next scan is 1." in session.before

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
    assert re.search(r"\|   seq_num \|       time \|    stage_y \|    stage_x \|", said), said
    assert "complete" in ask("live.wait(uid)")
    told = ask("import time; time.sleep(1.5)")
    assert re.search(r"scan 1: reconstruction complete, 16 of 16 frames, verdict \w+.*; live\.result", told), told
    found = ask("reconstructions(catalog, raw=uid, status='complete')")
    assert re.search(r"PtychoReconstruction \w{8} scan 1, complete, 16/16 frames", found), found
    assert re.search(r"\(\d\d+, \d\d+\)", ask("_[0].phase.read().shape"))


def test_a_wrong_plan_is_refused_before_anything_moves(ask: Ask) -> None:
    said = ask("RE(sparse_ptycho_scan([camera], stage.x, stage.y, 1, 1, model='simulated-zp64', step_um=7))")
    assert "a step of 7 µm was never measured" in said
    assert "idle" in ask("RE.state")


@pytest.mark.slow
def test_scan_ids_go_on_and_a_line_does_not_break_what_is_typed(ask: Ask, folder: Path) -> None:
    """The second session, with IPython's own prompt, beside the first: one catalog cannot be served twice."""
    ask("_ = RE(sparse_ptycho_scan([camera], stage.x, stage.y, 0.8, 0.8, model='simulated-zp64', step_um=0.4))")
    found = re.search(r"^at (\d+)", ask("print('at', RE.md['scan_id'])"), re.MULTILINE)
    assert found is not None
    scan_id = int(found[1]) + 1
    ask("live.close(); writer.close(); catalog.close()")
    session = start(folder)
    session.expect_exact(f"The next scan is {scan_id}.")
    session.expect_exact("In [1]: ")
    session.send("_ = RE(sparse_ptycho_scan([camera], stage.x, stage.y, 0.8, 0.8, model=live.model, step_um=0.4))\r")
    session.expect_exact("In [2]: ")
    session.send("half = 4")
    session.expect(rf"scan {scan_id}: reconstruction complete, 9 of 9 frames")
    session.send("2\r")
    session.expect_exact("In [3]: ")
    session.send("print('it is', half)\r")
    session.expect_exact("it is 42")
    session.send("exit\r")
    session.expect(pexpect.EOF)
    session.close()
