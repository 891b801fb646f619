"""Frames to train on and judge by: measured, labelled, simulated."""
