"""Devices. At a beamline: PtychoCamera and ScanStage of bluesky_ptychonn.beamline.devices, or its own."""

from bluesky_ptychonn.beamline.sim import SimulatedBeamline

beamline = SimulatedBeamline.demo(config.catalog.frames)
camera, stage = beamline.camera, beamline.stage
