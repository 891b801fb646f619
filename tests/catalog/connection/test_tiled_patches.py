"""Every patch of Tiled is still needed: the fault is in the Tiled that is installed, and gone with the patch.

A test that finds no fault says so: then the patch goes, with its test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bluesky_ptychonn.catalog.connection import tiled_patches

GONE = "Tiled does so itself now: remove the patch"


def test_paths_that_lead_out_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiled.catalog.adapter import CatalogNodeAdapter
    from tiled.storage import FileStorage

    readable, secret = tmp_path / "readable", tmp_path / "secret"
    readable.mkdir()
    secret.write_text("secret")
    (readable / "inside").write_text("frames")
    (readable / "link").symlink_to(secret)
    context = SimpleNamespace(readable_storage={"readable": FileStorage(uri=readable.as_uri())})

    def serves(name: str) -> bool:
        try:
            CatalogNodeAdapter._ensure_uri_within_readable_storage(
                SimpleNamespace(context=context), f"{readable.as_uri()}/{name}"
            )
        except RuntimeError:
            return False
        return True

    check = CatalogNodeAdapter._ensure_uri_within_readable_storage
    monkeypatch.setattr(CatalogNodeAdapter, "_ensure_uri_within_readable_storage", check)  # back to this at the end
    assert (serves("inside"), serves("../secret"), serves("link")) == (True, True, True), GONE
    tiled_patches.check_where_paths_lead()
    assert (serves("inside"), serves("../secret"), serves("link")) == (True, False, False)


def test_a_file_that_is_a_frame_ahead_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiled.adapters import array
    from tiled.adapters.utils import DataNotReadyError, ShapeMismatchError

    monkeypatch.setattr(array, "force_reshape", array.force_reshape)
    frames, known = np.arange(4 * 2 * 3).reshape(4, 2, 3), (3, 1, 2, 3)
    with pytest.raises(ShapeMismatchError):
        pytest.fail(f"{GONE}: {array.force_reshape(frames, known).shape}")
    tiled_patches.serve_frames_known()
    np.testing.assert_array_equal(array.force_reshape(frames, known), frames[:3, None])
    with pytest.raises(DataNotReadyError, match="5 frames are known and 4 are in the file yet"):
        array.force_reshape(frames, (5, 1, 2, 3))


def test_the_png_of_an_array_with_a_nan_in_it_is_black(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import tiled.serialization.array  # noqa: F401  # registers what is patched
    from PIL import Image
    from tiled.media_type_registration import default_serialization_registry as registry

    own = registry.dispatch("array", "image/png")
    monkeypatch.setitem(registry._lookup["array"], "image/png", own)  # back to this at the end

    def png(data: Any) -> Any:
        return np.asarray(Image.open(io.BytesIO(registry.dispatch("array", "image/png")("image/png", data, {}))))

    whole = np.arange(200.0).reshape(10, 20)
    holed = np.where(whole < 50, np.nan, whole)
    with np.errstate(invalid="ignore"):
        assert not png(holed).any(), GONE
    before = png(whole)
    tiled_patches.draw_what_is_finite()
    np.testing.assert_array_equal(png(whole), before)
    grey, opacity = np.moveaxis(png(holed), -1, 0)
    np.testing.assert_array_equal(opacity == 255, whole >= 50)
    np.testing.assert_allclose(grey[whole >= 50], np.clip((whole[whole >= 50] - 51.49) / 146.02 * 255, 0, 255), atol=1)
    assert not png(np.full((3, 3), np.nan)).any()
    assert png(np.arange(12.0).reshape(2, 2, 3)).shape == (2, 2, 3)  # colours are Tiled's own affair


def test_an_array_that_nobody_knows_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiled.adapters import zarr
    from tiled.storage import FileStorage
    from tiled.structures.array import ArrayStructure
    from tiled.structures.core import StructureFamily
    from tiled.structures.data_source import DataSource, Management

    monkeypatch.setattr(zarr, "create_array", zarr.create_array)

    def make(value: int) -> Any:
        data = np.full((2, 3), value)
        source = DataSource(
            structure_family=StructureFamily.array,
            structure=ArrayStructure.from_array(data),
            mimetype="application/x-zarr",
            management=Management.writable,
            assets=[],
            parameters={},
            properties={},
        )
        return zarr.ZarrArrayAdapter.init_storage(FileStorage(uri=tmp_path.as_uri()), source, ["left"])

    make(1)
    with pytest.raises(Exception, match="exist"):  # of Zarr's own kind
        pytest.fail(f"{GONE}: {make(2)}")
    tiled_patches.make_arrays_anew()
    assert len(make(2).assets) == 1


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What FastAPI analyses the signature of meanwhile."""
    from fastapi.dependencies import utils

    analyse, seen = utils.get_dependant, list[Any]()

    def note(*arguments: Any, **options: Any) -> Any:
        seen.append(options["call"])
        return analyse(*arguments, **options)

    monkeypatch.setattr(utils, "get_dependant", note)
    return seen


def test_dependencies_are_analysed_on_every_request(analysed: list[Any]) -> None:
    import httpx
    from tiled.adapters.mapping import MapAdapter
    from tiled.config import Authentication
    from tiled.server.app import build_app
    from tiled.server.settings import get_settings

    app = build_app(MapAdapter({}), authentication=Authentication(single_user_api_key="key"))
    headers = {"Authorization": "Apikey key"}

    async def ask() -> int:
        analysed.clear()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://catalog") as client:
            assert (await client.get("/api/v1/metadata/", headers=headers)).status_code == 200
            assert (await client.get("/api/v1/metadata/")).status_code == 401
        return len(analysed)

    asyncio.run(ask())
    assert asyncio.run(ask()) > 10, GONE
    tiled_patches.analyse_dependencies_once(app)
    assert asyncio.run(ask()) == 0
    assert app.dependency_overrides[get_settings]() is get_settings()  # what makes it harmless


def test_a_full_text_query_with_a_sign_in_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import create_engine, select, text
    from sqlalchemy.exc import OperationalError
    from tiled.catalog.adapter import CatalogNodeAdapter
    from tiled.catalog.orm import metadata_fts5
    from tiled.queries import FullText

    registry = CatalogNodeAdapter.query_registry
    monkeypatch.setattr(registry, "_lookup", dict(registry._lookup))
    engine = create_engine("sqlite://")
    tree = SimpleNamespace(
        context=SimpleNamespace(engine=engine), conditions=[], new_variation=lambda conditions: conditions
    )
    with engine.connect() as database:
        database.execute(text("CREATE VIRTUAL TABLE metadata_fts5 USING fts5(metadata)"))
        samples = [{"it": "star-2 'new'"}, {"it": 'say "star"'}]
        database.execute(text("INSERT INTO metadata_fts5(metadata) VALUES (:it)"), samples)

        def found(words: str) -> list[int]:
            conditions = registry(FullText(words), tree)
            return [row.rowid for row in database.execute(select(metadata_fts5.c.rowid).where(*conditions))]

        with pytest.raises(OperationalError):
            pytest.fail(f"{GONE}: {found('star-2')}")
        tiled_patches.search_words_as_they_are()
        assert found("star-2") == found("new star") == [1]
        assert found('"star"') == found("star") == [1, 2]
        assert found("sta") == found("") == []
    engine.dispose()


def test_versions_to_come_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tiled.adapters import array

    plain = array.force_reshape
    monkeypatch.setattr(array, "force_reshape", plain)
    for installed, patched in (("0.3.0", False), ("1.0.0rc1", False), ("0.2.21.dev3+g1", True)):
        monkeypatch.setattr(tiled_patches, "version", lambda _, installed=installed: installed)
        caplog.clear()
        tiled_patches.serve_frames_known()
        assert (array.force_reshape is plain) != patched
        told = [f"Tiled {installed} is left as it is: serve_frames_known was made for versions below 0.3"] * (
            not patched
        )
        assert caplog.messages == told


def test_the_package_allows_no_version_that_is_not_patched(repository: Path) -> None:
    import tomllib

    (tiled,) = [
        name
        for name in tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
        if name.startswith("tiled")
    ]
    assert tiled.endswith(",<" + ".".join(map(str, tiled_patches.NOT_FROM)))
