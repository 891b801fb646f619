"""Read a stranger's HDF5 file: the one place where one is opened, sizes before data, damage said in words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest array that is read whole, bytes; a probe of 16 modes of 2048 px takes half of it.
MOST_BYTES = 1 << 30
_MOST_LINKS = 16
_OUT = "is {}; only what the file itself holds is read: copy the data into it"


def import_h5py() -> Any:
    """Import h5py for reading: the compression filters of detectors' files are registered with it."""
    import h5py
    import hdf5plugin  # noqa: F401  registers them

    return h5py


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file for reading; ValueError when it, or what is read of it inside the block, is no HDF5 or damaged."""
    h5py = import_h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:  # a damaged file, a link to nowhere or to itself
        why = error.args[0] if error.args else type(error).__name__
        raise ValueError(f"{path.name}: not a readable HDF5 file, or damaged: {why}") from None


def find_inside(group: Any, place: str, who: str) -> Any:
    """Find what stands at a place of this very file; None where there is nothing.

    A link may name any other file of the machine, so that whoever made this file would choose what its reader reads.
    The same holds of data that a dataset says are kept elsewhere.

    Raises
    ------
    ValueError
        When the way leads out of the file: an external link, a virtual dataset, or raw data outside.
    """
    import h5py

    here = group.file if place.startswith("/") else group
    ahead, followed = place.split("/")[::-1], 0
    while ahead:
        name = ahead.pop()
        if name in ("", "."):
            continue
        if not isinstance(here, h5py.Group):
            return None
        try:
            link = here.get(name, getlink=True)
        except TypeError:  # a link of a kind that nobody here knows
            return None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{who}: {place} {_OUT.format(f'a link to the file {link.filename!r}')}")
        if isinstance(link, h5py.SoftLink):
            followed += 1
            if followed > _MOST_LINKS:
                return None
            here = group.file if link.path.startswith("/") else here
            ahead += link.path.split("/")[::-1]
            continue
        here = here[name]
    if isinstance(here, h5py.Dataset):
        refuse_external_data(here, f"{who}: {place}")
    return here


def find_first(group: Any, places: Iterable[str], who: str) -> str | None:
    """Give the first of several places where something stands, see `find_inside`."""
    return next((place for place in places if find_inside(group, place, who) is not None), None)


def refuse_external_data(dataset: Any, who: str) -> None:
    """Refuse a dataset that keeps its numbers in another file with a ValueError."""
    if dataset.is_virtual:
        raise ValueError(f"{who} {_OUT.format('a virtual dataset, made of others')}")
    if dataset.external:
        raise ValueError(f"{who} {_OUT.format(f'kept in the file {dataset.external[0][0]!r}')}")


def refuse_missing_filter(dataset: Any, who: str) -> None:
    """Refuse a dataset packed by a filter that is not installed here with a ValueError that names it."""
    import h5py

    packing = dataset.id.get_create_plist()
    for number, _, _, name in (packing.get_filter(k) for k in range(packing.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            raise ValueError(
                f"{who} is packed by the HDF5 filter {number} ({name.decode(errors='replace') or 'without a name'}), "
                "which is not installed here. Install it as a plug-in of HDF5 (a newer hdf5plugin may have it, or name "
                "its folder in HDF5_PLUGIN_PATH), or write the file anew without it, for example by h5repack"
            )


def numeric_dataset(group: Any, place: str, who: str) -> Any:
    """Dataset of numbers at a place, nothing of it read yet; ValueError for anything else, and see `find_inside`."""
    import h5py

    found = find_inside(group, place, who)
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "biufc":
        what = f"{found.dtype}" if isinstance(found, h5py.Dataset) else f"a {type(found).__name__.lower()}"
        raise ValueError(f"{who}: {place} holds {what}; numbers are needed there")
    refuse_missing_filter(found, f"{who}: {place}")
    return found


def read_numeric(group: Any, place: str, who: str) -> NDArray[Any]:
    """Read an array of numbers whole, see `numeric_dataset`.

    ValueError too where it is larger than `MOST_BYTES`: a file of a kilobyte may claim any size.
    """
    found = numeric_dataset(group, place, who)
    size = math.prod(found.shape) * found.dtype.itemsize
    if size > MOST_BYTES:
        raise ValueError(f"{who}: {place} of shape {found.shape} takes {size} bytes; at most {MOST_BYTES} are read")
    return np.asarray(found[()])
