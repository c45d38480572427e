"""Memory of the process: keeping freed memory for the next tensors, running out of memory, and the peak."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's values of M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
LARGEST = 2**31 - 1  # bytes


def keep_freed() -> bool:
    """Serve blocks of up to 2 GB from the heap and never return memory to the system; False if this is impossible.

    By default, glibc maps new memory for every tensor of 10 MB, and the system clears its pages on first access, which
    takes a seventh of the time of restoring. The peak memory stays the same, but it is held until the process
    ends. Only the command line uses it, because a library must not decide this for its host program.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, LARGEST) for option in (MMAP_THRESHOLD, TRIM_THRESHOLD))


@contextmanager
def raise_memory_error() -> Iterator[None]:
    """Convert torch's errors for insufficient memory of the CPU or a GPU to MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise MemoryError(str(error)) from None
        raise


def peak_memory() -> float:
    """Peak resident memory of this process in MB, on Linux and macOS."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage includes the parent's memory at the time of the fork
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
