"""Tokens: fewer of them from layer to layer, by a score, an action and a schedule."""
