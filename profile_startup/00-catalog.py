"""Catalog and RunEngine. At a beamline the configuration names its own catalog, and the RunEngine is its own."""

from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback

from bluesky_ptychonn import Config, PersistentMetadata, WindowsDuringPlan, show_messages

config = Config.load()
catalog = config.catalog.open()
# Scan ids go on where the last session stopped; windows move while a plan runs, whatever they are drawn with.
RE = RunEngine(PersistentMetadata(config.catalog.metadata_file), during_task=WindowsDuringPlan())
# Raw runs: on disk at once, in the catalog as soon as it takes them. `writer` says how that stands.
writer = config.catalog.raw_writer(catalog, config.reconstruction.raw)
RE.subscribe(writer)
# A table of the points; a plot of each would be for detectors with one number.
table = BestEffortCallback()
table.disable_plots()
RE.subscribe(table)
# Each reconstruction that is finished, each trouble: a line, never in the midst of what is typed.
show_messages()
