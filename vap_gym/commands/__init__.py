"""Commands that are small enough to need no module of their own elsewhere."""
