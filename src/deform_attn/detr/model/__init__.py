"""The model: a Deformable DETR in parts, and the detector that it is with what is needed to use it."""
