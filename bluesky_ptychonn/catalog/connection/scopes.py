"""What Tiled says to a key that may not do something, in words that say what the key lacks."""

from __future__ import annotations

import re

_REQUIRED = re.compile(r"Requires scopes \[(.*?)\]")
_GRANTED = re.compile(r"had scopes \[(.*?)\]")
_NAME = re.compile(r"['\"]([a-z:]+)['\"]")


def lacking(answer: str) -> str:
    """Name the scopes that a key lacks; empty where the answer is about something else.

    Parameters
    ----------
    answer : str
        Text of an answer of 401 or 403.

    Examples
    --------
    >>> lacking("Requires scopes ['read:data', 'write:data']. Request had scopes ['read:data']")
    "this key lacks the scope 'write:data'"
    """
    required, granted = _REQUIRED.search(answer), _GRANTED.search(answer)
    if required is None:
        return ""
    had = set(_NAME.findall(granted[1])) if granted else set()
    missing = [repr(name) for name in _NAME.findall(required[1]) if name not in had]
    return f"this key lacks the scope{'s' if len(missing) > 1 else ''} {', '.join(missing)}" if missing else ""
