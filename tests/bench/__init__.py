"""The benchmark: what Strongroom costs and gives, beside other tools, on the same work, in one run.

The rule: every figure is measured here and now, through the command that an admin uses; a goal is met or NOT met by the
figure printed beside it, and one that was not measured says so.

    python -m tests.bench [disk incremental sparse random recovery] [--quick] [--work DIR] [--json FILE]
"""
