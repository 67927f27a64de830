"""What becomes of tokens that do not stay, one file each."""
