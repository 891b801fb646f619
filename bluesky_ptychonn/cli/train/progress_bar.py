"""Progress bar of a training."""

from __future__ import annotations


class TrainingBar:
    """Progress bar with frames, rate, time left and the smoothed loss."""

    def __enter__(self) -> TrainingBar:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
        )
        self._task = self._progress.add_task("training", total=None, loss=float("nan"))
        self._progress.start()
        return self

    def __call__(self, done: int, total: int, loss: float) -> None:
        """Show that `done` of `total` frames are done."""
        self._progress.update(self._task, completed=done, total=total, loss=loss)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
