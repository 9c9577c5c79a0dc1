"""What torch knows of the two ops: their schema, derivatives, vmap, autocast and FLOPs."""
