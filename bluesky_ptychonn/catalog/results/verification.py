"""What the catalog holds against what was written: the reading behind the word ``complete``."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_ptychonn.catalog.connection.errors import CatalogRefusedError
from bluesky_ptychonn.catalog.connection.http import TiledNode
from bluesky_ptychonn.catalog.results.block import frames_schema
from bluesky_ptychonn.catalog.results.mosaics import PICTURES

if TYPE_CHECKING:
    from bluesky_ptychonn.catalog.results.block import Block
    from bluesky_ptychonn.recon.mosaic.stitch import MosaicImage


@dataclass(frozen=True)
class ReadBack:
    """What was read from the catalog."""

    valid: int  # rows of the table
    invalid: int
    problems: tuple[str, ...]  # where the catalog does not hold what was written


def differences(
    container: TiledNode,
    nodes: Mapping[str, str],
    written: Set[int],
    last: Block | None,
    image: MosaicImage | None,
    patch_shape: tuple[int, int] | None,
) -> ReadBack:
    """Read back the whole table, the arrays' sizes, the last block and the mosaic, and compare. About ten requests."""
    problems: list[str] = []
    valid = invalid = 0
    if "frames" in nodes:
        table = container.read_rows(nodes["frames"], frames_schema())
        numbers = table.column("seq_num").to_pylist()
        valid = sum(table.column("valid").to_pylist())
        invalid = len(numbers) - valid
        if set(numbers) != written or len(numbers) != len(written):
            problems.append(f"table holds {len(numbers)} frames, {len(written)} were written")
    elif written:
        problems.append(f"no table, {len(written)} frames were written")
    if written and patch_shape is not None:
        expected = (max(written), *patch_shape)
        for name in ("amplitude", "phase"):
            problems += _patches(container, f"{name}_patches", expected, last, name)
    if image is not None:
        problems += [problem for name in PICTURES for problem in _picture(container, nodes, name, image)]
    return ReadBack(valid, invalid, tuple(problems))


def _patches(container: TiledNode, node: str, expected: tuple[int, ...], last: Block | None, name: str) -> list[str]:
    found = container.attributes(node)
    if found is None:
        return [f"no {node}"]
    shape = tuple(found["structure"]["shape"])
    if shape[1:] != expected[1:] or shape[0] < expected[0]:  # padded rows stay where they may not be cut off
        return [f"{node} has shape {shape}, {expected} was written"]
    if last is None:
        return []
    first, stop = int(last.seq_num[0]) - 1, int(last.seq_num[-1])
    stored = container.read_array(node, shape, (first, stop))[last.seq_num - 1 - first]
    same = np.array_equal(stored, getattr(last, name), equal_nan=True)
    return [] if same else [f"{node} differs from the last block written"]


def _picture(container: TiledNode, nodes: Mapping[str, str], name: str, image: MosaicImage) -> list[str]:
    written = getattr(image, name)
    try:
        stored = container.read_array(nodes[name], written.shape)
    except (KeyError, CatalogRefusedError) as error:
        return [f"{name} cannot be read: {error}"]
    same = np.array_equal(stored, written.astype(np.float32), equal_nan=True)
    return [] if same else [f"{name} differs from the mosaic"]


def in_words(rejected: Mapping[str, int | None]) -> str:
    """Say why frames have no reconstruction, the commonest reason first; empty for none.

    Examples
    --------
    >>> in_words({"nan": 2, "negative, empty": 30, "frame not in the catalog": None})
    '30 (negative, empty), 2 (nan)'
    """
    numbers = sorted(((number, reason) for reason, number in rejected.items() if number), key=lambda item: -item[0])
    return ", ".join(f"{number} ({reason})" for number, reason in numbers)


def decide_status(
    exit_status: str | None, counts: Mapping[str, Any], found: ReadBack, refused: str = ""
) -> tuple[str, list[str]]:
    """Decide on a status, see `ResultSink.finish`, and say why it is not ``complete``.

    Examples
    --------
    >>> decide_status("success", {"expected": 4, "seen": 3, "reconstructed": 3, "rejected": {}}, ReadBack(3, 0, ()))
    ('partial', ['the plan announced 4 frames, 3 were seen'])
    """
    problems = list(found.problems)
    lost = bool(problems)
    if refused:  # what else there is follows from it
        return ("partial" if found.valid and not lost else "failed"), [refused, *problems]
    rejected = sum((counts.get("rejected") or {}).values())
    seen, expected = counts.get("seen"), counts.get("expected")
    if found.valid != counts.get("reconstructed"):
        problems.append(f"table holds {found.valid} reconstructed frames, {counts.get('reconstructed')} were counted")
    if found.invalid != rejected:
        problems.append(f"table holds {found.invalid} rejected frames, {rejected} were counted")
    if seen != found.valid + found.invalid:
        problems.append(f"{seen} frames were seen, the table holds {found.valid + found.invalid}")
    if expected is not None and seen is not None and expected > seen:
        problems.append(f"the plan announced {expected} frames, {seen} were seen")
    if rejected:
        # Named and counted, but a user who asks for complete results wants no holes.
        problems.append(f"{rejected} frames have no reconstruction: {in_words(counts['rejected'])}")
    for kind, number in (counts.get("unusable_documents") or {}).items():
        problems.append(f"{number} of the run's documents could not be used ({kind}); frames may be missing")
    if exit_status != "success":
        problems.append(f"the run ended with {exit_status!r}")
    if lost or not found.valid:
        return "failed", problems or ["no frame was reconstructed"]
    return ("partial" if problems else "complete"), problems
