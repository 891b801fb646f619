"""The command ``ptychonn``; what each command does is in the module of its name."""

from __future__ import annotations

from bluesky_ptychonn.cli.app import app, main

__all__ = ["app", "main"]
