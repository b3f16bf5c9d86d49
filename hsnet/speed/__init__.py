"""Timings: `python -m hsnet.speed`."""
