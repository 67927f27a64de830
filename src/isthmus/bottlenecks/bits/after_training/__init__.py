"""Weights and activations of few bits after training: from a network and a few examples to one that rounds."""
