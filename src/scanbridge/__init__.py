"""Translate one medical scan into another that was never acquired, with an uncertainty for every voxel."""

__version__ = "0.1.0"
