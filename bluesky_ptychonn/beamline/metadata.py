"""Metadata of a RunEngine that outlive the session, above all its ``scan_id``.

Bluesky's own `PersistentDict` needs zict and holds what it read once, so that two sessions count alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import orjson

from bluesky_ptychonn.files import read_json, write_json

log = logging.getLogger(__name__)

_OF_THE_SESSION = "versions"  # a RunEngine fills it in place, anew in each session


class PersistentMetadata(MutableMapping[str, Any]):
    """A dictionary in a JSON file, written whole whenever a key is set: ``RunEngine(PersistentMetadata(path))``.

    What another session wrote meanwhile is read. A disk that takes nothing is logged, and never an error to a scan. A
    change inside a value, ``md["sample"]["name"] = "b"``, is written with the next key that is set.

    Parameters
    ----------
    path : path
        The file; made, with its folder, where there is none.

    Raises
    ------
    ValueError
        When there is something else than a JSON object in the file; by setting a key, when JSON cannot hold the value.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metadata.json"
    >>> PersistentMetadata(path)["scan_id"] = 7
    >>> PersistentMetadata(path)["scan_id"]
    7
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self._values: dict[str, Any] = {}
        self._stamp: tuple[int, ...] = ()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and read_json(self.path) is None:
            raise ValueError(f"metadata {self.path}: not a JSON object; mend the file, or take it away to begin anew")

    def _read(self) -> dict[str, Any]:
        try:
            about = self.path.stat()
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if stamp != self._stamp and (values := read_json(self.path)) is not None:
                kept = {name: self._values[name] for name in (_OF_THE_SESSION,) if name in self._values}
                self._values, self._stamp = values | kept, stamp
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("metadata %s cannot be read, and stay as they are here: %s", self.path, error)
        return self._values

    def _write(self) -> None:
        values = {name: value for name, value in self._values.items() if name != _OF_THE_SESSION}
        try:
            write_json(self.path, values, indent=True)
        except OSError as error:
            log.warning("metadata %s cannot be written, the next session will not know of them: %s", self.path, error)

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        try:
            orjson.dumps({key: value}, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise ValueError(f"metadata {key}: {value!r} cannot be kept in {self.path}: {error}") from None
        self._read()[key] = value
        if key != _OF_THE_SESSION:
            self._write()

    def __delitem__(self, key: str) -> None:
        del self._read()[key]
        self._write()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"<PersistentMetadata {self.path}: {self._read()}>"
