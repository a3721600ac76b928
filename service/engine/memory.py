"""Gives memory that is no longer used back to the system."""

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 1 << 22  # at 1 MiB photos and batches of them are mapped anew each time


def give_back_large_arrays() -> None:
    """From now on large arrays go back to the system once they are freed.

    By default glibc raises the size from which it does so to that of the largest that was freed, up to 32 MiB, and keeps what is
    smaller in a heap of each thread. As much may stay free at the end of a heap: otherwise a run that lists the channels of 32
    texts spends a tenth of its time on pages that were given back a moment before.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def give_back_memory() -> None:
    """Frees what only cycles hold, which holds up all threads, and gives back what is free."""
    gc.collect()
    give_back_free_memory()


def give_back_free_memory() -> None:
    """Lets glibc, which keeps freed memory otherwise, return it."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
