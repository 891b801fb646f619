"""CXI files (the Coherent X-ray Imaging format): ptychography scans, with what they say of beam and detector."""

from bluesky_ptychonn.optics.cxi.frames import LazyFrames as LazyFrames
from bluesky_ptychonn.optics.cxi.near_field import near_field_shadow as near_field_shadow
from bluesky_ptychonn.optics.cxi.scan import CxiScan as CxiScan
from bluesky_ptychonn.optics.cxi.scan import read_cxi as read_cxi
