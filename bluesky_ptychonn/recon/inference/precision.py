"""What a network's convolutions may be computed in; no torch here: settings hold it."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
