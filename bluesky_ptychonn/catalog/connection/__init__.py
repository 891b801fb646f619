"""The way to a Tiled catalog: addresses, servers, requests, and what happens when none answers."""
