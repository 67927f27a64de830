"""Allocation: spending a budget over all sites at once."""
