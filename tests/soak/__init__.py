"""Long runs of random operations and faults: `python -m tests.soak`."""
