"""Lines of a session: at once where nobody types, above a prompt that knows of them, later elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bluesky_ptychonn.messages import PromptHandler, show_messages

NEWS = logging.getLogger("bluesky_ptychonn.live.notifier")


class Shell:
    """What of IPython is used."""

    def __init__(self, *, simple_prompt: bool) -> None:
        self.simple_prompt = simple_prompt
        self.hooks: dict[str, Callable[..., None]] = {}
        self.events = SimpleNamespace(register=self.hooks.__setitem__)


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    logger, level = logging.getLogger("bluesky_ptychonn"), NEWS.level
    yield logger
    NEWS.setLevel(level)
    for handler in [each for each in logger.handlers if isinstance(each, PromptHandler)]:
        logger.removeHandler(handler)


def attach(logger: logging.Logger, shell: Any) -> None:
    logger.addHandler(PromptHandler(shell))
    NEWS.setLevel(logging.INFO)


def test_a_simple_prompt_is_not_written_into(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(simple_prompt=True)
    attach(logger, shell)
    NEWS.info("scan %d: reconstruction complete", 3)
    assert capsys.readouterr().out == ""
    shell.hooks["pre_run_cell"](None)
    assert capsys.readouterr().out == "scan 3: reconstruction complete\n"
    NEWS.warning("trouble")
    assert capsys.readouterr().out == "trouble\n"  # in the midst of a long plan: now
    shell.hooks["post_run_cell"](None)
    NEWS.info("scan 4")
    assert capsys.readouterr().out == ""


def test_a_prompt_that_knows_of_lines_gets_them_at_once(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(logger, Shell(simple_prompt=False))
    NEWS.info("scan 3: reconstruction complete")
    logging.getLogger("bluesky_ptychonn.catalog.raw.writer").warning("a run waits")
    logging.getLogger("bluesky_ptychonn.live.worker").info("detail for the log")
    assert capsys.readouterr().out == "scan 3: reconstruction complete\na run waits\n"


def test_show_messages_twice_is_once(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    show_messages()
    show_messages()
    NEWS.info("scan 3: reconstruction complete")
    assert capsys.readouterr().out == "scan 3: reconstruction complete\n"
