"""The catalog's history: one script per change, run in order when an older catalog is opened."""
