"""Explore: a page and a figure that show where the deformable attention inside a model looks."""

from deform_attn.explore.detection import Detection
from deform_attn.explore.figure import plot_sampling
from deform_attn.explore.page import write_page
from deform_attn.explore.scene import Scene

__all__ = ["Detection", "Scene", "plot_sampling", "write_page"]
