"""Catalog and RunEngine. At a beamline the configuration names its own catalog, and the RunEngine is its own."""

from bluesky import RunEngine

from bluesky_ptychonn.config import Config

config = Config.load()
catalog = config.catalog.open()
RE = RunEngine({})
RE.subscribe(config.catalog.raw_writer(catalog))
