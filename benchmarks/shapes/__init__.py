"""A small world of coloured shapes, in which multi-task models are trained and measured."""
