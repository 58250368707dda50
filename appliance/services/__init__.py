"""What the appliance does, one service per concern.

The rule: command line, console and API call the same methods here; a service decides and acts, and prints nothing.
"""
