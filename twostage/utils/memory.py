"""Memory of the process: the heap, where freed memory stays for the next tensor of the same size, and the peak."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers of M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
LARGEST = 2**31 - 1  # bytes


def keep_freed() -> bool:
    """Let the heap serve blocks of up to 2 GB and never return memory; False where this is impossible.

    By default, glibc maps a tensor of 10 MB anew every time, and the system clears its pages at the first access, which
    takes a seventh of the time of restoring. The peak of the memory stays the same; it is only held until the process
    ends. This is for programs that do little else: a library must not decide it for its host.
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


def peak_memory() -> float:
    """MB of memory that this process has held at most. Linux and macOS."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the parent's as well here, which is the child's own for a moment
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
