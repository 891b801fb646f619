"""The options of a reconstruction as flags of a command, made of the classes that describe them.

An option of `ReconstructionOptions` is a flag of every command that reconstructs; what it means is said there.
"""

from __future__ import annotations

import functools
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import ValidationError

from bluesky_ptychonn.card import ModelCard, load_card
from bluesky_ptychonn.live.pipeline.settings import PARTS, ReconstructionOptions, explain, fields_of
from bluesky_ptychonn.optics.framing import PreprocessConfig
from bluesky_ptychonn.optics.geometry import Geometry
from bluesky_ptychonn.recon.mosaic.refine_config import Refinement

ProbeOption = Annotated[
    str | None,
    typer.Option(help="file with your probe (.npy, .npz, .cxi, .h5), for a model of the lifted family"),
]
ProbePixelOption = Annotated[
    float | None,
    typer.Option(help="object pixel of that probe, m, where it is neither as large as the recorded frames nor the cut"),
]
# Names of what other options have too; all else is called as its field is.
_NAMES: dict[tuple[str, ...], str] = {place: name for name, place in PARTS.items()}
_NAMES |= {("refine", name): f"refine_{name}" for name in Refinement.model_fields if name != "tune_probe"}
_PANELS = {
    "keys": "Data of the run",
    "geometry": "Geometry, where the run does not say",
    "preprocess": "Framing, where the model's card says otherwise",
    "refine": "Refinement",
    "pace": "Timing",
}
_PLAIN = (int, float, str, bool, Path)
_LEFT_OUT = {"sources"}  # of a geometry: where its values come from


@dataclass(frozen=True)
class Flag:
    """An option as a flag: its place in the options, what it takes, what is said of it."""

    place: tuple[str, ...]
    kind: Any
    help: str

    @property
    def name(self) -> str:
        """As a parameter of the command."""
        return _NAMES.get(self.place, self.place[-1])

    @property
    def spelled(self) -> str:
        """As typed by a user."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def parameter(self) -> inspect.Parameter:
        """Parameter for typer; None where it is not given."""
        panel = _PANELS.get(self.place[0])
        option = typer.Option(help=self.help, rich_help_panel=panel, show_default=False)
        kind = self.kind if _is_plain(self.kind) else str
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )

    def read(self, value: Any) -> Any:
        """Turn what typer gives into the option's value; what no flag can be typed as is written as in a TOML file."""
        if _is_plain(self.kind):
            return value
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            raise ValueError(f"{self.spelled} {value}: write it as in the configuration file, {self.help}") from None


def _is_plain(kind: Any) -> bool:
    parts = get_args(kind) if get_origin(kind) is tuple else (kind,)
    return Ellipsis not in parts and all(part in _PLAIN or get_origin(part) is Literal for part in parts)


def flags_of(options: type[ReconstructionOptions]) -> list[Flag]:
    """Every option as a flag; those of a section one by one, and before them the section's own where it has one."""
    flags = []
    for name, annotation in fields_of(options).items():
        section, said = fields_of(annotation), _explained(options)
        if not section:
            flags.append(Flag((name,), _without_none(annotation), said[name]))
            continue
        if name == "refine":
            flags.append(Flag((name,), bool, said[name]))
        words = _explained(annotation)
        flags += [
            Flag((name, field), _without_none(kind), words[field])
            for field, kind in section.items()
            if field not in _LEFT_OUT
        ]
    return flags


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _explained(annotation: Any) -> dict[str, str]:
    """First sentence on each field in the docstrings of a class: what stands in a command's help."""
    classes = [kind for kind in (annotation, *get_args(annotation)) if fields_of(kind) and inspect.isclass(kind)]
    docs = "\n".join(inspect.getdoc(kind) or "" for kind in (classes[0].__mro__ if classes else ()))
    said: dict[str, str] = {}
    for names, text in re.findall(r"^([\w, ]+) : .*((?:\n +.*)+)", docs, re.MULTILINE):
        words = " ".join(text.split()).replace("``", "").replace("`", "")
        sentence = re.split(r"(?<=[^.].)\. |\.$", words)[0]
        said |= dict.fromkeys(names.split(", "), sentence[:1].lower() + sentence[1:])
    return said


class GivenOptions:
    """Options that a user gave on the command line.

    Parameters
    ----------
    options : type
        What they are options of.
    values : mapping
        By the names of their flags.
    """

    def __init__(self, options: type[ReconstructionOptions], values: Mapping[str, Any]) -> None:
        self._class = options
        self._spelled = {".".join(flag.place): flag.spelled for flag in flags_of(options)}
        self._top: dict[str, Any] = {}
        self._sections: dict[str, dict[str, Any]] = {}
        for flag in flags_of(options):
            value = values.get(flag.name)
            if value is None:
                continue
            if len(flag.place) == 1:
                self._top[flag.place[0]] = flag.read(value)
            else:
                self._sections.setdefault(flag.place[0], {})[flag.place[1]] = flag.read(value)

    def get(self, name: str, default: Any = None) -> Any:
        """Value of an option, as it was given."""
        return self._top.get(name, default)

    def framing(self, card: ModelCard | None) -> PreprocessConfig | None:
        """Preprocessing as these flags change the model's; None where none of them was given."""
        given = {name: self._sections[name] for name in self._sections if name == "preprocess"}
        changed = GivenOptions(self._class, {})
        changed._sections = given
        framing: PreprocessConfig | None = changed.keywords(card).get("preprocess")
        return framing

    def keywords(
        self,
        card: ModelCard | None,
        base: ReconstructionOptions | None = None,
        recorded: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make keywords for whoever takes these options, checked: those that were given, and nothing else.

        Parameters
        ----------
        card : ModelCard or None
            Of the model, where there is one: its preprocessing is what single flags change.
        base : ReconstructionOptions, optional
            What they change otherwise.
        recorded : mapping, optional
            Geometry that the run or file names, of which single flags change what they say.

        Raises
        ------
        ValueError
            In words, by the names of the flags.
        """
        base = self._class() if base is None else base
        values = dict(self._top)
        for name, given in self._sections.items():
            if name == "geometry":
                values[name] = self._geometry(card, recorded)
            elif name == "refine" and self._top.get(name) is False:
                flags = ", ".join(self._spelled[f"refine.{field}"] for field in given)
                raise ValueError(f"--no-refine contradicts {flags}")
            else:
                values[name] = _before(name, card, base) | given
        try:
            checked = self._class.model_validate(values)
        except ValidationError as error:
            raise ValueError(explain(error, self._class, self._spelled)) from None
        return {name: getattr(checked, name) for name in values}

    def _geometry(self, card: ModelCard | None, recorded: Mapping[str, Any] | None) -> Geometry:
        given = self._sections["geometry"]
        if recorded:
            light = {"energy_ev", "wavelength_m"}  # one replaces the other
            kept = {name: value for name, value in recorded.items() if name not in light or not light & set(given)}
            return Geometry.from_document(kept | given, "command line")
        if "frame_shape" in given or card is None:
            return Geometry.from_document(given, "command line")
        # As the network's frames have it: what the recorded ones are is not known here.
        framing = PreprocessConfig.model_validate(
            _before("preprocess", card, self._class()) | self._sections.get("preprocess", {})
        )
        side = framing.crop or card.input.frame_shape[0] * framing.bin
        seen = Geometry.from_document({**given, "frame_shape": (side, side)}, "command line")
        return PreprocessConfig(bin=framing.bin, resize=framing.resize).geometry_after(seen)


def _before(name: str, card: ModelCard | None, base: ReconstructionOptions) -> dict[str, Any]:
    """Give the values of a section, which flags change."""
    section = getattr(base, name)
    if name == "preprocess":
        section = section or (PreprocessConfig() if card is None else card.input.preprocess)
    elif name == "refine":
        section = section or Refinement()
    return dict(vars(section))


def with_probe(
    model: Any, probe: str, recorded: Geometry, preprocess: PreprocessConfig | None, pixel_m: float | None
) -> Any:
    """Load a model and give it the probe of a file, for recorded frames of this geometry."""
    from bluesky_ptychonn.recon.models.any_probe import for_probe

    preprocess = preprocess or load_card(model).input.preprocess
    return for_probe(model, probe, recorded, preprocess=preprocess, probe_pixel_m=pixel_m)


def takes_reconstruction_options(
    options: type[ReconstructionOptions] = ReconstructionOptions,
    *,
    without: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of a reconstruction as a flag; it gets them in its parameter ``given``.

    Parameters
    ----------
    options : type
        Which options.
    without : tuple of str
        Those that the command decides on itself.
    only : tuple of str
        Those that it knows, where these are few.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "given"]
        known = set(only or options.model_fields) - set(without)
        flags = [flag for flag in flags_of(options) if flag.place[0] in known]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = GivenOptions(options, {flag.name: values.pop(flag.name, None) for flag in flags})
            command(**values, given=given)

        shown = signature.replace(parameters=[*own, *(flag.parameter for flag in flags)])
        run.__signature__ = shown  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in shown.parameters.items()}
        return run

    return decorate
