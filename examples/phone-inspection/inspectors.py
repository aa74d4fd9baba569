"""Inspectors who look at phones: each misses faint scratches and takes dust for scratches in an own way, and answers late.

An inspector never sees what the model said. The same seed gives the same opinions at the same times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from phones import Phones

CLASSES = ("ok", "scratched")
LOOKED_AT_BY = (0.15, 0.55, 0.22, 0.08)
"""Shares of the phones that nobody, one, two and three inspectors look at."""

LATENESS = (1.0, 20.0)
CORRECTED_WHEN_WRONG, CORRECTED_WHEN_RIGHT = 0.25, 0.002  # a second thought, seldom for the worse
CORRECTED_AFTER = (2.0, 10.0)


@dataclass(frozen=True, slots=True)
class Inspector:
    """`misses_below`: the visibility at which half of the scratches are missed; `fooled`: how often plain lint fools.

    `careless` is the share of slips of the hand, whatever the phone looks like; `slow` stretches how late the answers come.
    """

    name: str
    misses_below: float
    fooled: float
    careless: float
    slow: float = 1.0

    def chance_of_scratched(self, visibility: float, dust: float, light: float, scratched: bool) -> float:
        """How likely this inspector calls such a phone scratched: a logistic curve over how plainly it shows."""
        squint = 1.0 + 0.5 * (1.0 - light)
        if scratched:
            says = 1.0 / (1.0 + np.exp(-(visibility - self.misses_below * squint) / 0.012))
        else:
            says = min(self.fooled * squint * dust, 1.0)
        return float(self.careless + (1.0 - 2.0 * self.careless) * says)


@dataclass(frozen=True, slots=True)
class Opinion:
    """A label as it will be posted `late` seconds after its phone went by; `phone` is its row in the set."""

    phone: int
    annotator: str
    label: str
    late: float
    corrects: bool = False


TEAM = (
    Inspector("anna", misses_below=0.085, fooled=0.14, careless=0.008),
    Inspector("bert", misses_below=0.098, fooled=0.07, careless=0.012, slow=0.7),
    Inspector("chen", misses_below=0.090, fooled=0.16, careless=0.010, slow=1.2),
    Inspector("dora", misses_below=0.098, fooled=0.12, careless=0.012),
)


def opinions(seed: int | tuple[int, ...], phones: Phones, hurry: float = 1.0) -> Iterator[Opinion]:
    """What the team says of these phones, phone by phone. `hurry` divides how late they are.

    A correction follows as a second opinion of the same inspector on the same phone.
    """
    rng = np.random.default_rng(seed)
    for phone in range(len(phones)):
        how_many = rng.choice(len(LOOKED_AT_BY), p=LOOKED_AT_BY)
        for number in rng.permutation(len(TEAM))[:how_many]:
            inspector = TEAM[number]
            label = look(rng, inspector, phones, phone)
            late = float(min(rng.uniform(*LATENESS) * inspector.slow, LATENESS[1]))
            yield Opinion(phone, inspector.name, label, late / hurry)
            right = label == CLASSES[int(phones.scratched[phone])]
            if rng.random() < (CORRECTED_WHEN_RIGHT if right else CORRECTED_WHEN_WRONG):
                other = CLASSES[1 - CLASSES.index(label)]
                later = late + float(rng.uniform(*CORRECTED_AFTER))
                yield Opinion(phone, inspector.name, other, later / hurry, corrects=True)


def look(rng: np.random.Generator, inspector: Inspector, phones: Phones, phone: int) -> str:
    """One inspector's first opinion of one phone."""
    chance = inspector.chance_of_scratched(
        float(phones.visibility[phone]),
        float(phones.dust[phone]),
        float(phones.light[phone]),
        bool(phones.scratched[phone]),
    )
    return CLASSES[int(rng.random() < chance)]


def ask_all(seed: int, phones: Phones) -> dict[str, list[str]]:
    """First opinions of every inspector on every phone, as a study of their agreement needs them."""
    rng = np.random.default_rng(seed)
    return {each.name: [look(rng, each, phones, phone) for phone in range(len(phones))] for each in TEAM}
