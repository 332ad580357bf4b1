"""Random checkpoints, from tiny to published sizes, and the campaigns that tests sample."""
