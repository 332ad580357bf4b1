"""The shared vectors of runtime/testdata, by which readers in every language are checked."""
