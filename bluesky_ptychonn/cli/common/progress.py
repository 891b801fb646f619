"""Show how far long work is: a bar in a terminal, and without one a plain line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import typer

#: Between two lines where there is no terminal, s; the first comes after a third of it.
EVERY_S = 30.0

#: Takes frames done, frames in all where that is known, and a note.
Show = Callable[[int, int | None, str], None]


class PlainLines:
    """A line now and then: for logs of batch systems, and notebooks."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._due_at = clock() + EVERY_S / 3

    def __call__(self, done: int, total: int | None, note: str) -> None:
        """See `Show`."""
        if self._clock() < self._due_at:
            return
        self._due_at = self._clock() + EVERY_S
        whole = f"{done}" if not total else f"{done} of {total} ({done / total:.0%})"
        typer.echo(f"{self._title}: {whole} frames{', ' if note else ''}{note}")


@contextlib.contextmanager
def show_progress(title: str) -> Iterator[Show]:
    """Bar of frames with the time left where stdout is a terminal, else `PlainLines`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    if not bar.console.is_terminal:
        yield PlainLines(title)
        return
    with bar as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)
