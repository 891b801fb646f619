"""Last: what start-up brought stays, so Python's garbage collector need not go through it again.

It would now and then, in the midst of a scan, and nothing else runs meanwhile: for 0.2 s, with bluesky and Tiled.
"""

import gc

gc.collect()
gc.freeze()
