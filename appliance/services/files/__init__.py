"""Files out of restore points: looked at, and taken, without mounting anything.

The rule: nothing on this machine is written but what was asked for, where it was asked for, and no link is followed.
The point is held meanwhile, so that it is neither pruned nor collected under a reader.
"""
