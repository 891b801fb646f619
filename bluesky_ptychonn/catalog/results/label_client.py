"""What a user gets of a label in the catalog, and how labels are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_ptychonn.catalog.results.derived import DerivedData, find_derived

if TYPE_CHECKING:
    import pyarrow as pa

SPEC = "PtychoLabel"
#: Pictures of a label and its probe's parts; all (H, W) or (N, N) float32.
PICTURES, PROBE = ("amplitude", "phase", "light"), ("probe_real", "probe_imag")
FRAMES = "frames"
UNITS = {"amplitude": "1", "phase": "rad", "light": "1", "y_m": "m", "x_m": "m", "pixel_m": "m", "origin_m": "m"}


def frames_schema() -> pa.Schema:
    """Columns of the table of frames that a label was made of."""
    import pyarrow as pa

    return pa.schema([("seq_num", pa.int64()), ("y_m", pa.float64()), ("x_m", pa.float64())])


class PtychoLabel(DerivedData):
    """An object that an iterative solver found for a run."""

    @property
    def amplitude(self) -> NDArray[np.float32]:
        """Amplitude (H, W) of the object; NaN where unknown."""
        return self._array("amplitude")

    @property
    def phase(self) -> NDArray[np.float32]:
        """Phase (H, W) of the object, rad; NaN where unknown."""
        return self._array("phase")

    @property
    def light(self) -> NDArray[np.float32]:
        """Probe intensity that fell on each pixel (H, W), in peaks of the probe."""
        return self._array("light")

    @property
    def probe(self) -> NDArray[np.complex64]:
        """Probe (N, N) of the solution, square-root photons."""
        real, imaginary = (self._array(name) for name in PROBE)
        return np.asarray(real + 1j * imaginary, dtype=np.complex64)

    @property
    def object(self) -> NDArray[np.complex64]:
        """Object (H, W); NaN where unknown."""
        return np.asarray(self.amplitude * np.exp(1j * self.phase), dtype=np.complex64)

    @property
    def frames(self) -> dict[str, NDArray[Any]]:
        """Sequence numbers and positions (m) of the frames it was made of: ``seq_num``, ``y_m``, ``x_m``."""
        table = self._node.read_rows(FRAMES, frames_schema())
        return {name: table.column(name).to_numpy() for name in table.column_names}

    @property
    def status(self) -> str:
        """``complete``, or ``live`` while it is written or where that was interrupted."""
        return str(self.metadata["status"])

    def __repr__(self) -> str:
        about, raw = self.metadata, self.metadata["raw"]
        solver = about["solver"]
        parts = [f"raw {raw['uid'][:8]}", *([f"scan {raw['scan_id']}"] if raw.get("scan_id") is not None else [])]
        parts += [self.status, f"{about['counts']['used']} frames", f"sampling {about['sampling']:.2f}"]
        parts.append(f"{solver['name']}, {solver['epochs']} epochs")
        return f"<{SPEC} {self._uid[:8]} {', '.join(parts)}>"

    def _panels(self) -> dict[str, NDArray[np.float32]]:
        return {name: self._array(name) for name in PICTURES}

    def _array(self, name: str) -> NDArray[np.float32]:
        return self._node.read_array(name, tuple(self.metadata["shapes"][name]))


def labels(catalog: Any, *, raw: Any = None, status: str | None = "complete", limit: int = 100) -> list[PtychoLabel]:
    """Find labels, newest first.

    Parameters
    ----------
    catalog : anything `connect` takes
        The catalog.
    raw : str, int or run, optional
        The run they were made from: its uid, its scan id, or the run itself.
    status : str, optional
        ``complete`` or ``live``; None for both.
    limit : int
        Most to return.
    """
    return find_derived(catalog, SPEC, raw, limit, status=status)
