"""The heap of the C library: freed memory stays with the process, for the next tensor of the same size."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers of M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
LARGEST = 2**31 - 1  # bytes


def keep_freed() -> bool:
    """Have the heap serve blocks of up to 2 GB and give nothing back until the process ends; False where it cannot.

    As glibc comes, a tensor of 10 MB is mapped afresh every time, and the system clears its pages at every first touch:
    a seventh of the time of restoring. The most memory that is ever held stays the same, it is only held for longer.
    For programs that do little else: a library must not decide it for its host.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, LARGEST) for option in (MMAP_THRESHOLD, TRIM_THRESHOLD))


@contextmanager
def raise_memory_error() -> Iterator[None]:
    """Let torch raise MemoryError where the memory of the CPU or of a GPU is not enough, as everything else does."""
    try:
        yield
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise MemoryError(str(error)) from None
        raise
