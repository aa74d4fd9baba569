"""Pairs for the evidence of a shadow: streams of what both versions did, how soon it is judged, and by a test that knows the truth.

A stream is (rollouts, units) of kinds, each a place in `core.paired.CELLS`: both good, only the candidate bad, only the baseline
bad, both bad. Every function that judges goes through `PairedPanel`, as a shadow does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployctl.core.evidence import Array, Evidence
from deployctl.core.paired import CELLS, PairedPanel, growth
from deployctl.core.panel import FAIL

Kinds = NDArray[np.int8]
ALPHA, BETA = 0.01, 0.05
ONLY_CANDIDATE, ONLY_BASELINE = 1, 2


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the pairs, and at how many units a second, judged `block` at a time."""

    relative: float = 1.0
    absolute: float = 0.0
    margin: float = 0.005
    prior: float = 0.05
    per_second: float = 1.0
    block: int = 1

    def panel(self, rollouts: int) -> PairedPanel:
        """One component with all of alpha, one step: a shadow that judges nothing but this."""
        given = (self.relative, self.absolute, [self.margin], 1.0)
        panel = PairedPanel(
            *(np.array([value]) for value in given),
            alpha=ALPHA,
            beta=BETA,
            prior=np.array([self.prior]),
            replicates=rollouts,
        )
        panel.begin(0, 0.0)
        return panel


def needed(kinds: Kinds, question: Question, end: int) -> Array:
    """Units until the verdict is `end` (FAIL or PASS), (rollouts,); NaN where it never is. The other verdict ends nothing."""
    panel = question.panel(len(kinds))
    found = np.full(len(kinds), np.nan)
    row = np.arange(len(kinds))
    for start in range(0, kinds.shape[1], question.block):
        block = kinds[row, start : start + question.block]
        last = start + block.shape[1]
        panel.add_cells(counted(block), last / question.per_second)
        done = panel.results() == end
        if done.any():
            found[row[done]] = last
            panel.keep(~done)
            row = row[~done]
            if not len(row):
                break
    return found


def needed_by_oracle(kinds: Kinds, truth: Array, question: Question, end: int) -> Array:
    """Units until the sequential test with the best stake for this joint distribution ends: the same null, no budget, no mixture."""
    harm = end == FAIL
    bound = question.absolute if harm else question.margin
    _, stake = growth(truth, relative=question.relative, bound=bound, harm=harm)
    weight = question.relative if harm else float(question.relative > 0)
    gain = (CELLS[:, 1] - weight * CELLS[:, 0] - bound) * (1 if harm else -1)
    reached = np.log1p(stake * gain)[kinds].cumsum(axis=1) >= math.log(threshold(end))
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.nan)


def bound_on_units(truth: Array, question: Question, end: int) -> float:
    """The known-truth bound: no test of this null needs fewer units on average, but for what it overshoots."""
    harm = end == FAIL
    nats, _ = growth(
        truth, relative=question.relative, bound=question.absolute if harm else question.margin, harm=harm
    )
    return math.log(threshold(end)) / nats


def needed_by_two_samples(kinds: Kinds, question: Question) -> Array:
    """Units until the two-sample evidence, which sees the same answers but not which belong together, shows harm."""
    evidence = Evidence(
        np.array([True]),
        np.array([question.relative]),
        np.array([question.absolute]),
        np.array([question.prior]),
        replicates=len(kinds),
    )
    found = np.full(len(kinds), np.nan)
    for start in range(0, kinds.shape[1], question.block):
        cells = counted(kinds[:, start : start + question.block])
        last = start + question.block
        n = cells.sum(axis=1)
        counts = (n, cells[:, 2] + cells[:, 3], n, cells[:, 1] + cells[:, 3])
        evidence.add(counts, last / question.per_second)
        shown = evidence.log_evidence()[:, 0] >= math.log(1 / ALPHA)
        found = np.where(np.isnan(found) & shown, last, found)
        if not np.isnan(found).any():
            break
    return found


def threshold(end: int) -> float:
    return 1 / ALPHA if end == FAIL else 1 / BETA


def counted(kinds: Kinds) -> Array:
    """A block of each rollout as `add_cells` takes it: (rollouts, 4, 1)."""
    return np.stack([(kinds == kind).sum(axis=1) for kind in range(len(CELLS))], axis=1)[..., None].astype(
        float
    )


def joint(p0: float, p1: float, *, mended: float | None) -> Array:
    """Shares of the four kinds: the candidate mends this part of the baseline's errors and adds others; None: independent errors."""
    if mended is None:
        return np.array([(1 - p0) * (1 - p1), (1 - p0) * p1, p0 * (1 - p1), p0 * p1])
    only0 = mended * p0
    only1 = p1 - p0 + only0
    return np.array([1 - p0 - only1, only1, only0, p0 - only0])


def drawn(rng: np.random.Generator, truth: Array, rollouts: int, units: int) -> Kinds:
    """Independent pairs of this joint distribution."""
    edges = np.cumsum(truth)[:-1]
    return np.searchsorted(edges, rng.random((rollouts, units)), side="right").astype(np.int8)


def swapped(rng: np.random.Generator, kinds: Kinds) -> Kinds:
    """Which version did it is tossed for each pair: a null exactly on a tolerance of 0, with the stream's own agreement."""
    discordant = (kinds == ONLY_CANDIDATE) | (kinds == ONLY_BASELINE)
    return np.where(discordant, rng.integers(1, 3, kinds.shape, dtype=np.int8), kinds)


def worsened(rng: np.random.Generator, kinds: Kinds, good: float, margin: float) -> Kinds:
    """A null of harm made worse by exactly the margin: some pairs of which both were `good` (their share) fail the candidate."""
    fails = (kinds == 0) & (rng.random(kinds.shape) < margin / good)
    return np.where(fails, np.int8(ONLY_CANDIDATE), kinds)


class Votes:
    """CIFAR-10H: ten thousand images, about fifty people's labels for each, and what published models said of them."""

    def __init__(self, folder: Path) -> None:
        self._votes = np.load(folder / "votes.npy").astype(float)
        with np.load(folder / "predictions.npz") as predictions:
            self._said = {name: predictions[name].astype(int) for name in predictions.files}
        self._edges = (np.cumsum(self._votes, axis=1) / self._votes.sum(axis=1, keepdims=True))[:, :-1]

    def truth(self, baseline: str, candidate: str) -> Array:
        """Shares of the four kinds over all images and votes."""
        share = self._votes / self._votes.sum(axis=1, keepdims=True)
        image = np.arange(len(share))
        said0, said1 = self._said[baseline], self._said[candidate]
        right0, right1 = share[image, said0], share[image, said1]
        both = np.where(said0 == said1, right0, 0.0)
        cells = [both, right0 - both, right1 - both, 1 - right0 - right1 + both]
        return np.array([cell.mean() for cell in cells])

    def orders(
        self,
        rng: np.random.Generator,
        pair: tuple[str, str],
        rollouts: int,
        units: int,
        *,
        again: bool = False,
    ) -> Kinds:
        """Random orders of the images, each labelled by one of its votes; beyond the last image, or with `again`, drawn anew."""
        images = rng.integers(0, len(self._votes), (rollouts, units))
        if not again:
            first = min(units, len(self._votes))
            for order in images:
                order[:first] = rng.permutation(len(self._votes))[:first]
        toss = rng.random((rollouts, units))
        label = np.empty((rollouts, units), dtype=int)
        for at in range(rollouts):
            label[at] = (self._edges[images[at]] <= toss[at, :, None]).sum(axis=1)
        wrong0, wrong1 = (self._said[version][images] != label for version in pair)
        return (2 * wrong0 + wrong1).astype(np.int8)
