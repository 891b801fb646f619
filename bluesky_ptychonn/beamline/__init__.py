"""Devices and plans. Acquisition never needs the network, so nothing here imports ``recon``."""
