"""Checkpoints made from other weights: upcycled dense models and adopted trainings."""
