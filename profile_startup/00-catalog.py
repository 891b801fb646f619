"""Catalog and RunEngine. At a beamline the configuration names its own catalog, and the RunEngine is its own."""

from bluesky import RunEngine

from bluesky_ptychonn import Config

config = Config.load()
catalog = config.catalog.open()
RE = RunEngine({})
# Raw runs: on disk at once, in the catalog as soon as it takes them. `writer` says how that stands.
writer = config.catalog.raw_writer(catalog, config.reconstruction.raw)
RE.subscribe(writer)
