"""One configuration file for a session or a beamline: which catalog, which model, how to reconstruct.

It composes what the pieces are configured by anyway (`LiveOptions`, `LearnerConfig`); a key nobody knows is an error.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from bluesky_ptychonn.catalog.connection.server import connect, serve_catalog
from bluesky_ptychonn.catalog.raw.writer import RawWriter, raw_writer
from bluesky_ptychonn.live.callback import LiveReconstruction
from bluesky_ptychonn.live.learning.config import LearnerConfig
from bluesky_ptychonn.live.pipeline.settings import LiveOptions, explain
from bluesky_ptychonn.paths import CONFIG_VARIABLE, named_config, raw_backup, state_folder, users_config


def _beside_the_file(*names: str) -> Any:
    """Make relative paths mean those beside the configuration file; without ``..``, of which Tiled serves no file."""

    def resolve(value: Any, info: ValidationInfo) -> Any:
        base = Path((info.context or {}).get("base", "."))
        if isinstance(value, tuple):
            return tuple((base / path.expanduser()).resolve() for path in value)
        return None if value is None else (base / value.expanduser()).resolve()

    return field_validator(*names)(resolve)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogConfig(_Section):
    """Which catalog: one that is served elsewhere, or a folder to serve from here.

    Parameters
    ----------
    address : str, optional
        ``http(s)://`` address or Tiled profile of a running catalog; of the container that has ``raw`` and
        ``processed``, where they are not at the server's root: ``http(s)://HOST/api/v1/metadata/NAME``.
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

    _from_file = _beside_the_file("folder", "readable", "backup")

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

    @property
    def metadata_file(self) -> Path:
        """Where a session's RunEngine may keep its metadata: its scan ids are this catalog's."""
        return (state_folder() if self.folder is None else self.folder) / "run-engine.json"

    def raw_writer(self, catalog: Any, raw: str | None = None) -> RawWriter:
        """Make the callback that writes raw runs; subscribe it first. See `catalog.raw.writer.raw_writer`."""
        return raw_writer(catalog, self.backup_folder, raw=raw)

    def open(self) -> Any:
        """Start the server, or connect: a `CatalogServer`, or a Tiled client."""
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


class ReconstructionConfig(LiveOptions):
    """How to reconstruct; `LiveReconstruction` explains all that it takes.

    Parameters
    ----------
    model : str
        Name or folder of the model.
    journal_dir, mask : Path, optional
        Relative to the configuration file.
    """

    model: str

    _from_file = _beside_the_file("journal_dir", "mask")

    def live(self, catalog: Any, raw_writer: RawWriter | None = None) -> LiveReconstruction:
        """Start live reconstruction into a catalog; subscribe what this returns to a RunEngine, after `raw_writer`."""
        return LiveReconstruction(self.model, catalog, self, raw_writer=raw_writer)


class LearningSection(LearnerConfig):
    """How ``ptychonn learn`` goes about it; see `LearnerConfig` for what each means.

    Parameters
    ----------
    folder : Path, optional
        The learner's own; relative to the configuration file.
    """

    folder: Path | None = None

    _from_file = _beside_the_file("folder")


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
        source = Path(path or named_config() or users_config()).expanduser()
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
            raise ValueError(f"configuration {source}: {explain(error, cls)}") from None
