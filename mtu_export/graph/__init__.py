"""Modules as graphs: exact weight algebra, equivalent rewrites, quantisation, capture."""
