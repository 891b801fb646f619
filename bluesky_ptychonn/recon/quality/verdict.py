"""Can a run be believed, and if not, why: its figures against those of held-out scans, in words with numbers.

A limit is a quarter beyond the worst of the held-out scans that the model's card knows, but never closer than a floor
that no scan can be told apart within. Beyond a limit the run is ``doubtful``, far beyond it ``wrong``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

import numpy as np

from bluesky_ptychonn.calibration import RunNorm
from bluesky_ptychonn.card import ModelCard
from bluesky_ptychonn.optics.geometry import Geometry, beam_in_words
from bluesky_ptychonn.recon.quality.run_statistics import RunFigures

Level = Literal["ok", "doubtful", "wrong"]
_LEVELS: tuple[Level, ...] = get_args(Level)


class ReasonKind(StrEnum):
    """What may be wrong with a run."""

    SHIFTED = "detector shifted"
    ENERGY = "energy changed"
    LOST = "beam lost"
    INTENSITY = "intensity out of range"
    PROBE = "probe changed"
    MODES = "modes left out"
    INPUT = "input unknown"
    SAMPLE = "sample unlike training"
    SAMPLE_OR_PROBE = "sample unlike training, or the probe is another"
    DISAGREE = "patches disagree"
    LOW = "low trust"


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
#: Part of the light that the probe's mode has at least. Through one of two modes the phase error of simulated scans was
#: a seventh larger at 0.9, half at 0.8, 2.3 times at 0.74 and 5.7 times at 0.5.
_DOUBTFUL_LIGHT, _WRONG_LIGHT = 0.9, 0.6
#: Parts of the mean trust of held-out scans.
_DOUBTFUL_TRUST, _WRONG_TRUST = 0.5, 0.2


@dataclass(frozen=True)
class Reason:
    """What is wrong with a run; as text ``kind: message``, which is how it stands in a catalog.

    Attributes
    ----------
    kind : str
        A `ReasonKind`, or what another version of this package calls it.
    message : str
        With numbers.
    """

    kind: str
    message: str

    @classmethod
    def from_text(cls, text: str) -> Reason:
        """Read one from a catalog."""
        kind, _, message = text.partition(": ")
        return cls(kind, message)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class Verdict:
    """Whether a run can be believed.

    Attributes
    ----------
    level : {"ok", "doubtful", "wrong"}
    reasons : tuple of Reason
        The gravest first; empty when all is well.
    figures : RunFigures
        What it was judged by.
    """

    level: Level
    reasons: tuple[Reason, ...]
    figures: RunFigures

    def document(self) -> dict[str, Any]:
        """Give JSON values: ``level``, ``reasons`` as texts, ``figures``."""
        reasons = [str(reason) for reason in self.reasons]
        figures = {**asdict(self.figures), "error_rad": self.figures.error_p90_rad}  # its former name too
        return {"level": self.level, "reasons": reasons, "figures": _rounded(figures)}


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
        None before the first frame, and where no frame is valid and nothing else is known: no image is in order.
    """
    if not figures.frames:
        return None
    modes = list(_modes(card))
    found = [*_input(card), *_setting(card, geometry), *_intensity(figures, card), *modes]
    if figures.judged >= LEAST_FRAMES:
        norms = {} if card.trust is None else card.trust.runs
        if not modes:  # else the pattern differs from the probe's for that alone
            found += _pattern(figures, norms)
        found += _sample(figures, norms, known=bool(found))
        found += _low(figures, norms, known=bool(found))
    if not found and not figures.judged:
        return None
    worst = max((level for level, _ in found), default=0)
    reasons = tuple(reason for _, reason in sorted(found, key=lambda f: -f[0]))
    return Verdict(_LEVELS[worst], reasons, figures)


_Found = Iterator[tuple[int, Reason]]


def _setting(card: ModelCard, geometry: Geometry | None) -> _Found:
    if geometry is None:
        return
    off = geometry.object_pixel_m / card.input.object_pixel_m - 1
    if abs(off) > _GEOMETRY_TOLERANCE:
        trained = beam_in_words(**card.input.light)
        of = "" if trained is None else f"{geometry.beam}, the model's {trained}; "
        pixel = f"its object pixel is {geometry.object_pixel_m * 1e9:.4g} nm, {off:+.1%} from the model's"
        yield 1, Reason(ReasonKind.ENERGY, f"this run says {of}{pixel}")


def _input(card: ModelCard) -> _Found:
    if card.input_unknown:
        message = (
            "nobody said what the authors of this checkpoint did to counts before the network, such as subtracting a "
            "mean pattern; import it again with that, or with --input-counts"
        )
        yield 1, Reason(ReasonKind.INPUT, message)


def _modes(card: ModelCard) -> _Found:
    light = None if card.probe is None else card.probe.light_fraction
    if light is not None and light < _DOUBTFUL_LIGHT:
        message = f"the model's probe is the strongest mode, {light:.0%} of the light; modes are not modelled yet"
        yield 1 + (light < _WRONG_LIGHT), Reason(ReasonKind.MODES, message)


def _intensity(figures: RunFigures, card: ModelCard) -> _Found:
    low, high = card.input.counts_per_frame
    median = 0.0 if figures.photons is None else figures.photons
    if figures.lost > 0.02:
        many = round(figures.lost * figures.frames)
        yield 1 + (figures.lost > 0.2), Reason(ReasonKind.LOST, f"in {many} of {figures.frames} frames")
    if figures.out_of_range > 0.1:
        far = not low / 4 <= median <= high * 4
        counts = f"outside {low:.3g} to {high:.3g} counts (median {median:.3g})"
        yield 1 + far, Reason(ReasonKind.INTENSITY, f"{figures.out_of_range:.0%} of frames {counts}")
    if figures.saturated > 0.1:
        peak = "many pixels stand at one highest count; the detector is saturated"
        message = f"in {figures.saturated:.0%} of frames {peak}"
        yield 1 + (figures.saturated > 0.5), Reason(ReasonKind.INTENSITY, message)


def _beyond(
    name: str, value: float, norms: dict[str, RunNorm], base: float = 0.0, blind: float = 1.0
) -> tuple[int, str]:
    """Level of a value that should be near `base`, and what held-out scans had."""
    norm = norms.get(name)
    limit = blind * max(_FLOOR[name], 0.0 if norm is None else 1.25 * (norm.worst - base))
    level = int(value - base > limit) + int(value - base > _FAR[name] * limit)
    return level, "" if norm is None else f"at most {norm.worst:.3g} in held-out scans"


def _pattern(figures: RunFigures, norms: dict[str, RunNorm]) -> _Found:
    blind = _BLIND if _scattering(figures, norms) > 1 else 1.0
    if figures.shift_px is not None:
        level, usual = _beyond("shift_px", float(np.hypot(*figures.shift_px)), norms, blind=blind)
        if level:
            rows, columns = figures.shift_px
            where = f"(rows {rows:+.1f}, columns {columns:+.1f}{'; ' + usual if usual else ''})"
            message = f"the mean pattern lies {np.hypot(rows, columns):.1f} px from the model's {where}"
            yield level, Reason(ReasonKind.SHIFTED, message)
    if figures.scale is not None:
        level, usual = _beyond("scale", abs(figures.scale), norms, blind=blind)
        if level:
            size = f"{abs(figures.scale):.1%} {'larger' if figures.scale > 0 else 'smaller'}"
            usual = f" ({usual})" if usual else ""
            message = f"the mean pattern is {size} than the model's probe makes it{usual}; or the distance changed"
            yield level, Reason(ReasonKind.ENERGY, f"{message}, or the lens")


def _sample(figures: RunFigures, norms: dict[str, RunNorm], known: bool) -> _Found:
    """Lay to sample or probe what is left when detector, energy and intensity are as they should."""
    if known:
        return
    width = _scattering(figures, norms)
    if width and figures.width is not None:
        usual = f"(at most {norms['width'].worst:.2f} in held-out scans)"
        message = f"it scatters {figures.width:.2f} times as wide as the probe alone {usual}"
        yield width, Reason(ReasonKind.SAMPLE, message)
        return
    apart, norm = figures.overlap_rad, norms.get("overlap_rad")
    if apart is None or norm is None or figures.contrast_rad is None:
        return
    limit = max(_FLOOR["overlap_rad"], 1.25 * norm.typical)
    if apart <= limit:
        return
    level = 1 + (apart > _FAR["overlap_rad"] * limit)
    about = f"neighbouring patches differ by {apart:.2f} rad where they overlap ({norm.typical:.2f} in held-out scans)"
    if apart > _FOREIGN * figures.contrast_rad:
        part = f"{apart / figures.contrast_rad:.0%} of their own contrast"
        yield level, Reason(ReasonKind.PROBE, f"{about}, {part}; or the positions are off")
    else:
        message = f"{about}; the sample is hard for this model, or the probe is another"
        yield level, Reason(ReasonKind.DISAGREE, message)


def _scattering(figures: RunFigures, norms: dict[str, RunNorm]) -> int:
    """Level of what the sample scatters."""
    if figures.width is None or "width" not in norms:
        return 0
    return _beyond("width", figures.width, norms, base=1.0)[0]


def _low(figures: RunFigures, norms: dict[str, RunNorm], known: bool) -> _Found:
    """Trust is a probability, so what is too low needs no worst scan to compare with."""
    norm, trust = norms.get("mean_trust"), figures.mean_trust
    if norm is None or trust is None or trust >= _DOUBTFUL_TRUST * norm.typical:
        return
    level = 1 + (trust < _WRONG_TRUST * norm.typical)
    bound = figures.error_p90_rad
    error = "" if bound is None else f"; 9 in 10 such frames err by less than {bound:.2f} rad"
    message = f"mean trust {trust:.2f}, {norm.typical:.2f} in held-out scans{error}"
    yield level, Reason(ReasonKind.LOW if known else ReasonKind.SAMPLE_OR_PROBE, message)


def _rounded(value: Any) -> Any:
    """Four digits are enough, and a catalog takes lists and no tuples."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
