"""Recursive filters in numpy alone: high-passes as second-order sections, run as matrix products over blocks.

A recursive filter is a linear system with a state. A block of its output is therefore one matrix times the block of
input plus another times the initial state of the block. numpy has no fast loop over samples, but fast matrix products.
scipy, which has sosfilt, need not be installed or imported to restore a file.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

BLOCK = 64  # samples that one matrix filters
GROUP = 16  # blocks whose states one matrix gives: each product is of one size, so that cuts do not show


def highpass_sections(zeros: Complexes, poles: Complexes, cutoff: float, sample_rate: int) -> tuple[Floats, Floats]:
    """An analogue low-pass of odd order, edge at 1 rad/s, as a digital high-pass from ``cutoff`` Hz.

    ``zeros`` and ``poles`` of positive imaginary part stand for their conjugates too. Returns the second-order sections
    (S, 6), as scipy has them, the first of order one; and the radii of their poles (S,). The gain at half of the sample
    rate is one. By the bilinear transform, as in Oppenheim and Schafer, "Discrete-Time Signal Processing".
    """
    warped = np.tan(np.pi * cutoff / sample_rate)
    (real,), pairs = _bilinear(warped / poles[poles.imag == 0]).real, _bilinear(warped / poles[poles.imag > 0])
    zeros = _bilinear(warped / zeros[zeros.imag > 0])
    sections = [_unit_gain([1, -1, 0], [1, -real, 0])]
    for pole in sorted(pairs, key=abs):
        nearest = zeros[np.abs(zeros - pole).argmin()]
        zeros = zeros[zeros != nearest]
        sections.append(_unit_gain(_quadratic(nearest), _quadratic(pole)))
    return np.array(sections), np.abs([real, *pairs])


def _bilinear(points: Complexes) -> Complexes:
    return (1 + points) / (1 - points)


def _quadratic(root: complex) -> list[float]:
    """Coefficients of the polynomial with this root and its conjugate."""
    return [1.0, -2 * root.real, abs(root) ** 2]


def _unit_gain(numerator: list[float], denominator: list[float]) -> list[float]:
    """A section with gain one at half of the sample rate."""
    signs = np.array([1, -1, 1])
    gain = float(signs @ denominator) / float(signs @ numerator)
    return [gain * value for value in numerator] + denominator


class Matrices(NamedTuple):
    """What filters rows of samples. N: states, of all sections; blocks of B samples, groups of G blocks.

    ``direct`` (B, B): input of a block to its output, ``observed`` (N, B): state before it to its output, ``gathered``
    (B, N): its input to the state after it. ``before`` (G N, G N): what each block of a group gathers to the states
    before each, ``initial`` (N, G N): the state before a group to those, ``after`` (G N, N) and ``power`` (N, N): both
    to the state after the group.
    """

    direct: Floats
    observed: Floats
    gathered: Floats
    before: Floats
    initial: Floats
    after: Floats
    power: Floats


class SosDesign:
    """Second-order sections (S, 6) with a0 of one, in the transposed direct form II: two states for each of them."""

    def __init__(self, sections: Floats) -> None:
        self.sections, self.states = sections, 2 * len(sections)

    @cached_property
    def settled(self) -> Floats:
        """The state (N,) that endless ones leave."""
        after, _, entered = self._system
        return np.linalg.solve(np.eye(self.states) - after.T, entered).astype(np.float64)

    @cached_property
    def matrices(self) -> Matrices:
        step, output, entered = self._system
        powers = _powers(step, BLOCK)
        observed = np.stack([power @ output for power in powers[:BLOCK]], axis=1)
        response = np.concatenate([[self._through], entered @ observed[:, : BLOCK - 1]])
        direct = np.stack([np.concatenate([np.zeros(lag), response[: BLOCK - lag]]) for lag in range(BLOCK)])
        gathered = np.stack([entered @ power for power in powers[BLOCK - 1 :: -1]])
        blocks = _powers(powers[BLOCK], GROUP)
        nothing = np.zeros_like(step)
        rows = [[blocks[to - at - 1] if to > at else nothing for to in range(GROUP)] for at in range(GROUP)]
        after = np.concatenate(blocks[GROUP - 1 :: -1])
        return Matrices(
            direct, observed, gathered, np.block(rows), np.concatenate(blocks[:GROUP], 1), after, blocks[GROUP]
        )

    @cached_property
    def _system(self) -> tuple[Floats, Floats, Floats]:
        """One step, of row vectors: state to the next (N, N), to the output (N,); input to the next state (N,)."""
        rows = np.eye(self.states + 1)
        nexts, outputs = zip(*(self._step(row[:-1], row[-1]) for row in rows), strict=True)
        return np.stack(nexts[:-1]), np.array(outputs[:-1]), nexts[-1]

    @property
    def _through(self) -> float:
        """What of an input is in the output at once."""
        return float(np.prod(self.sections[:, 0]))

    def _step(self, state: Floats, sample: float) -> tuple[Floats, float]:
        after = np.zeros_like(state)
        for place, (b0, b1, b2, _, a1, a2) in enumerate(self.sections):
            first, second = state[2 * place : 2 * place + 2]
            out = b0 * sample + first
            after[2 * place : 2 * place + 2] = b1 * sample - a1 * out + second, b2 * sample - a2 * out
            sample = out
        return after, sample


def _powers(matrix: Floats, count: int) -> list[Floats]:
    """Those from 0 to ``count``."""
    powers = [np.eye(len(matrix))]
    for _ in range(count):
        powers.append(powers[-1] @ matrix)
    return powers


class SosFilter:
    """A signal through sections: (C, T) of any T in, as much out, identical bit by bit however it is cut.

    It starts in ``state`` (C, N). Groups of blocks begin at fixed positions of the signal. An incomplete group is
    filtered with zeros behind it, and again when the signal continues.
    """

    def __init__(self, design: SosDesign, state: Floats) -> None:
        self._matrices, self._state = design.matrices, state
        self._begun = np.zeros((len(state), 0))  # samples of the group that is not whole yet

    def push(self, audio: NDArray[Any]) -> Floats:
        known = self._begun.shape[1]
        audio = np.concatenate([self._begun, audio], axis=1, dtype=np.float64)
        channels, length = audio.shape
        size = BLOCK * GROUP
        whole = length // size
        self._begun = audio[:, whole * size :].copy()
        groups = -(-length // size)
        padded = np.pad(audio, [(0, 0), (0, groups * size - length)])
        blocks = np.ascontiguousarray(padded.reshape(channels, groups, GROUP, BLOCK).swapaxes(0, 1))
        out = self._filtered(blocks, whole)
        return out.swapaxes(0, 1).reshape(channels, groups * size)[:, known:length]

    def _filtered(self, blocks: Floats, whole: int) -> Floats:
        """Output of blocks (groups, C, G, B); the state is carried over those groups that are ``whole``."""
        m, (groups, channels) = self._matrices, blocks.shape[:2]
        gathered = np.matmul(blocks, m.gathered).reshape(groups, channels, m.after.shape[0])
        state, states = self._state, []
        for number, added in enumerate(gathered @ m.after):
            states.append(state @ m.initial)
            state = state @ m.power + added
            if number < whole:
                self._state = state
        before = np.matmul(gathered, m.before) + np.reshape(states, gathered.shape)
        before = before.reshape(groups, channels, GROUP, m.power.shape[0])
        return np.matmul(blocks, m.direct) + np.matmul(before, m.observed)
