"""Campaigns that tests sample and benchmarks run in full: mutations, comparisons with diffusers."""
