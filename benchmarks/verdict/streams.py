"""Streams of requests with both versions' outcomes drawn in advance, so that every policy meets the same fate.

A request carries a routing number: it goes to the candidate where that is below the candidate's realised share. Whatever a
policy decides changes who answers, never what either version would have answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

INCIDENT_EVERY, INCIDENT_SECONDS, INCIDENT_RISE = 300.0, 30, 0.2
"""A shared incident: both versions fail 20 points more for 30 s; one every five minutes on average, at random times."""

BANDS, BIN_SECONDS = 20, 5
"""For the policies that look at windows: requests counted by routing band (5 points each) and by 5 seconds."""

NEVER = 1e7
"""The time of a place that holds no request."""

BIGGEST_BATCH = 16_000_000
"""Requests held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens. Rates are fractions; the candidate's is `factor` times the baseline's of that moment, plus `rise`."""

    name: str
    base: float
    rise: float = 0.0
    factor: float = 1.0
    rate: float = 50.0
    horizon: float = 3600.0
    incidents: bool = False
    spared: bool = False
    """The incidents reach the baseline alone."""
    drift: bool = False
    """The shared rate climbs to four times its start within ten minutes and swings by half every two."""
    share: float = 1.0
    """Realised over nominal share of the candidate."""
    from_weight: float = 0.0
    """The candidate differs only while its weight (percent) is at least this."""
    onset: float = 0.0
    """… and only from this second on."""
    retries: int = 0
    """A user that fails comes back so many times, `retry_seconds` apart, and fails again."""
    retry_seconds: float = 0.047
    regulars: int = 0
    """So many users make all the requests, each of them again and again; 0: every request is another user's."""
    hopeless: bool = False
    """The rate is the share of regulars whose every request fails."""

    @property
    def length(self) -> int:
        """Requests that are drawn for one rollout."""
        asked = self.rate * self.horizon * (1 + self.retries * self.base)
        return int(asked + 4 * asked**0.5) + 8

    @property
    def batch(self) -> int:
        """Rollouts that are simulated side by side."""
        return max(20, min(500, BIGGEST_BATCH // self.length))


@dataclass(slots=True)
class Requests:
    """(replicates, requests) arrays; `bad0`, `bad1` are (replicates, requests, components): what each version would do.

    `below` is the candidate's while its weight is under `from_weight`. `user` says who asks and `earlier` is the place of the same
    user's previous request, -1 for none; None where every request is a unit of its own.
    """

    time: NDArray[np.float64]
    routing: NDArray[np.float32]
    bad0: NDArray[np.bool_]
    bad1: NDArray[np.bool_]
    share: float = 1.0
    below: NDArray[np.bool_] | None = None
    from_weight: float = 0.0
    user: NDArray[np.int64] | None = None
    earlier: NDArray[np.int32] | None = None

    def candidates(self, rows: NDArray[np.int_], weight: float) -> NDArray[np.bool_]:
        """Which requests of these rollouts the candidate answers at this weight (percent)."""
        answered: NDArray[np.bool_] = self.routing[rows] < np.float32(self.share * weight / 100)
        return answered

    def candidate_bad(self, rows: NDArray[np.int_], weight: float) -> NDArray[np.bool_]:
        """What the candidate would do with each request at this weight."""
        if self.below is not None and weight < self.from_weight:
            return self.below[rows]
        return self.bad1[rows]


def draw(scenario: Scenario, replicates: int, seed: int) -> Requests:
    """The stream of each replicate."""
    rng = np.random.default_rng(seed)
    shape = (replicates, scenario.length)
    if scenario.retries:
        return _with_retries(scenario, replicates, rng)
    time = np.cumsum(rng.exponential(1 / scenario.rate, shape), axis=1)
    shared, extra = _rates(scenario, time, rng)
    routing = rng.random(shape, dtype=np.float32)
    user, earlier = None, None
    if scenario.regulars:
        user = rng.integers(0, scenario.regulars, shape)
        routing = np.take_along_axis(
            rng.random((replicates, scenario.regulars), dtype=np.float32), user, axis=1
        )
        earlier = _earlier(user)
    if scenario.hopeless:
        fails = rng.random((replicates, scenario.regulars)) < scenario.base
        bad = np.take_along_axis(fails, user, axis=1)[..., None]
        return Requests(time, routing, bad, bad, scenario.share, user=user, earlier=earlier)
    bad0 = (rng.random(shape, dtype=np.float32) < shared + extra)[..., None]
    fate = rng.random(shape, dtype=np.float32)
    differs = time >= scenario.onset
    bad1 = (fate < np.where(differs, scenario.factor * shared + scenario.rise, shared))[..., None]
    below = (fate < shared)[..., None] if scenario.from_weight else None
    return Requests(time, routing, bad0, bad1, scenario.share, below, scenario.from_weight, user, earlier)


def _rates(
    scenario: Scenario, time: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32] | float]:
    """The rate that both share at each request, and what the baseline alone has beyond it."""
    shared = np.full(time.shape, scenario.base, np.float32)
    if scenario.drift:
        shared *= (1 + 3 * np.minimum(time / 600, 1)) * (1 + 0.5 * np.sin(time * (2 * np.pi / 120)))
    if not scenario.incidents:
        return shared, 0.0
    rise = INCIDENT_RISE * _incidents(scenario, len(time), rng)
    second = np.minimum(time.astype(np.int32), rise.shape[1] - 1)
    extra = np.take_along_axis(rise, second, axis=1).astype(np.float32)
    return (shared, extra) if scenario.spared else (shared + extra, 0.0)


def _incidents(scenario: Scenario, replicates: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether there is an incident, for each second."""
    begins = (
        rng.random((replicates, int(scenario.horizon) + 2 + INCIDENT_SECONDS)) < 1 / INCIDENT_EVERY
    ).cumsum(axis=1)
    on: NDArray[np.bool_] = begins[:, INCIDENT_SECONDS:] > begins[:, :-INCIDENT_SECONDS]
    return on


def _with_retries(scenario: Scenario, replicates: int, rng: np.random.Generator) -> Requests:
    """A/A: users come once each; one that fails comes back, on the arm that its key has, and fails again."""
    users = int(scenario.rate * scenario.horizon)
    began = np.cumsum(rng.exponential(1 / scenario.rate, (replicates, users)), axis=1)
    fails = rng.random((replicates, users)) < scenario.base
    routing = rng.random((replicates, users), dtype=np.float32)
    out = {
        name: np.zeros((replicates, scenario.length), kind)
        for name, kind in (("time", float), ("routing", np.float32), ("bad", bool), ("user", np.int64))
    }
    for row in range(replicates):
        visits = np.where(fails[row], scenario.retries, 1)
        user = np.repeat(np.arange(users), visits)
        visit = np.arange(len(user)) - np.repeat(np.cumsum(visits) - visits, visits)
        time = began[row, user] + visit * scenario.retry_seconds
        order = np.argsort(time)[: scenario.length]
        filled = slice(0, len(order))
        out["time"][row, filled] = time[order]
        out["time"][row, len(order) :] = NEVER
        out["user"][row, filled] = user[order]
        out["user"][row, len(order) :] = -1
        out["routing"][row, filled] = routing[row, user[order]]
        out["bad"][row, filled] = fails[row, user[order]]
    bad = out["bad"][..., None]
    user = out["user"]
    return Requests(out["time"], out["routing"], bad, bad, scenario.share, user=user, earlier=_earlier(user))


def _earlier(user: NDArray[np.int64]) -> NDArray[np.int32]:
    """For each request the place of the same user's previous one, -1 for none."""
    order = np.argsort(user, axis=1, kind="stable")
    of = np.take_along_axis(user, order, axis=1)
    before = np.where(of[:, 1:] == of[:, :-1], order[:, :-1], -1)
    earlier = np.full(user.shape, -1, np.int32)
    np.put_along_axis(earlier, order[:, 1:], before.astype(np.int32), axis=1)
    return earlier


@dataclass(slots=True)
class Windows:
    """Counts by 5 seconds and by routing bands: (replicates, bins, bands + 1), cumulative in both."""

    n: NDArray[np.int32]
    bad0: NDArray[np.int32]
    bad1: NDArray[np.int32]
    below: NDArray[np.int32]
    from_weight: float

    def candidate(
        self, begin: float, end: float, weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(requests, bad answers) of the candidate between two times, for each replicate at its weight (percent)."""
        top = _band(weight)
        bad = np.where(
            weight < self.from_weight,
            self._sum(self.below, begin, end, top),
            self._sum(self.bad1, begin, end, top),
        )
        return self._sum(self.n, begin, end, top), bad

    def baseline(
        self,
        begin: float,
        end: float,
        above: NDArray[np.float64],
        up_to: NDArray[np.float64] | float = 100.0,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(requests, bad answers) of the baseline in the routing bands from `above` to `up_to` (percent)."""
        low, high = _band(above), _band(np.broadcast_to(up_to, above.shape))
        return (
            self._sum(self.n, begin, end, high) - self._sum(self.n, begin, end, low),
            self._sum(self.bad0, begin, end, high) - self._sum(self.bad0, begin, end, low),
        )

    @staticmethod
    def _sum(counts: NDArray[np.int32], begin: float, end: float, top: NDArray[np.int_]) -> NDArray[np.int32]:
        rows = np.arange(len(counts))
        first, last = (min(int(t / BIN_SECONDS), counts.shape[1] - 1) for t in (begin, end))
        total: NDArray[np.int32] = counts[rows, last, top] - counts[rows, first, top]
        return total


def _band(weight: NDArray[np.float64]) -> NDArray[np.int_]:
    return np.rint(weight * BANDS / 100).astype(int)


def windows(requests: Requests, horizon: float) -> Windows:
    """The same streams, counted for policies that look at windows."""
    replicates = len(requests.time)
    bins = int(horizon / BIN_SECONDS)
    band = np.minimum((requests.routing / requests.share * BANDS).astype(np.int32), BANDS)
    at = np.minimum(requests.time / BIN_SECONDS, bins).astype(np.int32)
    place = (np.arange(replicates)[:, None] * (bins + 1) + at) * (BANDS + 1) + band

    def count(which: NDArray[np.bool_] | None) -> NDArray[np.int32]:
        places = place.ravel() if which is None else place[which]
        flat = np.bincount(places, minlength=replicates * (bins + 1) * (BANDS + 1))
        cells = flat.reshape(replicates, bins + 1, BANDS + 1)[:, :bins]
        total = np.zeros((replicates, bins + 1, BANDS + 2), np.int32)
        total[:, 1:, 1:] = cells.cumsum(axis=1).cumsum(axis=2)
        return total[:, :, : BANDS + 1]

    bad1 = count(requests.bad1[..., 0])
    below = bad1 if requests.below is None else count(requests.below[..., 0])
    return Windows(count(None), count(requests.bad0[..., 0]), bad1, below, requests.from_weight)
