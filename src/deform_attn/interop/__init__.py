"""Interop: models of other projects, whose deformable attention runs here after one call of `patch`."""
