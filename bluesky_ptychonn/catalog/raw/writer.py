"""Raw runs into the catalog, whatever happens to it: a scan never waits for it and nothing measured is lost.

In the RunEngine's thread every document is appended, whole, to a file of its run; a thread takes those files into the
catalog with TiledWriter, while the run goes on where the catalog answers and otherwise once it does. A file goes only
when the catalog gives its run back. What a killed session left, the next one takes in, or `recover`.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_ptychonn.catalog.raw.connection import RawCatalog
from bluesky_ptychonn.catalog.raw.delivery import RECOVERED, Delivery, ProblemLog
from bluesky_ptychonn.catalog.raw.upload import NotARunError, RunUpload, describe
from bluesky_ptychonn.journal.append_file import AppendFile, run_files
from bluesky_ptychonn.journal.router import Journal

__all__ = ["RawWriter", "Recovered", "raw_writer", "recover"]

log = logging.getLogger(__name__)

_FIRST_S = 10.0  # how long making a writer waits to hear whether the catalog's name is one
_CLOSE_S = 60.0
_EXIT_S = 10.0


class RawWriter:
    """Callback that writes raw runs into a catalog; made by `raw_writer`.

    Never raises and never waits, except for the local disk. ``repr`` says how things stand.

    Attributes
    ----------
    folder : Path
        Where the files lie.
    journal : Journal
        Writes them.
    errors : int
        Documents that could not be written to disk at once; those lost for good are in `lost`.
    """

    def __init__(self, catalog: Any, backup: str | Path, *, raw: str | None = None) -> None:
        self.folder = Path(backup).expanduser().resolve()
        self.errors = 0
        self._unwritable = 0
        self.journal = Journal(self.folder)
        self._problems = ProblemLog()
        self._delivery = Delivery(self.journal, RawCatalog(catalog, raw), self._problems)
        self._delivery.wait_until_asked(_FIRST_S)
        if self._delivery.invalid_catalog is not None:
            raise self._delivery.invalid_catalog
        atexit.register(self.close, _EXIT_S)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Append a document to its run's file."""
        try:
            if not self.journal.append(name, doc):
                self._problems.report("strays", f"a {name} document of a run whose start was not seen, not written")
            elif name == "stop" and not self._delivery.alive:  # closed: nobody else will
                self.journal.release()
        except OSError as error:
            self.errors += 1
            self._problems.report("disk", f"{self.folder}: {error}; documents wait in memory")
        except BaseException as error:  # noqa: BLE001  # nothing of ours may stop a plan; `problem` and the log say it
            self.errors += 1
            self._unwritable += not isinstance(error, MemoryError)
            self._problems.report("lost", f"a {name} document was lost: {type(error).__name__}: {error}")
        self._delivery.wake()

    @property
    def pending(self) -> list[str]:
        """Runs that are not whole in the catalog yet, the oldest first: their uids, as a rule."""
        return self.journal.waiting

    @property
    def problem(self) -> str:
        """What is wrong now, in words; empty when nothing is."""
        return self._problems.message

    @property
    def lost(self) -> int:
        """Documents lost for good: no file can hold such a one, or the disk was full for longer than memory lasted."""
        return self.journal.lost + self._unwritable

    def __repr__(self) -> str:
        pending = len(self.pending)
        state = f"{pending} run{'s' * (pending != 1)} not yet whole in the catalog" if pending else "all runs delivered"
        state += f", {self.lost} documents lost" * bool(self.lost)
        return f"<RawWriter {str(self.folder)!r}: {state}{'; ' if self.problem else ''}{self.problem}>"

    def close(self, timeout: float = _CLOSE_S) -> bool:
        """Write what the catalog takes, at most `timeout` s, and end the thread; again is harmless.

        Returns soon where the catalog does not answer. What is left stays in the folder, for the next session or
        ``ptychonn recover``; so does what is still appended.

        Returns
        -------
        bool
            Whether every run is in the catalog.
        """
        self._delivery.close(timeout)
        atexit.unregister(self.close)
        waiting = self.pending
        if waiting:
            log.warning("%d raw runs stay in %s for the next session or 'ptychonn recover'", len(waiting), self.folder)
        if held := self.journal.held:
            log.error("%d documents are in memory only: the disk of %s takes none", held, self.folder)
        return not waiting

    def shutdown(self, wait: bool = True) -> None:
        """Close, as bluesky's own ``BufferingWrapper`` calls it."""
        self.close(_CLOSE_S if wait else 0.0)


def raw_writer(catalog: Any, backup: str | Path, *, raw: str | None = None) -> RawWriter:
    """Make a callback that writes raw runs into a catalog, and loses none while that is away.

    A catalog that is dead, hung or slow costs the scan nothing: in the RunEngine's thread documents are only appended
    to a file in `backup`. A thread takes them into the catalog, as they come or, where it was away, when it is back.
    Runs that an earlier session left there it takes in too, the oldest first.

    Parameters
    ----------
    catalog : CatalogServer, Tiled client, address or profile name
        Where to. It need not answer yet.
    backup : path
        Folder on a local disk that keeps each run until the catalog gives it back whole. Made where it is not there.
    raw : str, optional
        Container of the runs, below the catalog's; empty for that itself. By default ``raw`` where there is one, else
        that itself.

    Returns
    -------
    RawWriter
        For ``RE.subscribe``. ``pending`` and ``problem`` say how it stands; `RawWriter.close` waits for the rest.

    Raises
    ------
    ValueError
        When `catalog` is no name of one, or has no such container.
    OSError
        When `backup` cannot be made.

    Examples
    --------
    >>> RE.subscribe(raw_writer(catalog, "~/backup"))  # doctest: +SKIP
    """
    return RawWriter(catalog, backup, raw=raw)


@dataclass(frozen=True)
class Recovered:
    """What became of one file of a backup.

    Attributes
    ----------
    file : Path
        The file, under its new name where it is done with.
    uid : str
        Of the run; empty where the file does not say.
    outcome : str
        ``recovered``, ``already there``, or what is wrong with it.
    """

    file: Path
    uid: str
    outcome: str


def recover(catalog: Any, backup: str | Path, *, raw: str | None = None) -> list[Recovered]:
    """Write the runs of a backup folder into the catalog.

    A run of which the catalog holds a part is written anew; a whole one is left alone. A file is renamed to
    ``*.jsonl.recovered`` once the catalog gives the run back with all its events. A run whose session was killed gets
    a stop document with ``exit_status`` ``abort``. Files of a session that is alive are left to it.

    Parameters
    ----------
    catalog, backup, raw
        See `raw_writer`.

    Returns
    -------
    list of Recovered
        One for each file, the oldest first.
    """
    catalog = RawCatalog(catalog, raw)
    try:
        runs = catalog.runs
        return [_recover(runs, path) for path in run_files(Path(backup).expanduser())]
    finally:
        catalog.close()


def _recover(runs: Any, path: Path) -> Recovered:
    try:
        file = AppendFile.claim(path)
    except BlockingIOError:
        return Recovered(path, path.stem, "a running session holds it and writes it itself")
    except FileNotFoundError:
        return Recovered(path, path.stem, "already there")
    except OSError as error:
        return Recovered(path, "", describe(path, error))
    upload = RunUpload(file, fresh=False, growing=False)
    try:
        while not upload.outcome:
            if not upload.step(runs):
                raise NotARunError("documents stop before the run does; its file is left")
        return Recovered(file.rename(RECOVERED), upload.uid, upload.outcome)
    except Exception as error:  # noqa: BLE001  # in the outcome; the other files go on
        return Recovered(path, upload.uid, describe(path, error))
    finally:
        file.release()
