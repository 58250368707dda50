"""Files out of restore points: looked at, and taken, without mounting anything.

The rule: nothing on this machine is written but what was asked for, where it was asked for, and no link is followed.
Nothing is held in the repository meanwhile: of a point that is pruned and collected under a reader, reading ends with
an error.
"""
