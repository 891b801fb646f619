"""What is changed in Tiled while it runs, each with its reason, until Tiled does so itself.

All of it in the server's process. Every patch was needed by Tiled 0.2.20; the tests of this file show the fault in the
Tiled that is installed, and fail once a patch is not needed any more. Versions later than those that the package allows
are left as they are: what is patched may look different there.
"""

from __future__ import annotations

import functools
import io
import logging
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

#: First version that is not patched: the bound in pyproject.toml.
NOT_FROM = (0, 3)

_P = ParamSpec("_P")


def _guarded(patch: Callable[_P, None]) -> Callable[_P, None]:
    """Apply a patch to the versions of Tiled it was made for."""

    @functools.wraps(patch)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        installed = version("tiled")
        if tuple(int(number) for number in installed.split(".")[:2]) < NOT_FROM:
            patch(*args, **kwargs)
        else:
            below = ".".join(map(str, NOT_FROM))
            log.warning(
                "Tiled %s is left as it is: %s was made for versions below %s", installed, patch.__name__, below
            )

    return guarded


@_guarded
def check_where_paths_lead() -> None:
    """Have Tiled look at where a path leads, not at how it begins.

    Its own check lets ``/readable/../secret`` pass, and links that lead out.
    """
    from tiled.catalog.adapter import CatalogNodeAdapter
    from tiled.utils import path_from_uri

    check = CatalogNodeAdapter._ensure_uri_within_readable_storage

    def check_where_it_leads(self: Any, data_uri: str) -> None:
        if urlsplit(data_uri).scheme == "file":
            data_uri = Path(os.path.realpath(path_from_uri(data_uri))).as_uri()
        check(self, data_uri)

    CatalogNodeAdapter._ensure_uri_within_readable_storage = check_where_it_leads


@_guarded
def serve_frames_known() -> None:
    """Have Tiled serve the frames it knows of a file that holds more of them already.

    Its own way does so only where file and catalog have as many axes. areaDetector writes (frames, rows, columns), and
    what stock ophyd says of it is (events, 1, rows, columns): such a run cannot be read while the file is a frame ahead
    of the documents, and never again when it was aborted so.
    """
    from tiled.adapters import array
    from tiled.adapters.utils import DataNotReadyError

    reshape = array.force_reshape

    def reshape_what_is_known(data: Any, shape: tuple[int, ...]) -> Any:
        shape = tuple(shape)
        frame = [length for length in shape[1:] if length != 1]
        if data.ndim and shape and frame == [length for length in data.shape[1:] if length != 1]:
            if len(data) < shape[0]:
                raise DataNotReadyError(f"{shape[0]} frames are known and {len(data)} are in the file yet")
            data = data[: shape[0]]
        return reshape(data, shape)

    array.force_reshape = reshape_what_is_known


@_guarded
def make_arrays_anew() -> None:
    """Have Tiled make a new array where an old one lies that its catalog knows nothing of.

    Its own way is to fail, for ever: a server that was killed after it made an array and before the catalog had it, or
    after the catalog forgot one and before its files were gone, will never take data under that name again. When it
    makes the files the name is the new array's already, so whatever is there is nobody's.
    """
    from tiled.adapters import zarr

    zarr.create_array = functools.partial(zarr.create_array, overwrite=True)


@_guarded
def draw_what_is_finite() -> None:
    """Have Tiled's PNG of an array show what is finite in it, and leave the rest transparent, as its page does.

    Its own way scales by percentiles of all pixels, so that a single NaN makes the whole picture black.
    """
    import tiled.serialization.array  # noqa: F401  # registers its own way, which is not to come after ours
    from tiled.media_type_registration import default_serialization_registry

    own = default_serialization_registry.dispatch("array", "image/png")

    def draw(mimetype: str, array: Any, metadata: Any) -> Any:
        import numpy as np

        data = np.atleast_2d(array)
        there = np.isfinite(data) if data.dtype.kind == "f" else np.True_
        if data.ndim != 2 or there.all():
            return own(mimetype, array, metadata)
        from PIL import Image

        low, high = np.percentile(data[there], [1, 99]) if there.any() else (0.0, 1.0)
        scaled = np.clip((np.where(there, data, low) - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
        shown = np.stack([np.rint(255 * scaled), 255 * there], axis=-1).astype(np.uint8)  # grey, opacity
        Image.fromarray(shown).save(file := io.BytesIO(), format="png")
        return file.getbuffer()

    default_serialization_registry.register("array", "image/png", draw)


@_guarded
def search_words_as_they_are() -> None:
    """Have Tiled look for the words of a full-text query, whatever signs are in them.

    Its own way hands them to SQLite as an expression: a sample ``star-2``, a uid, anything with a quote is answered
    by 500.
    """
    from tiled.catalog.adapter import CatalogNodeAdapter, full_text
    from tiled.queries import FullText

    def full_text_of_words(query: Any, tree: Any) -> Any:
        words = ('"{}"'.format(word.replace('"', '""')) for word in query.text.split())
        return full_text(FullText(" ".join(words) or '""'), tree)

    CatalogNodeAdapter.register_query(FullText, full_text_of_words)


class _AnalysedOnce(dict[Any, Any]):
    """Dependency overrides that FastAPI takes for none."""

    def __bool__(self) -> bool:
        return False


@_guarded
def analyse_dependencies_once(app: Any) -> None:
    """Have FastAPI analyse an app's dependencies once, not on every request.

    Tiled overrides one dependency, `get_settings`, by a function that returns the very object `get_settings` returns
    after filling it in. While there are overrides FastAPI analyses the signature of every dependency again on every
    request, which is half of the time of a small request (measured: 34 to 19 ms). Tiled itself still looks its function
    up.
    """
    from tiled.server.settings import get_settings

    app.dependency_overrides[get_settings]()
    app.dependency_overrides = _AnalysedOnce(app.dependency_overrides)
