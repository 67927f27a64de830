"""Claims: statements from papers about methods, with the small experiment here that tests each, and its result."""
