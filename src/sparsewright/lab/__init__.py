"""The lab: data, models and one training loop, for the command line, the demo and benchmarks."""
