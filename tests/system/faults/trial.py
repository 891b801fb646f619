"""One fault at one random moment of one scan, and what became of the scan's frames."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.system.faults.kinds import KINDS
from tests.system.faults.oracle import Finding, judge, wait_until_settled
from tests.system.faults.scene import Scan, Scene

_SCAN_S = 300.0
_SETTLE_S = 180.0


@dataclass
class Trial:
    """What came of one fault.

    Attributes
    ----------
    fault : str
        Its kind.
    seed : str
        Of everything random in it.
    frames : int
        Frames that were taken.
    harmed : str
        How the scan was harmed, in words.
    lost, doubled, wrong, raw_missing : list of int or int
        Frames without a row, with two, with an image that is another frame's; events that the raw run lacks.
    named : dict of str to int
        Frames without an image, by the reason given.
    status : str
        Of the reconstruction.
    stall_ms : float
        Longest time between two frames beyond the median.
    callback_ms : float
        Longest that one of our callbacks took.
    catch_up_s : float
        From the end of scan and fault, whichever came last, until all was in the catalog.
    """

    fault: str
    seed: str
    at_s: float = 0.0
    lasts_s: float = 0.0
    frames: int = 0
    harmed: str = ""
    lost: list[int] = field(default_factory=list)
    doubled: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    raw_missing: int = 0
    named: dict[str, int] = field(default_factory=dict)
    status: str = ""
    words: str = ""
    stall_ms: float | None = None
    gap_ms: float | None = None
    callback_ms: float | None = None
    catch_up_s: float | None = None

    @property
    def fine(self) -> bool:
        """Whether nothing was harmed, lost, doubled or mixed up."""
        return not (self.harmed or self.lost or self.doubled or self.wrong or self.raw_missing or self.words)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run_trial(scene: Scene, fault: str, seed: str, points: int = 36) -> Trial:
    """Scan, break something at a random moment of it or shortly after, mend it, wait until the catalog has all, judge.

    Parameters
    ----------
    scene : Scene
        Alive and whole; is so again afterwards.
    fault : str
        Name in `KINDS`.
    seed : str
        For everything random.
    points : int
        Frames of the scan; a square number.
    """
    kind, rng = KINDS[fault], random.Random(seed)
    trial = Trial(fault, seed)
    expected_s = points * (0.12 if kind.channel_access else 0.05)
    order: dict[str, Any] = {}
    if fault == "plan paused, resumed":
        order["pause_s"] = sorted(rng.uniform(0.1, expected_s) for _ in range(rng.randint(1, 3)))
    scan = scene.session.begin(points, **order)
    trial.at_s = round(rng.uniform(0.0, 1.3 * expected_s), 3)
    time.sleep(trial.at_s)
    kind.break_it(scene, rng)
    trial.lasts_s = round(rng.uniform(*kind.lasts_s), 3)
    time.sleep(trial.lasts_s)
    if kind.ends_session:
        scene.session.wait_over(_SCAN_S)  # what it had said before it died
    scene.mend()
    mended = time.monotonic()
    if not kind.ends_session:
        scan = scene.session.wait_over(_SCAN_S)
    over = max(mended, scan.ended)
    _measure(trial, scan, ends_session=kind.ends_session)
    if not scan.uid:  # it died before it began
        return trial
    key, settled = wait_until_settled(scene.client, scan, _SETTLE_S)
    trial.catch_up_s = round(settled - over, 2)
    finding = judge(scene.client, scan, scene.frames)
    if not key:
        finding.words = f"not settled after {_SETTLE_S:g} s: {scene.session.status()} {finding.words}"
    _note(trial, finding)
    return trial


def _measure(trial: Trial, scan: Scan, *, ends_session: bool) -> None:
    trial.frames = len(set(scan.events))
    if ends_session:
        return
    if scan.error or scan.exit_status != "success":
        trial.harmed = f"exit_status {scan.exit_status!r}: {scan.error}"
    trial.stall_ms = round(1e3 * scan.stall_s, 1)
    trial.gap_ms = round(1e3 * scan.gap_s, 1)
    trial.callback_ms = round(1e3 * scan.callback_s, 2)


def _note(trial: Trial, finding: Finding) -> None:
    trial.lost, trial.doubled, trial.wrong = finding.lost, finding.doubled, finding.wrong
    trial.raw_missing, trial.named = finding.raw_missing, finding.named
    trial.status, trial.words = finding.status, finding.words
