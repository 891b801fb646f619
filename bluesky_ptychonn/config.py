"""One configuration file for a session or a beamline: which catalog, which model, how to reconstruct.

It composes what the pieces are configured by anyway (`Geometry`, `DataKeys`, `Timing`); a key nobody knows is an error.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from bluesky_ptychonn.catalog.connection.server import connect, serve_catalog
from bluesky_ptychonn.catalog.raw.writer import RawWriter, raw_writer
from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.learning.config import LearnerConfig
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.paths import raw_backup, users_config
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

#: Names the configuration file when no path is given.
CONFIG_VARIABLE = "PTYCHONN_CONFIG"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogConfig(_Section):
    """Which catalog: one that is served elsewhere, or a folder to serve from here.

    Parameters
    ----------
    address : str, optional
        ``http(s)://`` address or Tiled profile of a running catalog.
    folder : Path, optional
        Folder to serve, made if absent; relative to the configuration file.
    port : int
        TCP port on loopback, 0 for any.
    readable : tuple of Path
        Folders with detector files that the server may read, beside ``frames``.
    profile : str, optional
        Tiled profile to write for the served folder.
    subscriptions : bool
        Whether the served catalog offers Tiled subscriptions.
    backup : Path, optional
        Folder for raw runs that the catalog would not take; by default ``raw-backup`` inside the served folder, or in
        the user's state folder for a catalog elsewhere.
    """

    address: str | None = None
    folder: Path | None = None
    port: int = Field(default=0, ge=0, le=65535)
    readable: tuple[Path, ...] = ()
    profile: str | None = None
    subscriptions: bool = False
    backup: Path | None = None

    @field_validator("folder", "readable", "backup")
    @classmethod
    def _from_file(cls, value: Any, info: ValidationInfo) -> Any:
        base = Path((info.context or {}).get("base", "."))
        if isinstance(value, tuple):
            return tuple(base / path.expanduser() for path in value)
        return None if value is None else base / value.expanduser()

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.address is None) == (self.folder is None):
            raise ValueError("give either address (of a running catalog) or folder (to serve one from)")
        if self.address is not None and self.model_fields_set - {"address", "backup"}:
            theirs = ", ".join(sorted(self.model_fields_set - {"address", "backup"}))
            raise ValueError(
                f"{theirs}: for a folder to serve only; a catalog with an address is configured where it runs"
            )
        return self

    @property
    def frames(self) -> Path:
        """Folder inside the served one where a simulated camera may write.

        Raises
        ------
        ValueError
            For a catalog that runs elsewhere.
        """
        if self.folder is None:
            raise ValueError("catalog.folder is not set: where a catalog elsewhere reads frames is not known here")
        return self.folder / "frames"

    @property
    def backup_folder(self) -> Path:
        """Where raw runs wait that the catalog would not take."""
        if self.backup is not None:
            return self.backup
        return raw_backup() if self.folder is None else self.folder / "raw-backup"

    def raw_writer(self, catalog: Any) -> RawWriter:
        """Make the callback that writes raw runs; subscribe it first. See `catalog.raw.writer.raw_writer`."""
        return raw_writer(catalog, self.backup_folder)

    def open(self) -> Any:
        """Start the server, or connect: a `CatalogServer`, or the Tiled client of the root."""
        if self.folder is None:
            return connect(self.address)
        self.frames.mkdir(parents=True, exist_ok=True)
        return serve_catalog(
            self.folder,
            port=self.port,
            readable=[self.frames, *self.readable],
            profile=self.profile,
            subscriptions=self.subscriptions,
        )


class ReconstructionConfig(_Section):
    """How to reconstruct; see `LiveReconstruction` for what each means.

    Parameters
    ----------
    model : str
        Name or folder of the model.
    device : str
        ``auto``, ``cpu``, ``cuda``.
    worker : {"process", "thread"}
    batch_size : int
    threads : int, optional
    journal_dir : Path, optional
        Relative to the configuration file.
    geometry : Geometry, optional
        Overrides the start documents'.
    keys : DataKeys
        Which data are frames and positions.
    pace : Timing
        How often things happen.
    refine : bool or Refinement
        Whether, or how, mosaics are refined by sweeps of the physics.
    spool_mib : int
        Most that results may take on disk while the catalog does not answer, MiB.
    """

    model: str
    device: str = "auto"
    worker: Literal["process", "thread"] = "process"
    batch_size: int = Field(default=16, ge=1)
    threads: int | None = Field(default=None, ge=1)
    journal_dir: Path | None = None
    geometry: Geometry | None = None
    keys: DataKeys = DataKeys()
    pace: Timing = Timing()
    refine: bool | Refinement = False
    spool_mib: int = Field(default=1024, ge=1)

    @field_validator("keys", "pace", mode="before")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse keys the dataclass does not have; pydantic drops them in silence."""
        kind = {"keys": DataKeys, "pace": Timing}[str(info.field_name)]
        if isinstance(value, Mapping):
            allowed = [item.name for item in dataclasses.fields(kind)]
            if unknown := sorted(set(value) - set(allowed)):
                raise ValueError(f"{', '.join(unknown)}: unknown; allowed: {', '.join(allowed)}")
        return value

    @field_validator("journal_dir")
    @classmethod
    def _from_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else Path((info.context or {}).get("base", ".")) / value.expanduser()

    def live(self, catalog: Any, raw_writer: RawWriter | None = None) -> LiveReconstruction:
        """Start live reconstruction into a catalog; subscribe what this returns to a RunEngine, after `raw_writer`."""
        keys = self.keys
        return LiveReconstruction(
            self.model,
            catalog,
            geometry=self.geometry,
            frame_key=keys.frame,
            x_key=keys.x,
            y_key=keys.y,
            x_sign=keys.x_sign,
            y_sign=keys.y_sign,
            position_unit=keys.position_unit,
            stream=keys.stream,
            worker=self.worker,
            journal_dir=self.journal_dir,
            device=self.device,
            batch_size=self.batch_size,
            pace=self.pace,
            threads=self.threads,
            refine=self.refine,
            spool_mib=self.spool_mib,
            raw_writer=raw_writer,
        )


class LearningSection(LearnerConfig):
    """How ``ptychonn learn`` goes about it; see `LearnerConfig` for what each means.

    Parameters
    ----------
    folder : Path, optional
        The learner's own; relative to the configuration file.
    """

    folder: Path | None = None

    @field_validator("folder")
    @classmethod
    def _from_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else Path((info.context or {}).get("base", ".")) / value.expanduser()


class Config(_Section):
    """The whole configuration.

    Parameters
    ----------
    catalog : CatalogConfig
    reconstruction : ReconstructionConfig
    learning : LearningSection

    Examples
    --------
    >>> config = Config.model_validate(
    ...     {"catalog": {"address": "beamline"}, "reconstruction": {"model": "simulated-zp64"}}
    ... )
    >>> config.reconstruction.pace.block
    64
    """

    catalog: CatalogConfig
    reconstruction: ReconstructionConfig
    learning: LearningSection = LearningSection()

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Config:
        """Read a TOML file: `path`, or ``$PTYCHONN_CONFIG``, or ``~/.config/ptychonn/config.toml``.

        Raises
        ------
        ValueError
            In words: no such file, not TOML, or each wrong key with what is allowed.
        """
        source = Path(path or os.environ.get(CONFIG_VARIABLE) or users_config()).expanduser()
        try:
            values = tomllib.loads(source.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"configuration {source}: no such file; write one, or name one in {CONFIG_VARIABLE}"
            ) from None
        except (ValueError, RecursionError) as error:  # no TOML, no text, endless numbers, endless nesting
            raise ValueError(f"configuration {source}: not TOML: {error}") from None
        try:
            return cls.model_validate(values, context={"base": source.absolute().parent})
        except ValidationError as error:
            wrong = "; ".join(_words(cls, item) for item in error.errors())
            raise ValueError(f"configuration {source}: {wrong}") from None


def _words(root: type[BaseModel], error: Any) -> str:
    """Say where and what is wrong; for an unknown key also what is allowed there."""
    place = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        got = "" if error["type"] in ("missing", "value_error") else f", got {error['input']!r}"
        return f"{'.'.join(place) or 'file'}: {error['msg'].removeprefix('Value error, ')}{got}"
    section: Any = root
    for part in place[:-1]:
        fields = getattr(section, "model_fields", {})
        section = fields[part].annotation if part in fields else None
    return f"{'.'.join(place)}: unknown; allowed: {', '.join(getattr(section, 'model_fields', {}))}"
