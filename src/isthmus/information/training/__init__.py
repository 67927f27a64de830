"""Training: layers and losses that train a network to carry less of its input, or more of its label."""
