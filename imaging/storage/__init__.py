"""Byte stores: names to immutable bytes, behind one contract (contract.py)."""
