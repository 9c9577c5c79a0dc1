"""What a GPU makes of the op and of whole models, against the rivals that are there. It was never run on a GPU."""
