"""A compact Deformable DETR on top of `deform_attn`."""
