"""Recorded frames to patches: preprocessing, flux, the network on its device."""
