"""Devices. At a beamline: PtychoCamera and ScanStage of this package, or its own."""

from bluesky_ptychonn import SimulatedBeamline

beamline = SimulatedBeamline.demo(config.catalog.frames)
camera, stage = beamline.camera, beamline.stage
