"""The key-value cache of decoders: fewer entries, fewer bits, fewer reads; in bytes that were allocated."""
