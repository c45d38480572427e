"""Removes everything below speech: offset, drift, movement.

The filter is a high-pass (Chebyshev type II, which delays the lowest voices less than a Butterworth filter with the
same attenuation). The past of a signal is unknown; its initial state is the one that leaves the least energy, so that
an offset or a drift that existed before the recording began causes no jump. Causal models, which stream, use the filter
forward only; others use it forward and backward, without delay at any frequency.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import ceil, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twostage.audio.sos_filter import Complexes, SosDesign, SosFilter, highpass_sections
from twostage.audio.sound_files import BLOCK, block_length
from twostage.audio.types import Audio

STOP, DEPTH = 9.0, 90.0  # stop band edge in Hz and attenuation in dB; at 30 Hz the attenuation is 0.1 dB, above less
ORDER = 7  # odd, so that the gain at 0 Hz is zero
DECAY = 1e-6  # relative amplitude at which the response to the initial state counts as decayed
RIDGE = 1e-12  # of the energy of a natural response: regularization of the estimate of the state
SHORTEST = 0.02  # seconds: in less, the initial state cannot be estimated, and the signal is not filtered
AT_ONCE = 4096  # samples whose states are estimated at once

Floats = NDArray[np.float64]


class Design(NamedTuple):
    """Second-order sections, and the responses (N, ORDER) that a state may cause.

    The responses are orthonormal and decay within N samples.
    """

    sections: SosDesign
    responses: Floats

    def settled_on(self, block: Floats) -> SosFilter:
        """The filter for a signal (C, T) that was constant, at the value of its first sample, before it began."""
        return SosFilter(self.sections, self.sections.settled * block[:, :1])


@lru_cache(maxsize=8)
def design(sample_rate: int) -> Design:
    sections, radii = highpass_sections(*chebyshev(ORDER, DEPTH), STOP, sample_rate)
    system = SosDesign(sections)
    length = ceil(log(DECAY) / log(radii.max()))  # of the slowest pole
    states = np.delete(np.eye(system.states), 1, axis=0)  # the first section is of order one and has one state
    responses = SosFilter(system, states).push(np.zeros((ORDER, length)))
    return Design(system, np.linalg.qr(responses.T)[0])


def chebyshev(order: int, depth: float) -> tuple[Complexes, Complexes]:
    """Zeros and poles of a Chebyshev type II low-pass of odd ``order``, attenuating ``depth`` dB from 1 rad/s on.

    Those with a positive imaginary part represent their conjugates too. From Oppenheim and Schafer, "Discrete-Time
    Signal Processing", appendix B.
    """
    angles = np.pi / 2 / order * np.arange(0, order, 2)
    width = np.arcsinh(np.sqrt(10 ** (depth / 10) - 1)) / order
    return 1j / np.sin(angles[1:]), -1 / (np.sinh(width) * np.cos(angles) + 1j * np.cosh(width) * np.sin(angles))


class CausalHighPass:
    """Forward only: blocks (C, T) of any size in, the same sizes out; the result does not depend on the sizes.

    Until the initial state has decayed, each sample is the residual for the initial state that best fits all samples up
    to it: recursive least squares, as in a Kalman filter without prior knowledge.
    """

    def __init__(self, channels: int, sample_rate: int) -> None:
        self._design = design(sample_rate)
        self._filter: SosFilter | None = None
        self._seen = 0
        self._gram = RIDGE * np.eye(ORDER)
        self._products = np.zeros((channels, ORDER))

    def push(self, block: NDArray[Any]) -> Audio:
        if not block.shape[1]:
            return block.astype(np.float32)
        block = block.astype(np.float64)
        if self._filter is None:
            self._filter = self._design.settled_on(block)
        out = self._filter.push(block)
        for start in range(0, min(block.shape[1], len(self._design.responses) - self._seen), AT_ONCE):
            self._correct(out[:, start : start + AT_ONCE])
        return out.astype(np.float32)

    def _correct(self, out: Floats) -> None:
        """Subtract from (C, T), in place, the response to the best initial state known at each sample."""
        responses = self._design.responses[self._seen : self._seen + out.shape[1]]  # (T, ORDER)
        out = out[:, : len(responses)]
        self._seen += len(responses)
        grams = _sums(self._gram, responses[:, :, None] * responses[:, None])
        products = _sums(self._products, out.T[:, :, None] * responses[:, None])
        self._gram, self._products = grams[-1], products[-1]
        states = np.linalg.solve(grams, products.transpose(0, 2, 1))  # (T, ORDER, C)
        out -= (states * responses[:, :, None]).sum(1).T


def _sums(before: Floats, terms: Floats) -> Floats:
    """Running sums along the first axis, added sequentially so that they do not depend on the block sizes."""
    return np.cumsum(np.concatenate([before[None], terms]), axis=0)[1:]


class ZeroPhaseHighPass:
    """Forward and backward: takes blocks (C, T), returns what is ready, at most ``latency`` samples late.

    ``flush`` returns the remaining samples. ``chunk`` samples are filtered backward at once; the backward filter starts
    so far after them that its initial state has decayed.
    """

    def __init__(self, channels: int, sample_rate: int, chunk: int = BLOCK) -> None:
        self._design = design(sample_rate)
        self._lead, self._chunk = len(self._design.responses), chunk
        self._shortest = round(SHORTEST * sample_rate)
        self._start: list[Floats] = []  # blocks until they suffice to estimate the state
        self._filter: SosFilter | None = None
        self._forward = np.zeros((channels, 0))
        self.latency = self._lead + chunk

    def push(self, block: NDArray[Any]) -> Audio:
        block = block.astype(np.float64)
        if self._filter is None:
            self._start.append(block)
            if sum(part.shape[1] for part in self._start) >= self._lead:
                self._begin()
        else:
            self._forward = np.concatenate([self._forward, self._filter.push(block)], axis=1)
        ready = [self._forward[:, :0].astype(np.float32)]
        while self._forward.shape[1] >= self._lead + self._chunk:
            ready.append(self._backward(self._forward[:, : self._lead + self._chunk])[:, : self._chunk])
            self._forward = self._forward[:, self._chunk :]
        return np.concatenate(ready, axis=1)

    def flush(self) -> Audio:
        if self._filter is None and sum(part.shape[1] for part in self._start) < self._shortest:
            short = np.concatenate([self._forward, *self._start], axis=1)
            self._start = []
            return short.astype(np.float32)
        self._begin()
        remaining = self._forward
        self._forward = remaining[:, :0]
        return self._backward(remaining) if remaining.shape[1] else remaining.astype(np.float32)

    def _begin(self) -> None:
        if self._filter is None and self._start:
            self._forward, self._filter = _settled(self._design, np.concatenate(self._start, axis=1))
            self._start = []

    def _backward(self, forward: Floats) -> Audio:
        return _settled(self._design, forward[:, ::-1])[0][:, ::-1].astype(np.float32)


def _settled(design: Design, block: Floats) -> tuple[Floats, SosFilter]:
    """Filter (C, T) from the state that leaves the least energy; returns the output and the filter to continue with."""
    if not block.shape[1]:
        return block, design.settled_on(np.zeros((len(block), 1)))
    continuing = design.settled_on(block)
    out = continuing.push(block)
    responses = design.responses[: block.shape[1]]
    head = out[:, : len(responses)]
    gram = responses.T @ responses + RIDGE * np.eye(ORDER)
    head -= np.linalg.solve(gram, responses.T @ head.T).T @ responses.T
    return out, continuing


def highpassed(
    blocks: Iterable[NDArray[Any]], sample_rate: int, channels: int, *, causal: bool = False
) -> Iterator[Audio]:
    """Remove everything below speech from a stream of blocks (C, T); the total length stays the same."""
    if causal:
        yield from map(CausalHighPass(channels, sample_rate).push, blocks)
        return
    # a chunk as long as the lead-in of the backward filter: low latency at twice the minimum cost
    chunk = min(block_length(channels), len(design(sample_rate).responses))
    zero_phase = ZeroPhaseHighPass(channels, sample_rate, chunk)
    for block in blocks:
        yield zero_phase.push(block)
    remaining = zero_phase.flush()
    for start in range(0, max(1, remaining.shape[1]), chunk):
        yield remaining[:, start : start + chunk]


def highpass(audio: NDArray[Any], sample_rate: int, *, causal: bool = False) -> Audio:
    """Remove everything below speech from audio (..., T)."""
    rows = audio.reshape(int(np.prod(audio.shape[:-1])), audio.shape[-1])
    filtered = np.concatenate(list(highpassed([rows], sample_rate, len(rows), causal=causal)), axis=1)
    return filtered.reshape(audio.shape)
