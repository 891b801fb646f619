"""What a training is fed: simulated frames, labelled ones, and measured ones nobody has a truth for, mixed by shares.

Batch `k` depends on the seed and `k` alone, whatever came before it, so training resumes exactly where it stopped and
several processes share the batches out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.spatial import KDTree
from torch import Tensor

from bluesky_ptychonn.recon.data.scans import LabelledScan, MeasuredScan
from bluesky_ptychonn.recon.data.simulated import SimulatedFrames, SyntheticConfig

Source = Literal["simulated", "labelled", "label_free"]
SOURCES: tuple[Source, ...] = ("simulated", "labelled", "label_free")
#: Frames of one neighbourhood: what overlaps is compared within it. Several make a batch, so that it shows more than
#: one place of the sample and batch normalisation sees what it will see later.
GROUP = 8
_GIVEN = 0.5  # of a frame's counts; the others are what a label-free batch is judged by
_NEAREST = 12  # a neighbourhood is a frame and some of this many nearest to it
_GOLDEN = 0.5 * (5**0.5 - 1)


class Mix(BaseModel):
    """Shares of the batches; only their ratios matter.

    Parameters
    ----------
    simulated : float
        Frames simulated through the measured probe.
    labelled : float
        Measured frames whose object an iterative solver found.
    label_free : float
        Measured frames and the known probe alone.

    Examples
    --------
    >>> Mix(simulated=1, labelled=3).source(0)
    'simulated'
    >>> round([Mix(simulated=1, labelled=3).source(k) for k in range(1000)].count("labelled") / 1000, 2)
    0.75
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    simulated: float = Field(default=1.0, ge=0)
    labelled: float = Field(default=0.0, ge=0)
    label_free: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Mix:
        if not self.total > 0:
            raise ValueError("mix: all shares are 0; give at least one of simulated, labelled, label_free a share")
        return self

    @classmethod
    def usual(cls, *, simulated: bool, labelled: bool, label_free: bool) -> Mix:
        """Shares of what there is: as much from labels as by simulation, and half as much without either."""
        return cls(simulated=float(simulated), labelled=float(labelled), label_free=0.5 * label_free)

    @property
    def total(self) -> float:
        """Sum of the shares."""
        return self.simulated + self.labelled + self.label_free

    def share(self, source: Source) -> float:
        """Part of the batches that come from a source, 0 to 1."""
        return float(getattr(self, source)) / self.total

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources that have a share."""
        return tuple(source for source in SOURCES if self.share(source) > 0)

    def source(self, index: int) -> Source:
        """Source of batch `index`: spread evenly, so that a short training has its shares too."""
        place = index * _GOLDEN % 1
        for source in self.sources:
            place -= self.share(source)
            if place < 0:
                return source
        return self.sources[-1]


@dataclass(frozen=True)
class Batch:
    """Frames of one source, and what there is to judge the network's patches by: a truth, or what a label-free one has.

    A label-free batch has other counts of the same frames, with other noise.
    """

    source: Source
    counts: Tensor  # (B, N, N) float32: what the network is given
    probe: Tensor  # (N, N) complex64: what it is told, square-root photons
    truth: Tensor | None = None  # (B, h, w) complex64
    known: Tensor | None = None  # (B, h, w) float32: how far the truth can be trusted, 0 to 1; None for everywhere
    held_counts: Tensor | None = None  # (B, N, N) float32: to judge a label-free batch by
    held_probe: Tensor | None = None  # (N, N) complex64: the probe to them
    offsets: Tensor | None = None  # (B, 2) float32: positions (y, x), object pixels
    pairs: Tensor | None = None  # (m, 2) int64: neighbours among its frames


class Batches(Protocol):
    """Gives batches by their number."""

    def batch(self, index: int) -> Batch:
        """Make batch `index`, always the same."""


class Simulated:
    """`SimulatedFrames` as batches."""

    def __init__(self, frames: SimulatedFrames) -> None:
        self._frames = frames

    def batch(self, index: int) -> Batch:
        """See `Batches.batch`."""
        return Batch("simulated", *self._frames.batch(index))


ScanT = TypeVar("ScanT", bound=MeasuredScan)


class _Scans(Generic[ScanT]):
    """Scans to draw frames from; a scan is drawn as often as it has frames.

    A batch is given a part of its counts, as a shorter exposure would have recorded: Poisson counts dealt out by chance
    are Poisson counts, independent of each other. And the network is told a flux that is a little off, as in simulated
    batches. Frames are not flipped: that would be another probe, which a model for one probe need not know.
    """

    _stream: int

    def __init__(
        self,
        scans: Sequence[ScanT],
        patch_size: int,
        batch_size: int,
        config: SyntheticConfig,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._scans = tuple(scans)
        self._patch_size, self._batch_size = patch_size, batch_size
        self._config, self._seed, self._device = config, seed, device
        frames = np.array([len(scan.counts) for scan in scans], dtype=float)
        self._chances = frames / frames.sum()

    def _draw(self, index: int) -> tuple[int, np.random.Generator]:
        rng = np.random.default_rng((self._seed, index, self._stream))
        return int(rng.choice(len(self._scans), p=self._chances)), rng

    def _dealt(self, counts: NDArray[np.float32], part: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Deal counts out in two, each photon by chance."""
        whole = np.rint(counts).astype(np.int64)
        given = rng.binomial(whole, part)
        first, rest = (torch.from_numpy(some.astype(np.float32)).to(self._device) for some in (given, whole - given))
        return first, rest

    def _amplitude_error(self, rng: np.random.Generator) -> float:
        """Draw the factor by which the network is told a wrong amplitude of the probe."""
        return float(np.exp(0.5 * rng.normal(0, self._config.scale_jitter)))

    def _probe(self, scan: ScanT) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(scan.probe, dtype=np.complex64)).to(self._device)


class Labelled(_Scans[LabelledScan]):
    """Measured frames with the object that an iterative solver found.

    Doses go from that of the scan down to its `dose_spread`-th, see `SyntheticConfig`.
    """

    _stream = 2

    def batch(self, index: int) -> Batch:
        """See `Batches.batch`."""
        which, rng = self._draw(index)
        scan = self._scans[which]
        n = len(scan.counts)
        chosen = rng.choice(n, self._batch_size, replace=n < self._batch_size)
        dose = self._config.dose_spread ** -rng.uniform(0, 1)
        counts, _ = self._dealt(scan.counts[chosen], dose, rng)
        known = np.asarray(scan.known(chosen, self._patch_size), dtype=np.float32)
        truth = np.where(known > 0, scan.truth(chosen, self._patch_size), 1).astype(np.complex64)
        return Batch(
            "labelled",
            counts,
            self._probe(scan) * (dose**0.5 * self._amplitude_error(rng)),
            torch.from_numpy(truth).to(self._device),
            torch.from_numpy(known).to(self._device),
        )


class LabelFree(_Scans[MeasuredScan]):
    """Measured frames in small neighbourhoods; the network sees half of their counts and is judged by the others."""

    _stream = 3

    @cached_property
    def _trees(self) -> list[KDTree]:
        """Positions of each scan, object pixels."""
        return [KDTree(np.stack([s.y_m, s.x_m], axis=1) / s.geometry.object_pixel_m) for s in self._scans]

    def batch(self, index: int) -> Batch:
        """See `Batches.batch`."""
        which, rng = self._draw(index)
        scan, tree = self._scans[which], self._trees[which]
        positions = tree.data
        nearest = [*range(1, min(_NEAREST, len(positions) - 1) + 2)]  # the frame itself among them
        chosen: list[int] = []
        pairs: list[tuple[int, int]] = []
        while len(chosen) < self._batch_size:
            first = int(rng.integers(len(positions)))
            around = tree.query(positions[first], k=nearest)[1]
            others = rng.permutation(around[around != first])
            group = [first, *others[: min(GROUP, self._batch_size - len(chosen)) - 1].tolist()]
            pairs += [(len(chosen) + i, len(chosen) + j) for i, j in permutations(range(len(group)), 2)]
            chosen += group
        counts, rest = self._dealt(scan.counts[chosen], _GIVEN, rng)
        # Told a wrong flux, the network answers with a wrong amplitude, and is judged under what it was told.
        probe = self._probe(scan) * self._amplitude_error(rng)
        offsets = positions[chosen] - positions[chosen].mean(axis=0)
        return Batch(
            "label_free",
            counts,
            probe * _GIVEN**0.5,
            held_counts=rest,
            held_probe=probe * (1 - _GIVEN) ** 0.5,
            offsets=torch.from_numpy(offsets.astype(np.float32)).to(self._device),
            pairs=torch.tensor(pairs, dtype=torch.int64, device=self._device).reshape(-1, 2),
        )


@dataclass(frozen=True)
class TrainingData:
    """What there is to train on.

    Frames are simulated through the measured probe (N, N), of any scale; None for a family of probes, or no simulation.
    """

    probe: NDArray[np.complex64] | None = None
    labelled: Sequence[LabelledScan] = ()  # with the object that a solver found
    measured: Sequence[MeasuredScan] = ()  # without one

    @property
    def scans(self) -> tuple[MeasuredScan, ...]:
        """All scans, the labelled ones first."""
        return (*self.labelled, *self.measured)

    def halves(self) -> tuple[TrainingData, TrainingData]:
        """Split every scan by area: to learn from, and to judge by."""
        labels, frames = [scan.halves() for scan in self.labelled], [scan.halves() for scan in self.measured]
        first, second = (
            TrainingData(self.probe, [pair[k] for pair in labels], [pair[k] for pair in frames]) for k in (0, 1)
        )
        return first, second


def make_sources(
    mix: Mix,
    data: TrainingData,
    config: SyntheticConfig,
    sizes: tuple[int, int, int],
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[Source, Batches]:
    """Make what gives the batches of each source that has a share; `sizes` are frame and patch, px, and batch."""
    frame, patch, batch = sizes
    sources: dict[Source, Batches] = {}
    if "simulated" in mix.sources:
        sources["simulated"] = Simulated(SimulatedFrames(data.probe, patch, batch, config, seed, device, frame))
    if "labelled" in mix.sources:
        sources["labelled"] = Labelled(data.labelled, patch, batch, config, seed, device)
    if "label_free" in mix.sources:
        sources["label_free"] = LabelFree(data.measured, patch, batch, config, seed, device)
    return sources


class MixedBatches:
    """Batches of several sources, mixed by their shares; there is one for every source that has a share."""

    def __init__(self, mix: Mix, sources: Mapping[Source, Batches]) -> None:
        self._mix, self._sources = mix, dict(sources)

    def batch(self, index: int) -> Batch:
        """Make batch `index`."""
        return self._sources[self._mix.source(index)].batch(index)
