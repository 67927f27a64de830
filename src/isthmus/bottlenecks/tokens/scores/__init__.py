"""Scores of tokens, one file each."""
