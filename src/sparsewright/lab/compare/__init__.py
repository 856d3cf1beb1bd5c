"""The comparison: every way to a sparse network, on the same task, with the same budget."""
