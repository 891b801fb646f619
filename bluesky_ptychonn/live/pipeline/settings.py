"""What a worker is asked to do: the one place where the options of a reconstruction stand."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.files import read_json, write_json
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

SETTINGS_FILE = "order.json"
SPOOL = "spool"  # folder beside it, where results wait for the catalog
_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class ReconstructionSettings:
    """What a worker is asked to do. Holds no secret.

    Parameters
    ----------
    model : str
        Folder of the model.
    catalog : str
        Address of the catalog's root, ``http(s)://…``.
    geometry : Geometry, optional
        Overrides the start documents'.
    keys : DataKeys
        Which data are frames and positions.
    pace : Timing
        How often things happen.
    device : str
        ``auto``, ``cpu``, ``cuda``.
    batch_size : int
        Frames the network takes at once.
    raw : str
        Container of the runs.
    threads : int
        Threads of the network on a CPU; 0 leaves it to torch.
    nice : int
        Priority the worker gives up, 0 to 19.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    preprocess : PreprocessConfig, optional
        From recorded frames to the network's, instead of the model card's.
    refinement : Refinement, optional
        How to refine mosaics; by default not at all.
    champion : str
        Name whose champion in the catalog is to be used, where there is one; `model` may then be empty.
    spool_mib : int
        Most that results may take on disk while the catalog does not take them, MiB.

    Raises
    ------
    ValueError
        For a precision there is not, or no room for a spool.
    """

    model: str
    catalog: str
    geometry: Geometry | None = None
    keys: DataKeys = field(default_factory=DataKeys)
    pace: Timing = field(default_factory=Timing)
    device: str = "auto"
    batch_size: int = 16
    raw: str = "raw"
    threads: int = 1
    nice: int = 10
    precision: str = "fp32"
    preprocess: PreprocessConfig | None = None
    refinement: Refinement | None = None
    champion: str = ""
    spool_mib: int = 1024

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; allowed: {', '.join(_PRECISIONS)}")
        if self.spool_mib < 1:
            raise ValueError(f"spool_mib {self.spool_mib} must be at least 1 MiB")

    def save(self, folder: Path) -> None:
        """Write the order into a session's folder."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("geometry", "preprocess", "refinement"):
            values[name] = None if values[name] is None else values[name].model_dump(mode="json")
        write_json(
            folder / SETTINGS_FILE, values | {"keys": asdict(self.keys), "pace": asdict(self.pace)}, private=True
        )

    @classmethod
    def load(cls, folder: Path) -> ReconstructionSettings:
        """Read the order of a session.

        Raises
        ------
        ValueError
            When the folder holds none.
        """
        values = read_json(folder / SETTINGS_FILE)
        if values is None:
            raise ValueError(f"{folder}: no session of LiveReconstruction ({SETTINGS_FILE} is missing)")
        for name, kind in (("geometry", Geometry), ("preprocess", PreprocessConfig), ("refinement", Refinement)):
            values[name] = None if values.get(name) is None else kind.model_validate(values[name])
        return cls(**values | {"keys": DataKeys(**values["keys"]), "pace": Timing(**values["pace"])})
