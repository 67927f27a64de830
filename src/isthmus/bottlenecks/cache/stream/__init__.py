"""A prompt's cache as a bitstream, to be stored or sent."""
