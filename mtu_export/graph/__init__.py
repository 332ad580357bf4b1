"""Modules as graphs: exact weight algebra, equal rewrites, weight codes, capture."""
