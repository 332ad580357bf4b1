"""Measures bundles: latency, work and memory on this host, a phone or a browser.

One record holds what was measured, on what and how (``bench/record.py``); every device takes the
same jobs (``bench/job.py``), and comparisons are made in rounds that take turns.
"""
