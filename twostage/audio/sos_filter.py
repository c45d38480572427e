"""Recursive filters in numpy alone: high-passes as second-order sections, run as matrix products over blocks.

A recursive filter is a linear system with a state. A block of its output is therefore one matrix times the block of
input plus another times the initial state of the block. numpy has no fast loop over samples, but fast matrix products.
scipy, which provides sosfilt, is therefore not needed to restore a file.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

BLOCK = 64  # samples filtered by one matrix product
GROUP = 16  # blocks whose states one product computes; products of one size make the output independent of the cuts


def highpass_sections(zeros: Complexes, poles: Complexes, cutoff: float, sample_rate: int) -> tuple[Floats, Floats]:
    """Transform an analog low-pass of odd order with its edge at 1 rad/s into a digital high-pass above ``cutoff`` Hz.

    ``zeros`` and ``poles`` with a positive imaginary part represent their conjugates too. Returns second-order sections
    (S, 6) in scipy's layout, the first of order one, and the radii of their poles (S,). The gain at the Nyquist
    frequency is one. By the bilinear transform, as in Oppenheim and Schafer, "Discrete-Time Signal Processing".
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
    """Scale a section to a gain of one at the Nyquist frequency."""
    signs = np.array([1, -1, 1])
    gain = float(signs @ denominator) / float(signs @ numerator)
    return [gain * value for value in numerator] + denominator


class Matrices(NamedTuple):
    """The matrices that filter rows of samples: N states of all sections, blocks of B samples, groups of G blocks.

    For a block, ``direct`` (B, B) maps its input to its output, ``observed`` (N, B) the state before it to its output,
    and ``gathered`` (B, N) its input to its contribution to the state after it. For a group, ``before`` (G N, G N) maps
    the contributions of all blocks to the state before each block, ``initial`` (N, G N) the state before the group to
    these states, and ``after`` (G N, N) and ``power`` (N, N) map both to the state after the group.
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
        """The steady state (N,) for a constant input of one."""
        after, _, from_input = self._system
        return np.linalg.solve(np.eye(self.states) - after.T, from_input).astype(np.float64)

    @cached_property
    def matrices(self) -> Matrices:
        step, output, from_input = self._system
        powers = _powers(step, BLOCK)
        observed = np.stack([power @ output for power in powers[:BLOCK]], axis=1)
        response = np.concatenate([[self._direct_gain], from_input @ observed[:, : BLOCK - 1]])
        direct = np.stack([np.concatenate([np.zeros(lag), response[: BLOCK - lag]]) for lag in range(BLOCK)])
        gathered = np.stack([from_input @ power for power in powers[BLOCK - 1 :: -1]])
        blocks = _powers(powers[BLOCK], GROUP)
        zeros = np.zeros_like(step)
        rows = [[blocks[to - at - 1] if to > at else zeros for to in range(GROUP)] for at in range(GROUP)]
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
    def _direct_gain(self) -> float:
        """The gain from an input sample to the output sample at the same time."""
        return float(np.prod(self.sections[:, 0]))

    def _step(self, state: Floats, sample: float) -> tuple[Floats, float]:
        after = np.zeros_like(state)
        for index, (b0, b1, b2, _, a1, a2) in enumerate(self.sections):
            first, second = state[2 * index : 2 * index + 2]
            out = b0 * sample + first
            after[2 * index : 2 * index + 2] = b1 * sample - a1 * out + second, b2 * sample - a2 * out
            sample = out
        return after, sample


def _powers(matrix: Floats, count: int) -> list[Floats]:
    """The powers of a matrix from 0 to ``count``."""
    powers = [np.eye(len(matrix))]
    for _ in range(count):
        powers.append(powers[-1] @ matrix)
    return powers


class SosFilter:
    """Filters a signal in blocks (C, T) of any T; the output is bitwise identical for every division into blocks.

    It starts in ``state`` (C, N). Groups of blocks begin at fixed positions of the signal. An incomplete group is
    padded with zeros, and filtered again when the signal continues.
    """

    def __init__(self, design: SosDesign, state: Floats) -> None:
        self._matrices, self._state = design.matrices, state
        self._incomplete = np.zeros((len(state), 0))  # samples of the current incomplete group

    def push(self, audio: NDArray[Any]) -> Floats:
        returned = self._incomplete.shape[1]
        audio = np.concatenate([self._incomplete, audio], axis=1, dtype=np.float64)
        channels, length = audio.shape
        size = BLOCK * GROUP
        complete = length // size
        self._incomplete = audio[:, complete * size :].copy()
        groups = -(-length // size)
        padded = np.pad(audio, [(0, 0), (0, groups * size - length)])
        blocks = np.ascontiguousarray(padded.reshape(channels, groups, GROUP, BLOCK).swapaxes(0, 1))
        out = self._filtered(blocks, complete)
        return out.swapaxes(0, 1).reshape(channels, groups * size)[:, returned:length]

    def _filtered(self, blocks: Floats, complete: int) -> Floats:
        """Output of blocks (groups, C, G, B); the state advances over the first ``complete`` groups only."""
        m, (groups, channels) = self._matrices, blocks.shape[:2]
        gathered = np.matmul(blocks, m.gathered).reshape(groups, channels, m.after.shape[0])
        state, states = self._state, []
        for number, contribution in enumerate(gathered @ m.after):
            states.append(state @ m.initial)
            state = state @ m.power + contribution
            if number < complete:
                self._state = state
        before = np.matmul(gathered, m.before) + np.reshape(states, gathered.shape)
        before = before.reshape(groups, channels, GROUP, m.power.shape[0])
        return np.matmul(blocks, m.direct) + np.matmul(before, m.observed)
