"""Tests of memory: freed memory is reused without new page faults, and the peak is measured."""

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
np.full(2**23, 1.0)  # 64 MB, more than the heap keeps by its own threshold
faults_before = faults()
for _ in range(20):
    np.full(2**23, 1.0)
print(kept, faults() - faults_before)
"""


def run(mode: str) -> tuple[str, int]:
    process = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    kept, faults = process.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    (_, before), (kept, after) = run("leave"), run("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert after < 20 <= before  # a new mapping has at least one page fault, whatever the size of pages


def test_the_peak_memory_of_the_process_grows() -> None:
    before = peak_memory()
    block = np.ones(int(before * 1e6 / 8 + 2e7))  # exceeds the peak so far
    assert peak_memory() > before + 100
    assert block.sum() > 0
