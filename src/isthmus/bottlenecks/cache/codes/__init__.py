"""How the entries of a cache are held: one file a code."""
