"""What there is, and one line to begin with."""

from bluesky_ptychonn import __version__

print(f"""
bluesky_ptychonn {__version__}: ptychography scans of RE are reconstructed while they run

  catalog          {getattr(catalog, "uri", catalog)}
  camera, stage    a simulated beamline; the stage has x and y
  plans            ptycho_scan, sparse_ptycho_scan, and both as rel_...; lengths in µm
  live             how the reconstruction stands; live.result() is the newest image of this session
  reconstructions  finds images: reconstructions(catalog, raw=scan_id)
  LiveView         shows the scan under way: view = LiveView(live)

  RE(sparse_ptycho_scan([camera], stage.x, stage.y, 2, 2, model=live.model, step_um=0.4))

The next scan is {RE.md.get("scan_id", 0) + 1}.
""")
