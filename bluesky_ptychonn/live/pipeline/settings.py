"""The options of a reconstruction: described, checked and documented here alone.

A new one is a field of a class here, and a line in its keywords for who gives it to a function.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bluesky_ptychonn.catalog.runs.data_keys import DataKeys
from bluesky_ptychonn.files import read_json, write_json
from bluesky_ptychonn.live.pipeline.progress import Timing
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.optics.mask_file import read_mask
from bluesky_ptychonn.processors import device_name
from bluesky_ptychonn.recon.inference.precision import Precision
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement, asked_for

SETTINGS_FILE = "order.json"
SPOOL = "spool"  # folder beside it, where results wait for the catalog


#: What may be said by itself: of which option which field.
PARTS = {"frame_key": ("keys", "frame"), "x_key": ("keys", "x"), "y_key": ("keys", "y"), "flush_s": ("pace", "flush_s")}
PARTS |= {name: ("keys", name) for name in ("x_sign", "y_sign", "position_unit", "stream")}


class ReconstructionOptions(BaseModel):
    """How to reconstruct.

    Parameters
    ----------
    geometry : Geometry, optional
        Overrides the start documents'.
    keys : DataKeys
        Which data are frames and positions, where the start document does not name them. Also by themselves:
        ``frame_key``, ``x_key``, ``y_key``, ``x_sign``, ``y_sign``, ``position_unit``, ``stream``.
    pace : Timing
        All of the timing; ``flush_s`` also by itself.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size : int
        Frames the network takes at once.
    raw : str, optional
        Container of the runs, below the catalog's; empty for that itself. By default ``raw`` where there is one, else
        that itself.
    threads : int, optional
        Threads of the network on a CPU; beside a scan half the processors by default, else as
        many as are free.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Of the convolutions. All but ``fp32`` are compared with it when the model is loaded, and refused where patches
        differ by more than 0.02 on average; the result's metadata says by how much, under ``precision_check``.
    preprocess : PreprocessConfig, optional
        From recorded frames to the network's, instead of the model card's.
    mask : path, optional
        File with the detector's bad pixels, see `read_mask`; they are mended in every frame, like the card's.
    refine : bool or Refinement
        Whether, or how, to refine mosaics by sweeps of the physics through the probe: for half a second each while the
        run goes on, whole when it ends. The result's metadata says so under ``refinement``; patches stay the network's.
    spool_mib : int
        Most that results may take on disk, in the session's folder, while the catalog does not answer, MiB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: Geometry | None = None
    keys: DataKeys = DataKeys()
    pace: Timing = Timing()
    device: Annotated[str, AfterValidator(device_name)] = "auto"
    batch_size: int = Field(default=16, ge=1, le=4096)
    raw: str | None = None
    threads: int | None = Field(default=None, ge=0)
    precision: Precision = "fp32"
    preprocess: PreprocessConfig | None = None
    mask: Path | None = None
    refine: Annotated[
        Refinement | None, BeforeValidator(lambda value: asked_for(value) if isinstance(value, bool) else value)
    ] = None
    spool_mib: int = Field(default=1024, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Put what may be said by itself where it belongs: ``x_key`` is ``x`` of ``keys``."""
        if not isinstance(values, Mapping):
            return values
        gathered = dict(values)
        for name, (section, field) in PARTS.items():
            if name in gathered:
                gathered[section] = _with(gathered.get(section, {}), field, gathered.pop(name))
        return gathered


def _with(section: Any, field: str, value: Any) -> Any:
    """Give a section, a dataclass or a mapping, with another value of a field; what is neither is refused later."""
    if isinstance(section, Mapping):
        return {**section, field: value}
    return {**vars(section), field: value} if dataclasses.is_dataclass(section) else section


class LiveOptions(ReconstructionOptions):
    """How to reconstruct while a run goes on.

    Parameters
    ----------
    worker : {"process", "thread"}
        A process of its own never slows a scan by Python's lock; a thread is for tests and servers inside the process.
    journal_dir : path, optional
        Where sessions' journals lie; `journal_root` by default. Runs left unfinished there by a machine that went down
        are taken up.
    """

    worker: Literal["process", "thread"] = "process"
    journal_dir: Path | None = None


class ReconstructionSettings(ReconstructionOptions):
    """What a worker is asked to do. Holds no secret.

    Parameters
    ----------
    model : str
        Folder of the model.
    catalog : str
        Address of the catalog's container, ``http(s)://…``.
    threads : int
        Threads of the network on a CPU; 0 leaves it to torch.
    nice : int
        Priority the worker gives up, 0 to 19.
    champion : str
        Name whose champion in the catalog is to be used, where there is one; `model` may then be empty.
    """

    model: str
    catalog: str
    threads: int = Field(default=1, ge=0)
    nice: int = Field(default=10, ge=0, le=19)
    champion: str = ""

    @classmethod
    def from_options(cls, options: ReconstructionOptions, **more: Any) -> ReconstructionSettings:
        """Make the settings of what a user wants and, in `more`, of what these have besides."""
        return cls.model_validate({name: getattr(options, name) for name in ReconstructionOptions.model_fields} | more)

    def save(self, folder: Path) -> None:
        """Write into a session's folder."""
        values = self.model_dump(mode="json")
        values["refinement"] = values.pop("refine")
        write_json(folder / SETTINGS_FILE, values, private=True)

    @classmethod
    def load(cls, folder: Path) -> ReconstructionSettings:
        """Read the settings of a session.

        Raises
        ------
        ValueError
            When the folder holds none, or those of a version that has others.
        """
        values = read_json(folder / SETTINGS_FILE)
        if values is None:
            raise ValueError(f"{folder}: no session of LiveReconstruction ({SETTINGS_FILE} is missing)")
        values["refine"] = values.pop("refinement", None)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{folder / SETTINGS_FILE}: {explain(error, cls)}") from None


def explain(error: ValidationError, model: type[BaseModel], names: Mapping[str, str] | None = None) -> str:
    """Say where and what is wrong, a place by its name in `names`; for an unknown one also what is allowed there."""
    return "; ".join(_explain(item, model, names or {}) for item in error.errors())


def _explain(item: Any, section: Any, names: Mapping[str, str]) -> str:
    place = ".".join(map(str, item["loc"]))
    place = names.get(place, place)
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        for part in item["loc"][:-1]:
            section = fields_of(section).get(part)
        fields = fields_of(section)
        alone = [name for name, (part, *_) in PARTS.items() if part in fields]
        return f"{place}: unknown; allowed: {', '.join([*fields, *alone])}"
    if item["type"] == "value_error":
        return f"{place}: {item['ctx']['error']}"
    return f"{place}: {item['msg']}" + ("" if item["type"] == "missing" else f", got {item['input']!r}")


def fields_of(annotation: Any) -> dict[str, Any]:
    """Fields, with their annotations, of the first model or dataclass in an annotation; none where there is neither."""
    for kind in (annotation, *get_args(annotation)):
        if found := getattr(kind, "model_fields", None):
            return {name: field.annotation for name, field in found.items()}
        if dataclasses.is_dataclass(kind):
            return {name: get_type_hints(kind)[name] for name in kind.__dataclass_fields__}
    return {}


_Takes = TypeVar("_Takes", bound=Callable[..., Any])
_Options = TypeVar("_Options", bound=ReconstructionOptions)


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
    raw: str | None
    threads: int | None
    precision: Precision
    preprocess: PreprocessConfig | None
    mask: str | Path | None
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
        In words, for a value that is not allowed, or a mask that cannot be read.

    Examples
    --------
    >>> options = with_keywords(ReconstructionOptions(), {"x_key": "px", "flush_s": 0.1}, LiveKeywords)
    >>> options.keys.x, options.pace.flush_s
    ('px', 0.1)
    """
    if unknown := sorted(set(keywords) - set(allowed.__annotations__)):
        raise TypeError(f"{', '.join(unknown)}: unknown; allowed: {', '.join(allowed.__annotations__)}")
    try:
        options = options.model_validate(vars(options) | {name: v for name, v in keywords.items() if v is not None})
    except ValidationError as error:
        raise ValueError(explain(error, type(options))) from None
    if options.mask is None:
        return options
    read_mask(options.mask)  # what is none is said before anything is started
    return options.model_copy(update={"mask": options.mask.expanduser().absolute()})  # a worker may be elsewhere


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
