"""Pictures with boxes: one sample, a batch of them, and the data sets that give them."""
