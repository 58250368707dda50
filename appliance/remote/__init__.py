"""Another appliance, asked over its API: the same services, as far as a command line needs them.

The rule: each class here has the methods of the service that it stands for, and returns the same values, so that a
command does not know which one it has. What the API does not tell is left as the value's default.
"""
