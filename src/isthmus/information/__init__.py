"""Information: what representations carry, from samples of them."""
