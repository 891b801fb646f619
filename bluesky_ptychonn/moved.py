"""Names of version 0.1.0 that lie elsewhere since: found until the next version, with a warning that says where.

Covered is what that version's README, documentation and start-up files named, and what their examples needed. A module
that is gone is made when it is asked for, by a finder at the end of ``sys.meta_path``: whatever exists is found before
anybody asks it.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __package__ or "bluesky_ptychonn"

#: Module of before: module that has its names now.
MODULES = {
    "recon.any_probe": "recon.models.any_probe",
    "recon.archive": "recon.models.archive",
    "recon.calibrate": "recon.evaluation.trust_calibration",
    "recon.checkpoint": "recon.models.checkpoint",
    "recon.engine": "recon.inference.reconstructor",
    "recon.intake": "recon.learning.intake",
    "recon.iterative": "recon.solver.ptychi",
    "recon.judging": "recon.learning.judge",
    "recon.labelled": "recon.data.scans",
    "recon.labelling": "recon.solver.labelling",
    "recon.learning_config": "recon.learning.config",
    "recon.losses": "recon.training.losses",
    "recon.measure": "recon.evaluation.error_vs_spacing",
    "recon.metrics": "recon.evaluation.metrics",
    "recon.network": "recon.networks.families",
    "recon.novelty": "recon.learning.novelty",
    "recon.probe_tuning": "recon.mosaic.probe_tuning",
    "recon.pseudo_label": "recon.learning.pseudo_label",
    "recon.refine": "recon.mosaic.refine",
    "recon.refinement": "recon.mosaic.refine_config",
    "recon.replay": "recon.learning.replay_buffer",
    "recon.spacing": "recon.data.spacing",
    "recon.stitch": "recon.mosaic.stitch",
    "recon.supply": "recon.data.batches",
    "recon.synthetic": "recon.data.simulated",
    "recon.training_config": "recon.training.config",
    "recon.trust": "recon.quality.trust",
    "recon.upstream": "recon.models.upstream.importer",
    "recon.verdict": "recon.quality.verdict",
    "recon.watch": "recon.quality.run_statistics",
    "stream.backfill": "live.batch.backfill",
    "stream.client": "catalog.results.client",
    "stream.decisions": "catalog.registry.decisions",
    "stream.keys": "catalog.runs.data_keys",
    "stream.labels": "live.batch.label",
    "stream.learner": "live.learning.service",
    "stream.learner_config": "live.learning.config",
    "stream.lessons": "catalog.registry.learning_log",
    "stream.live": "live.callback",
    "stream.measured": "catalog.runs.measured",
    "stream.progress": "live.pipeline.progress",
    "stream.published": "catalog.registry.published",
    "stream.raw_runs": "catalog.raw.writer",
    "stream.reconstruct": "live.batch.reconstruct",
    "stream.registry": "catalog.registry.registry",
    "stream.server": "catalog.connection.server",
}

#: Name of before in its module of before: name now, with its module where that is another.
NAMES = {
    "beamline.patterns.Field": "ScanField",
    "recon.judging.judge": "compare_models",
    "recon.measure.Judge": "Evaluator",
    "recon.network.DirectConfig": "recon.networks.direct:DirectConfig",
    "recon.network.LiftedConfig": "recon.networks.lifted:LiftedConfig",
    "recon.supply.Supply": "MixedBatches",
    "recon.watch.Watch": "RunStatistics",
    "stream.keys.Keys": "DataKeys",
    "stream.lessons.Lesson": "LearningRecord",
    "stream.lessons.Lessons": "LearningLog",
    "stream.labels.labels": "catalog.results.label_client:labels",
    "stream.labels.PtychoLabel": "catalog.results.label_client:PtychoLabel",
    "stream.measured.Optic": "ProbeSetup",
    "stream.progress.Pace": "Timing",
    "stream.server.connect": "catalog.connection.connect:connect",
}

#: Modules of before that are packages now: where each name of theirs lives.
PACKAGES = {
    "recon.training": {"Progress": "fit", "TrainingConfig": "config", "fine_tune": "fit"},  # fit: see `called`
    "recon.learning": {"Candidate": "learner", "Learner": "learner"},
}

#: What else the package itself gives by its name of before.
FACE = {"Pace": "Timing"}

_GONE = {"stream"}  # packages without a successor


def renamed(old_module: str, old: str, module: str, new: str, stacklevel: int = 3) -> Any:
    """Give what is called `new` in `module` now, and warn whoever asked for `old`.

    Parameters
    ----------
    old_module, old : str
        Where it was, and its name there.
    module, new : str
        Where it is, and its name there.
    stacklevel : int
        Of the warning; 3 is the caller of the caller.
    """
    value = getattr(import_module(module), new)
    face: Any = sys.modules[_PACKAGE]
    public = new in face.__all__ and getattr(face, new) is value
    warnings.warn(
        f"{old_module}.{old} is {_PACKAGE if public else module}.{new} now; the old name goes with the next version",
        DeprecationWarning,
        stacklevel,
    )
    return value


def former(package: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package that was a module, or of a module whose names changed.

    Parameters
    ----------
    package : str
        Its full name.
    """
    inner = package.removeprefix(f"{_PACKAGE}.")
    homes = PACKAGES.get(inner, {})

    def __getattr__(name: str) -> Any:  # noqa: N807  # becomes the module's own
        new = NAMES.get(f"{inner}.{name}")
        if new is not None:
            return renamed(package, name, package, new)
        if name in homes:
            return renamed(package, name, f"{package}.{homes[name]}", name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


class _CalledModule(ModuleType):
    """A module that has the name of a function of before: called, it is that function, and warns."""

    @property
    def _function(self) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        package, _, name = self.__name__.rpartition(".")
        return renamed(package, name, self.__name__, name)(*args, **kwargs)

    # Above the class's own: what `help` and IPython's ``?`` show of a function.
    __doc__ = property(lambda self: getattr(vars(self).get(self.__name__.rpartition(".")[2]), "__doc__", None))


def called(module: str) -> None:
    """Let a module be called as the function of its own name in it: ``from package import name`` gave that before.

    Parameters
    ----------
    module : str
        Its full name.
    """
    sys.modules[module].__class__ = _CalledModule


class FormerModule(ModuleType):
    """A module of before: gives what is in its successor, and warns.

    Parameters
    ----------
    name : str
        Its full name.
    """

    def __getattr__(self, name: str) -> Any:
        old = self.__name__.removeprefix(f"{_PACKAGE}.")
        if name == "__all__" and old in MODULES:
            return self._names(old)
        if name.startswith("__") or old in _GONE:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module, _, new = NAMES.get(f"{old}.{name}", name).rpartition(":")
        return renamed(self.__name__, name, f"{_PACKAGE}.{module or MODULES[old]}", new)

    def _names(self, old: str) -> list[str]:
        """Give what ``import *`` takes: the successor's own names, by those of before where these were others."""
        module = import_module(f"{_PACKAGE}.{MODULES[old]}")
        own = [
            name
            for name, value in vars(module).items()
            if not (name.startswith("_") or isinstance(value, ModuleType))
            and getattr(value, "__module__", module.__name__) == module.__name__
        ]
        before = [name.rpartition(".")[2] for name in NAMES if name.rpartition(".")[0] == old]
        renamed_now = {NAMES[f"{old}.{name}"] for name in before}
        return sorted({*getattr(module, "__all__", own), *before} - renamed_now)


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return FormerModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


class _Finder(MetaPathFinder):
    """Finds the modules of before, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or (name not in MODULES and name not in _GONE):
            return None
        return ModuleSpec(fullname, _Loader(), is_package=name in _GONE)


def install() -> None:
    """Let the modules of before be found."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
