"""What would keep a scan from becoming an image, found before anything moves.

A live reconstruction of this process says here what it works with; plans ask. Nothing here imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bluesky_ptychonn.card import ModelCard, load_card
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry

log = logging.getLogger(__name__)

#: ``refuse``: what would leave the run without an image refuses the scan, a catalog that does not answer is a warning,
#: for nothing is lost by it. ``strict`` refuses for that too, ``warn`` warns of either.
Preflight = Literal["refuse", "warn", "strict"]
#: How long a plan waits, at most, for the catalog of each live reconstruction to answer, s.
ANSWER_S = 2.0


@dataclass(frozen=True, eq=False)
class ReconstructionAtWork:
    """What a live reconstruction works with, as far as a plan should know.

    Parameters
    ----------
    model : callable
        Gives the folder or name of the model.
    geometry : Geometry or None
        That it uses whatever runs say.
    preprocess : PreprocessConfig or None
        That it uses instead of the model's.
    trouble : callable
        Given seconds to wait, why results cannot be made or delivered at present; an empty string where they can.
    """

    model: Callable[[], str]
    geometry: Geometry | None
    preprocess: PreprocessConfig | None
    trouble: Callable[[float], str]

    @property
    def card(self) -> ModelCard | None:
        """Card of the model at work; None where only the catalog knows it."""
        try:
            return load_card(self.model()).prepared_by(self.preprocess)
        except (LookupError, OSError, TypeError, ValueError):
            return None

    def present_trouble(self) -> str:
        """Say what keeps results from being made or delivered; where it cannot be asked, that."""
        try:
            return self.trouble(ANSWER_S)
        except Exception as error:  # noqa: BLE001  # said to the user; a session's own fault is none of the scan
            return f"live reconstruction cannot say how it stands: {type(error).__name__}: {error}"


_at_work: list[ReconstructionAtWork] = []


def announce(reconstruction: ReconstructionAtWork) -> None:
    """Let plans know of a live reconstruction."""
    _at_work.append(reconstruction)


def withdraw(reconstruction: ReconstructionAtWork) -> None:
    """Let plans forget it; again is harmless."""
    if reconstruction in _at_work:
        _at_work.remove(reconstruction)


@dataclass(frozen=True)
class ScanToCheck:
    """A scan as far as it decides whether there can be an image.

    Parameters
    ----------
    camera : object
        The detector.
    geometry : Geometry or None
        That the start document will say.
    card : ModelCard or None
        Of the model that the plan was given.
    step_m : float or None
        Step whose error should have been measured, m; None where the user does not mind.
    """

    camera: Any
    geometry: Geometry | None
    card: ModelCard | None
    step_m: float | None

    def check(self, plan_name: str, preflight: Preflight) -> None:
        """Refuse a scan without an image, or warn of it in the log. At most `ANSWER_S` s for each catalog.

        Raises
        ------
        ValueError
            In words: all that is wrong, and where to change it.
        """
        if preflight not in get_args(Preflight):
            raise ValueError(f"preflight {preflight!r} is unknown; allowed: {', '.join(get_args(Preflight))}")
        grave = list(dict.fromkeys(self._faults()))
        light = [words for at_work in _at_work if (words := at_work.present_trouble())]
        refused = {"refuse": grave, "warn": [], "strict": grave + light}[preflight]
        if refused:
            raise ValueError(
                f"{plan_name}: this scan would not become an image: {'; '.join(refused)}. "
                "preflight='warn' scans all the same"
            )
        for words in grave + light:
            log.warning("%s: %s", plan_name, words)

    def _faults(self) -> Iterator[str]:
        if self.geometry is None and not any(at_work.geometry for at_work in _at_work):
            name = getattr(self.camera, "name", self.camera)
            yield (
                "the geometry is not known. Give the plan geometry= (energy_ev in eV, distance_m and pixel_pitch_m in "
                f"m, frame_shape in px), set {name}.geometry, or give LiveReconstruction one (reconstruction.geometry)"
            )
        working = [(at_work, card) for at_work in _at_work if (card := at_work.card) is not None]
        # The model at work as the session uses it says more than its card by itself.
        if self.card is not None and all(card.weights_sha256 != self.card.weights_sha256 for _, card in working):
            yield from self._misfits(self.card, self.geometry)
        for at_work, card in working:
            yield from self._misfits(card, at_work.geometry or self.geometry)
            if self.card is None and self.step_m is not None and (card.sampling or card.labelled):
                yield from _said(
                    card.error_at, self.step_m, then="Choose a measured step_um=, or say allow_unmeasured=True"
                )

    def _misfits(self, card: ModelCard, geometry: Geometry | None) -> Iterator[str]:
        if card.for_any_probe:
            yield from _said(lambda _: card.check_probe(), None)
            return
        if geometry is not None:
            yield from _said(card.check_geometry, geometry)
        shape = _frame_shape(self.camera)
        if shape is not None:
            yield from _said(card.check_frames, shape)


def _said(check: Callable[[Any], Any], value: Any, then: str = "") -> Iterator[str]:
    try:
        check(value)
    except ValueError as error:
        yield f"{error}. {then}" if then else str(error)


def _frame_shape(camera: Any) -> tuple[int, int] | None:
    """Rows and columns of an areaDetector's frames, px, where its driver says them; a camera that is new says 0."""
    try:
        shape = camera.make_data_key()["shape"]
        rows, columns = (int(size) for size in shape[-2:])
    except Exception:  # noqa: BLE001  # a device without it, or one that does not answer: staging it will say so
        return None
    return (rows, columns) if rows > 0 and columns > 0 else None


def check_limits(
    name: str,
    axis: str,
    motor: Any,
    span_um: tuple[float, float],
    limits_um: tuple[float, float],
    *,
    relative: bool,
) -> None:
    """Refuse before anything moves: a scan that stops at a limit half-way wastes the sample's dose.

    Parameters
    ----------
    name : str
        Of the plan.
    axis : {"x", "y"}
        Along which the motor moves.
    motor : object
        What has the limits.
    span_um, limits_um : tuple of float
        From where to where it would move, and may, µm; equal limits mean none.
    relative : bool
        Whether the scan goes round the present position.

    Raises
    ------
    ValueError
        In words, with the plan's arguments to change.
    """
    low, high = limits_um
    slack = 1e-9 * max(abs(low), abs(high))  # what a motor's unit and back may cost
    if low >= high or (low - slack <= span_um[0] and span_um[1] <= high + slack):
        return
    where = "Go to where there is more room" if relative else f"Change center_{axis}_um"
    raise ValueError(
        f"{name}: {axis}_motor {motor.name} would move from {span_um[0]:.6g} to {span_um[1]:.6g} µm, outside its soft "
        f"limits {low:.6g} to {high:.6g} µm. {where}, or make {'width' if axis == 'x' else 'height'}_um smaller"
    )
