"""Benchmarks: Isthmus beside other tools, each comparison in one run; results as data."""
