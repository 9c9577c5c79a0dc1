"""The modules: deformable attention with its projections."""
