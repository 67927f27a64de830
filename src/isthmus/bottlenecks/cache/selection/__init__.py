"""Which entries of a cache stay: one file a method."""
