"""Where a user's files lie, by the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "ptychonn"

#: Names the configuration file when no path is given.
CONFIG_VARIABLE = "PTYCHONN_CONFIG"


def _base(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser() / _NAME


def state_folder() -> Path:
    """Folder of what is kept between sessions: ``$XDG_STATE_HOME/ptychonn`` or ``~/.local/state/ptychonn``."""
    return _base("XDG_STATE_HOME", "~/.local/state")


def journal_root() -> Path:
    """Folder of all sessions of live reconstruction."""
    return state_folder() / "journal"


def raw_backup() -> Path:
    """Folder of raw runs that wait for a catalog elsewhere."""
    return state_folder() / "raw-backup"


def learning_root() -> Path:
    """Folder of all learners."""
    return state_folder() / "learning"


def users_models() -> tuple[Path, ...]:
    """Folders of the user's models: ``$PTYCHONN_MODELS``, or ``$XDG_DATA_HOME/ptychonn/models``."""
    given = os.environ.get("PTYCHONN_MODELS")
    if given:
        return tuple(Path(part).expanduser() for part in given.split(os.pathsep) if part)
    return (_base("XDG_DATA_HOME", "~/.local/share") / "models",)


def named_config() -> Path | None:
    """File that the environment names; None where it names none, and ValueError where there is no such file."""
    name = os.environ.get(CONFIG_VARIABLE)
    if not name:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"{CONFIG_VARIABLE} names {name}, which is no file; mend it, or unset it")
    return path


def users_config() -> Path:
    """File of the configuration where none is named: ``$XDG_CONFIG_HOME/ptychonn/config.toml``."""
    return _base("XDG_CONFIG_HOME", "~/.config") / "config.toml"
