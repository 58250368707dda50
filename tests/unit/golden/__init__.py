"""The format, pinned: a repository written once by version 1, and known answers of its functions."""
