"""Claims about the heap: pages are cleared once, not for every tensor."""

import subprocess
import sys

import numpy as np
import pytest

from twostage.utils.memory import peak_memory

FAULTS = """
import resource, sys
import numpy as np
from twostage.utils.memory import keep_freed
kept = keep_freed() if sys.argv[1] == "keep" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.full(2**23, 1.0)  # 64 MB, beyond what the heap learns to keep by itself
begun = faults()
for _ in range(20):
    np.full(2**23, 1.0)
print(kept, faults() - begun)
"""


def run(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
def test_freed_memory_is_used_again() -> None:
    (_, before), (kept, after) = run("leave"), run("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert after < 20 <= before  # a new mapping is touched for the first time once at least, by pages of any size


def test_the_peak_is_that_of_this_process_and_grows() -> None:
    before = peak_memory()
    block = np.ones(int(before * 1e6 / 8 + 2e7))  # more than there has been at any time
    assert peak_memory() > before + 100
    assert block.sum() > 0
