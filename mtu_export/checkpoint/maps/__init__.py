"""Maps: which tensor of another layout becomes which tensor here, as data."""
