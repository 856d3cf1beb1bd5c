"""Measuring: times taken in turn, the dense ways to beat, the machine that it was done on."""
