"""Chunks, packs, repositories and NBD. Knows no hypervisor, no SQL and no user interface."""

import os

# Before numpy is imported: its linear algebra, which nothing here uses, would start threads that spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
