"""Tests of memory: freed memory is reused without new page faults, and the peak is measured."""

import subprocess
import sys

import pytest

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


PEAK = """
import numpy as np
from twostage.utils.memory import peak_memory
before = peak_memory()
block = np.ones(int(2e8 / 8))
del block
print(before, peak_memory())
"""


def output_of(program: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def run(mode: str) -> tuple[str, int]:
    kept, faults = output_of(FAULTS, mode)
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    (_, before), (kept, after) = run("leave"), run("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert after < 20 <= before  # a new mapping has at least one page fault, whatever the size of pages


@pytest.mark.skipif(sys.platform == "win32", reason="not measured there")
def test_the_peak_memory_of_the_process_grows_and_stays() -> None:
    before, after = map(float, output_of(PEAK))
    assert 10 < before < 150  # MB: Python and numpy
    assert before + 150 < after < before + 250
