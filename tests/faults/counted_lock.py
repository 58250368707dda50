"""A lock that lets it be known who has come for it, so that a test need not guess whether they wait yet."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any


class CountedLock:
    """Around `lock`, or one of its own. `came` is released by each who comes."""

    def __init__(self, lock: AbstractContextManager[Any] | None = None) -> None:
        self.came = threading.Semaphore(0)
        self._lock = threading.Lock() if lock is None else lock

    def __enter__(self) -> None:
        self.came.release()
        self._lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)
