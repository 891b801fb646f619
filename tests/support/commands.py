"""The command line, in this process."""

from __future__ import annotations

import sys

import pytest

from bluesky_ptychonn.cli import main


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Run ``ptychonn`` with these arguments; exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["ptychonn", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err
