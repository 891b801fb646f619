"""Read the tensors of somebody else's PyTorch checkpoint, and nothing but tensors.

A checkpoint is a pickle, and a pickle is a program. Only PyTorch's weights-only reader is used, which builds tensors
and refuses all else; sizes are looked at before anything is read.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor

from bluesky_ptychonn.optics.numpy_files import ZIP_DAMAGE

#: Largest checkpoint that is read, bytes, packed and unpacked; the published networks take 3 to 5 MB.
MOST_BYTES = 1 << 29
_MOST_NUMBERS = MOST_BYTES // 4
_CONTAINERS = ("model_state_dict", "state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a ``.pth``, ``.pt`` or ``.safetensors`` file.

    It may also hold a dict with one under ``model_state_dict``, ``state_dict``, ``model`` or ``net``. The tensors are
    on the CPU, float32 and finite; prefixes that DataParallel and torch.compile put before names are gone. ValueError,
    in words, when the file is missing, cut short, too large, holds other than tensors, or no state dict.
    """
    _check_file(path)
    if path.suffix == ".safetensors":
        try:
            loaded: Any = read_tensors(path.read_bytes())
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file, or cut short ({error}); download it again") from None
    else:
        loaded = _load_weights_only(path)
    state = _state(path, loaded)
    # A tensor of one stored number may claim any shape, and any number of them: all is looked at before any is copied.
    numbers = sum(value.numel() for value in state.values())
    if numbers > _MOST_NUMBERS:
        raise ValueError(f"{path}: its tensors claim {numbers} numbers; at most {_MOST_NUMBERS} are read")
    return {name: _number_tensor(path, name, value) for name, value in state.items()}


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise ValueError(f"{path}: is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: is a Git LFS pointer, not the checkpoint itself; fetch it with 'git lfs pull'")
    if head.lstrip().startswith(b"<"):
        raise ValueError(f"{path}: is a web page, not a checkpoint; download the raw file")
    if size > MOST_BYTES:
        raise ValueError(f"{path}: {size} bytes; at most {MOST_BYTES} are read")
    if not head.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except ZIP_DAMAGE:
        raise ValueError(f"{path}: was cut short, the end of its archive is missing; download it again") from None
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MOST_BYTES:
        raise ValueError(f"{path}: unpacks to {unpacked} bytes; at most {MOST_BYTES} are read")
    if any("/code/" in entry.filename for entry in entries):
        raise ValueError(f"{path}: is a TorchScript program, which is never run here; {_SAVE_STATE}")


_SAVE_STATE = "where it was trained, save its tensors alone: torch.save(model.state_dict(), 'weights.pth')"


def _load_weights_only(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", str(error))
        if named is None:
            raise ValueError(f"{path}: not a PyTorch checkpoint, or cut short; download it again") from None
        raise ValueError(
            f"{path}: holds a Python object ({named[1]}), and reading it could run any program; refused, nothing was "
            f"run. If you trust it, {_SAVE_STATE}"
        ) from None
    except Exception as error:  # noqa: BLE001  a damaged pickle fails in any way; said in words
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: not a PyTorch checkpoint, or damaged ({why}); download it again") from None


def _state(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Find the state dict in what was loaded, its names without prefixes."""
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
        loaded = loaded if inner is None else inner
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{path}: holds no state dict but a {type(loaded).__name__}; {_SAVE_STATE}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor, so this is no state dict; {_SAVE_STATE}"
            )
    state = dict(loaded)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _number_tensor(path: Path, name: str, value: Tensor) -> Tensor:
    if value.is_quantized or value.layout != torch.strided or value.dtype.is_complex or value.is_meta:
        raise ValueError(f"{path}: {name} is {value.dtype}, {value.layout}; allowed: dense real tensors")
    tensor = value.detach().to(torch.float32 if value.dtype.is_floating_point else torch.int64).contiguous()
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{path}: {name} holds NaN or Inf; its training failed, or the file is damaged")
    return tensor.clone()
