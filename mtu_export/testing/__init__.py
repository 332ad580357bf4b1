"""Random checkpoints of published and of tiny sizes."""
