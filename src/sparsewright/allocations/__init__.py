"""Allocations that look at the model or at data before they share out. One file each; found by
folder. Those that look at shapes and scores alone are in allocate.py."""
