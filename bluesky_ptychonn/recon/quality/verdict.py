"""Can a run be believed, and if not, why: its figures against those of held-out scans, in words with numbers.

A limit is a quarter beyond the worst of the held-out scans that the model's card knows, but never closer than a floor
that no scan can be told apart within. Beyond a limit the run is ``doubtful``, far beyond it ``wrong``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from bluesky_ptychonn.calibration import RunNorm
from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.quality.run_statistics import RunFigures

Level = Literal["ok", "doubtful", "wrong"]
_LEVELS: tuple[Level, ...] = get_args(Level)

SHIFTED, ENERGY, LOST, INTENSITY = "detector shifted", "energy changed", "beam lost", "intensity out of range"
PROBE, SAMPLE = "probe changed", "sample unlike training"
DISAGREE, LOW = "patches disagree", "low trust"

#: Fewer frames do not make a mean pattern, or a mean trust.
LEAST_FRAMES = 8
#: What a limit is at least: 0.3 px, 1 %, 3 %, 0.1 rad.
_FLOOR = {"shift_px": 0.3, "scale": 0.01, "width": 0.03, "overlap_rad": 0.1}
#: How many limits are far beyond: a probe or a sample has no such sharp edge as a shift.
_FAR = {"shift_px": 4.0, "scale": 3.0, "width": 4.0, "overlap_rad": 2.0}
_GEOMETRY_TOLERANCE = 0.005
#: Patches that differ by more than this part of their own contrast show something that hangs on the beam and not on the
#: sample. Of 40 simulated scans with the right probe none that differed by 0.1 rad had more than 0.58.
_FOREIGN = 0.6
#: A sample that scatters far too widely leaves no edge to see a small shift or scale by.
_BLIND = 4.0
#: Parts of the mean trust of held-out scans.
_DOUBTFUL_TRUST, _WRONG_TRUST = 0.5, 0.2


@dataclass(frozen=True)
class Verdict:
    """Whether a run can be believed.

    Attributes
    ----------
    level : {"ok", "doubtful", "wrong"}
    reasons : tuple of str
        Each begins with what it is, before a colon; empty when all is well.
    figures : RunFigures
        What it was judged by.
    """

    level: Level
    reasons: tuple[str, ...]
    figures: RunFigures

    def document(self) -> dict[str, Any]:
        """Give JSON values: ``level``, ``reasons``, ``figures``."""
        return {"level": self.level, "reasons": list(self.reasons), "figures": _rounded(asdict(self.figures))}


def judge(figures: RunFigures, card: ModelCard, geometry: Geometry | None = None) -> Verdict | None:
    """Judge a run by its figures.

    Parameters
    ----------
    figures : RunFigures
        See `bluesky_ptychonn.recon.quality.run_statistics.RunStatistics.figures`.
    card : ModelCard
        Of the model that made the patches.
    geometry : Geometry, optional
        Of the network's frames in this run.

    Returns
    -------
    Verdict or None
        None before the first frame.
    """
    if not figures.frames:
        return None
    found = [*_setting(card, geometry), *_intensity(figures, card)]
    if figures.judged >= LEAST_FRAMES:
        norms = {} if card.trust is None else card.trust.runs
        found += _pattern(figures, norms)
        found += _sample(figures, norms, known=bool(found))
        found += _low(figures, norms, known=bool(found))
    worst = max((level for level, _ in found), default=0)
    return Verdict(_LEVELS[worst], tuple(words for _, words in sorted(found, key=lambda f: -f[0])), figures)


_Found = list[tuple[int, str]]


def _setting(card: ModelCard, geometry: Geometry | None) -> _Found:
    if geometry is None:
        return []
    off = geometry.object_pixel_m / card.input.object_pixel_m - 1
    trained = card.input.energy_ev
    if abs(off) <= _GEOMETRY_TOLERANCE:
        return []
    energies = "" if trained is None else f"{geometry.energy_ev / 1e3:.4g} keV, the model's {trained / 1e3:.4g} keV; "
    return [
        (
            1,
            (
                f"{ENERGY}: this run says {energies}its object pixel is {geometry.object_pixel_m * 1e9:.4g} nm, "
                f"{off:+.1%} from the model's"
            ),
        )
    ]


def _intensity(figures: RunFigures, card: ModelCard) -> _Found:
    found: _Found = []
    low, high = card.input.counts_per_frame
    median = 0.0 if figures.photons is None else figures.photons
    if figures.lost > 0.02:
        many = round(figures.lost * figures.frames)
        found.append((1 + (figures.lost > 0.2), f"{LOST}: in {many} of {figures.frames} frames"))
    if figures.out_of_range > 0.1:
        far = not low / 4 <= median <= high * 4
        found.append(
            (
                1 + far,
                (
                    f"{INTENSITY}: {figures.out_of_range:.0%} of frames outside {low:.3g} to {high:.3g} counts "
                    f"(median {median:.3g})"
                ),
            )
        )
    if figures.saturated > 0.1:
        found.append(
            (
                1 + (figures.saturated > 0.5),
                (
                    f"{INTENSITY}: in {figures.saturated:.0%} of frames many pixels stand at one highest count; "
                    "the detector is saturated"
                ),
            )
        )
    return found


def _beyond(
    name: str, value: float, norms: dict[str, RunNorm], base: float = 0.0, blind: float = 1.0
) -> tuple[int, str]:
    """Level of a value that should be near `base`, and what held-out scans had."""
    norm = norms.get(name)
    limit = blind * max(_FLOOR[name], 0.0 if norm is None else 1.25 * (norm.worst - base))
    level = int(value - base > limit) + int(value - base > _FAR[name] * limit)
    return level, "" if norm is None else f"at most {norm.worst:.3g} in held-out scans"


def _pattern(figures: RunFigures, norms: dict[str, RunNorm]) -> _Found:
    found: _Found = []
    blind = _BLIND if _scattering(figures, norms) > 1 else 1.0
    if figures.shift_px is not None:
        length = float(np.hypot(*figures.shift_px))
        level, usual = _beyond("shift_px", length, norms, blind=blind)
        if level:
            rows, columns = figures.shift_px
            found.append(
                (
                    level,
                    (
                        f"{SHIFTED}: the mean pattern lies {length:.1f} px from the model's (rows {rows:+.1f}, "
                        f"columns {columns:+.1f}{'; ' + usual if usual else ''})"
                    ),
                )
            )
    if figures.scale is not None:
        level, usual = _beyond("scale", abs(figures.scale), norms, blind=blind)
        if level:
            size = f"{abs(figures.scale):.1%} {'larger' if figures.scale > 0 else 'smaller'}"
            found.append(
                (
                    level,
                    (
                        f"{ENERGY}: the mean pattern is {size} than the model's probe makes it"
                        f"{' (' + usual + ')' if usual else ''}; or the distance changed, or the lens"
                    ),
                )
            )
    return found


def _sample(figures: RunFigures, norms: dict[str, RunNorm], known: bool) -> _Found:
    """Lay to sample or probe what is left when detector, energy and intensity are as they should."""
    if known:
        return []
    width = _scattering(figures, norms)
    if width and figures.width is not None:
        most = norms["width"].worst
        words = f"{SAMPLE}: it scatters {figures.width:.2f} times as wide as the probe alone (at most {most:.2f} in "
        return [(width, words + "held-out scans)")]
    apart, norm = figures.overlap_rad, norms.get("overlap_rad")
    if apart is None or norm is None or figures.contrast_rad is None:
        return []
    limit = max(_FLOOR["overlap_rad"], 1.25 * norm.typical)
    if apart <= limit:
        return []
    level = 1 + (apart > _FAR["overlap_rad"] * limit)
    about = f"neighbouring patches differ by {apart:.2f} rad where they overlap ({norm.typical:.2f} in held-out scans)"
    if apart > _FOREIGN * figures.contrast_rad:
        part = f", {apart / figures.contrast_rad:.0%} of their own contrast"
        return [(level, f"{PROBE}: {about}{part}; or the positions are off")]
    return [(level, f"{DISAGREE}: {about}; the sample is hard for this model, or the probe is another")]


def _scattering(figures: RunFigures, norms: dict[str, RunNorm]) -> int:
    """Level of what the sample scatters."""
    if figures.width is None or "width" not in norms:
        return 0
    return _beyond("width", figures.width, norms, base=1.0)[0]


def _low(figures: RunFigures, norms: dict[str, RunNorm], known: bool) -> _Found:
    """Trust is a probability, so what is too low needs no worst scan to compare with."""
    norm, trust = norms.get("mean_trust"), figures.mean_trust
    if norm is None or trust is None or trust >= _DOUBTFUL_TRUST * norm.typical:
        return []
    level = 1 + (trust < _WRONG_TRUST * norm.typical)
    error = "" if figures.error_rad is None else f"; expect phase errors up to {figures.error_rad:.2f} rad"
    about = f"mean trust {trust:.2f}, {norm.typical:.2f} in held-out scans{error}"
    return [(level, f"{LOW}: {about}" if known else f"{SAMPLE}, or the probe is another: {about}")]


def _rounded(value: Any) -> Any:
    """Four digits are enough, and a catalog takes lists and no tuples."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
