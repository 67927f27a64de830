"""Which of the entries that are held a step reads: one file a method."""
