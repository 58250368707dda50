"""Chunks, packs, repositories and NBD. Knows no hypervisor, no SQL and no user interface."""
