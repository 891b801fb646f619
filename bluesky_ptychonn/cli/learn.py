"""``ptychonn learn``: learn beside the beamline, and look at what was decided."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_ptychonn.cli.common.catalogs import CatalogOption, open_catalog
from bluesky_ptychonn.cli.models.cards import printable

if TYPE_CHECKING:
    from bluesky_ptychonn.live.learning.config import LearnerConfig


def learn(
    catalog: CatalogOption,
    name: Annotated[str, typer.Argument(help="name of a model with a champion in the catalog")],
    share: Annotated[float | None, typer.Option(help="part of the time to compute, at most")] = None,
    folder: Annotated[Path | None, typer.Option(help="the learner's own; by default the user's learning/NAME")] = None,
    since: Annotated[
        str | None, typer.Option(help="only runs that began later: a day or a time, as 2026-01-31 or 2026-01-31T18:30")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
    config: Annotated[
        Path | None, typer.Option(help="configuration file, for its [learning]; by default the session's")
    ] = None,
    once: Annotated[bool, typer.Option(help="learn from what there is, and end")] = False,
    history: Annotated[bool, typer.Option(help="say what was decided until now, and end")] = False,
) -> None:
    """Learn from finished runs while none is under way; promote what is measured to be better, and nothing else.

    Live sessions take a new champion up with their next run; 'ptychonn models rollback' undoes a promotion.
    """
    began = None if since is None else _parse_time(since)
    from bluesky_ptychonn.config import Config, LearningSection
    from bluesky_ptychonn.paths import named_config, users_config

    there = config or named_config() or (users_config() if users_config().is_file() else None)
    section = LearningSection() if there is None else Config.load(there).learning
    given = {key: value for key, value in (("share", share), ("device", device)) if value is not None}
    settings = LearningSection.model_validate({**section.model_dump(), **given})
    with open_catalog(catalog) as root:
        if history:
            _echo_history(root, name)
            return
        from bluesky_ptychonn.live.learning.service import CatalogLearner
        from bluesky_ptychonn.live.session import log_to

        learner = CatalogLearner(root, name, folder or settings.folder, settings, since=began)
        handler = log_to(learner.folder)
        try:
            _limit_resources(settings)
            with stop_signals() as closing, _log_on_stderr():
                learner.run(closing, once=once)
        except MemoryError:
            raise RuntimeError(
                f"learning took more than {settings.memory_bytes / 2**20:.0f} MiB (memory_bytes in [learning]); what "
                "was learned is kept"
            ) from None
        finally:
            learner.close()
            handler.close()


def _parse_time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(f"--since {text!r}: give a day or a time, as 2026-01-31 or 2026-01-31T18:30") from None


def _echo_history(root: Any, name: str) -> None:
    from bluesky_ptychonn.catalog.registry.registry import Registry

    rounds = Registry(root).learning(name)
    for learned in rounds:
        typer.echo(printable(str(learned)))
    if not rounds:
        typer.echo(f"nothing was decided about {name} yet")


def _limit_resources(settings: LearnerConfig) -> None:
    """Give way to everybody, and leave memory to others."""
    import resource

    import torch

    from bluesky_ptychonn.live.worker import give_way
    from bluesky_ptychonn.processors import worker_threads
    from bluesky_ptychonn.recon.models.checkpoint import choose_device

    give_way(settings.nice)
    torch.set_num_threads(worker_threads())
    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(settings.gpu_memory, device)
        return
    # What CUDA reserves counts too, so only without it.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (settings.memory_bytes, hard))


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Event that Ctrl-C and SIGTERM set: what is under way is brought to a point that can be gone on from."""
    closing = threading.Event()
    before = {number: signal.signal(number, lambda *_: closing.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield closing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Let the learner's log be read on stderr too."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("bluesky_ptychonn")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
