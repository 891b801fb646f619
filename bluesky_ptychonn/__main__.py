"""``python -m bluesky_ptychonn``: the command ``ptychonn``, for launchers such as `torchrun`."""

from __future__ import annotations

from bluesky_ptychonn.cli import main

if __name__ == "__main__":
    main()
