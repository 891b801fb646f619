"""Options as keywords of `LiveReconstruction` and `reconstruct`: their types, and how they show in IPython."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import ValidationError

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.live.pipeline.settings import ReconstructionOptions, explain
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.inference.precision import Precision
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

_Takes = TypeVar("_Takes", bound=Callable[..., Any])
_Options = TypeVar("_Options", bound=ReconstructionOptions)
# Keyword -> field of `DataKeys`.
_DATA_KEYS = {"frame_key": "frame", "x_key": "x", "y_key": "y"} | {
    name: name for name in ("x_sign", "y_sign", "position_unit", "stream")
}


class ReconstructionKeywords(TypedDict, total=False):
    """Keywords of `reconstruct`, see `ReconstructionOptions`."""

    geometry: Geometry | None
    frame_key: str | None
    x_key: str | None
    y_key: str | None
    x_sign: int | None
    y_sign: int | None
    position_unit: str | None
    stream: str
    keys: DataKeys | None
    device: str
    batch_size: int
    raw: str
    threads: int | None
    precision: Precision
    preprocess: PreprocessConfig | None
    refine: bool | Refinement


class LiveKeywords(ReconstructionKeywords, total=False):
    """Keywords of `LiveReconstruction`, see `LiveOptions`."""

    worker: Literal["process", "thread"]
    journal_dir: str | Path | None
    flush_s: float | None
    pace: Timing | None
    spool_mib: int


def with_keywords(options: _Options, keywords: Mapping[str, object], allowed: type) -> _Options:
    """Return options, changed by the keywords that a function was given; None leaves one as it is.

    Raises
    ------
    TypeError
        For a keyword that the TypedDict `allowed` does not have.
    ValueError
        In words, for a value that is not allowed.

    Examples
    --------
    >>> options = with_keywords(ReconstructionOptions(), {"x_key": "px", "flush_s": 0.1}, LiveKeywords)
    >>> options.keys.x, options.pace.flush_s
    ('px', 0.1)
    """
    if unknown := sorted(set(keywords) - set(allowed.__annotations__)):
        raise TypeError(f"{', '.join(unknown)}: unknown; allowed: {', '.join(allowed.__annotations__)}")
    values: dict[str, Any] = {name: value for name, value in keywords.items() if value is not None}
    keys = {field: values.pop(name) for name, field in _DATA_KEYS.items() if name in values}
    pace = {"flush_s": values.pop("flush_s")} if "flush_s" in values else {}
    values["keys"] = dataclasses.replace(values.get("keys", options.keys), **keys)
    values["pace"] = dataclasses.replace(values.get("pace", options.pace), **pace)
    try:
        return options.model_validate(vars(options) | values)
    except ValidationError as error:
        raise ValueError(explain(error, type(options))) from None


def takes_options(options: type[ReconstructionOptions], allowed: type) -> Callable[[_Takes], _Takes]:
    """Show options by name in the signature of what takes them as ``**keywords``, and explain them in its docstring."""
    defaults = {name: field.default for name, field in options.model_fields.items() if name not in ("keys", "pace")}
    defaults |= {"stream": DataKeys().stream, "refine": False}
    names = allowed.__annotations__
    shown = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind.__forward_arg__)
        for name, kind in names.items()
    ]
    docs = "\n".join(inspect.getdoc(kind) or "" for kind in options.__mro__ if issubclass(kind, ReconstructionOptions))
    entries = re.finditer(r"^(\w+) : .*(?:\n .*)*", docs, re.MULTILINE)
    explained = "\n".join(entry[0] for entry in entries if entry[1] in names)

    def apply(target: _Takes) -> _Takes:
        function: Any = target.__init__ if inspect.isclass(target) else target
        signature = inspect.signature(function)
        own = [item for item in signature.parameters.values() if item.kind is not Parameter.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *shown])
        place = re.compile(r"^( *)\*\*keywords$", re.MULTILINE)
        target.__doc__ = place.sub(lambda found: textwrap.indent(explained, found[1]), target.__doc__ or "")
        return target

    return apply
