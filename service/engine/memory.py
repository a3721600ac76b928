"""Gives memory that is no longer used back to the system."""

import ctypes
import gc


def give_back_memory() -> None:
    """Frees what only cycles hold, and lets glibc, which keeps freed memory otherwise, return it."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
