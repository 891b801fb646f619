"""What the tutorial prints is what a reader gets, and the README's session runs as it stands."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_the_tutorial_prints_what_it_says(repository, tmp_path, monkeypatch) -> None:
    page = repository / "docs/tutorial/first-scan.md"
    blocks = re.findall(r"^```pycon\n(.*?)^```", page.read_text(), re.M | re.S)
    lesson = doctest.DocTestParser().get_doctest(textwrap.dedent("\n".join(blocks)), {}, page.name, str(page), 0)
    assert len(lesson.examples) > 20
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    # Everything the reader starts is closed by the page itself; were it to fail half-way, by the end of the process.
    result = doctest.DocTestRunner(optionflags=FLAGS).run(lesson, out=said.append, clear_globs=False)
    import matplotlib.pyplot as plt

    plt.close("all")
    assert result.failed == 0, "".join(said)
    assert (tmp_path / "first-scan.png").stat().st_size > 20_000


@pytest.mark.slow
def test_the_session_of_the_readme_runs_as_it_stands(repository, tmp_path) -> None:
    session = re.search(r"^```python\n(.*?)^```", (repository / "README.md").read_text(), re.M | re.S).group(1)
    (tmp_path / "session.py").write_text(session)
    done = subprocess.run(
        [sys.executable, "session.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^run \w+, complete, 16/16 frames reconstructed", done.stdout), done.stdout
    assert (tmp_path / "image.png").stat().st_size > 20_000
