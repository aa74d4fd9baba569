"""How soon and how safely a shadow judges pairs: on people's labels of real images, and where the truth is made.

    python benchmarks/shadow.py [--jobs N] [--scale 0.1] [--data FOLDER]

Labels come one a second and are judged one by one, unless said. The votes of CIFAR-10H are looked for in `../shared/data/cifar10h`
(or $DEPLOYCTL_SHARED/data/cifar10h); without them their rows are left out. Seeded; the result is `results/shadow.json`; ends with 1
when a number misses its target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.verdict import pairs
from benchmarks.verdict.measures import paired_and_two_sample
from benchmarks.verdict.pairs import Question, Votes
from benchmarks.verdict.rows import Pool, Row, guaranteed, percent, pool
from deployctl.core.evidence import Array
from deployctl.core.paired import PairedPanel
from deployctl.core.panel import FAIL, PASS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "shadow.json"
DATA = Path(os.environ.get("DEPLOYCTL_SHARED", ROOT.parent / "shared"), "data", "cifar10h")

WORSE = ("wrn_28_10_cutout16", "alexnet_tf_ben")
BETTER = ("resnet_basic_32", "wrn_28_10_cutout16")
LABELS = {FAIL: 160, PASS: 430}
"""Labels that a verdict may take on average."""
BY_ORACLE, INDEPENDENT, MILLISECONDS = 2.0, 1.1, 1.0

Scaled = Callable[[int], int]


def rows(opened: Pool, n: Scaled, folder: Path) -> Iterator[Row]:
    """All rows, the most telling first."""
    if folder.is_dir():
        yield from on_votes(opened, n(1000), folder)
        yield from guarantees_on_votes(opened, n(10_000), folder)
    else:
        yield Row("labels", f"people's labels: no data in {folder}", "", "left out", None)
    yield from guarantees(opened, n(2000))
    yield from beside_two_samples(opened, n(200))
    yield from budgets(opened, n(1000))
    yield from late(opened, n(400))
    yield from speed()


def on_votes(opened: Pool, orders: int, folder: Path) -> Iterator[Row]:
    """Labels until the verdict, over random orders of the images with one person's label each."""
    for versions, end, block in ((WORSE, FAIL, 1), (BETTER, PASS, 1), (WORSE, FAIL, 10), (BETTER, PASS, 10)):
        parts = opened.batches(_on_votes, orders, 100, 200 + end, folder, versions, end, block)
        ours, oracle = np.concatenate(parts, axis=1)
        mean, known = ours.mean(), oracle.mean()
        held = mean <= LABELS[end] and mean <= BY_ORACLE * known if block == 1 else None
        yield Row(
            "labels",
            f"{'  compare: ' if block > 1 else ''}{versions[0]} → {versions[1]} {_word(end)}, {block} at a time: mean labels",
            f"≤ {LABELS[end]}, ≤ {BY_ORACLE:g} x oracle" if block == 1 else "",
            f"{mean:.1f} (95 %: {np.percentile(ours, 95):.0f}); {mean / known:.2f} x oracle's {known:.1f}",
            held,
            value=float(mean),
        )


def _on_votes(
    orders: int, seed: int, folder: Path, versions: tuple[str, str], end: int, block: int
) -> tuple[Array, Array]:
    votes = Votes(folder)
    truth = votes.truth(*versions)
    question = Question(prior=float(truth[2] + truth[3]), block=block)
    kinds = votes.orders(np.random.default_rng(seed), versions, orders, 12_000 if end == PASS else 3_000)
    oracle = pairs.needed_by_oracle(kinds, truth, question, end)
    # an order that never ends would make the mean infinite, not shorter
    return np.nan_to_num(pairs.needed(kinds, question, end), nan=np.inf), oracle


def guarantees_on_votes(opened: Pool, orders: int, folder: Path) -> Iterator[Row]:
    """Real agreement, and which version was wrong tossed for each pair: exactly on the tolerance, and exactly at the margin."""
    for versions in (WORSE, BETTER):
        for end, limit in ((FAIL, pairs.ALPHA), (PASS, pairs.BETA)):
            parts = opened.batches(_wrong_on_votes, orders, 500, 300 + end, folder, versions, end)
            share = sum(parts) / orders
            what = f"{versions[0]}, {versions[1]}, tossed: {'false fail' if end == FAIL else 'worse by the margin, passed'}"
            yield guaranteed("labels", what, share, limit, orders)


def _wrong_on_votes(orders: int, seed: int, folder: Path, versions: tuple[str, str], end: int) -> int:
    votes, rng = Votes(folder), np.random.default_rng(seed)
    truth = votes.truth(*versions)
    question = Question(prior=float(truth[2] + truth[3]))
    kinds = pairs.swapped(rng, votes.orders(rng, versions, orders, 4_000, again=True))
    if end == PASS:
        kinds = pairs.worsened(rng, kinds, float(truth[0]), question.margin)
    return int(np.isfinite(pairs.needed(kinds, question, end)).sum())


NULLS = (
    ("strong agreement at 5 %, tolerance 0", Question(), pairs.joint(0.05, 0.05, mended=0.05)),
    ("independent errors of 2 %, tolerance 0", Question(prior=0.02), pairs.joint(0.02, 0.02, mended=None)),
    (
        "5 %, on a tolerance of 10 % + 0.1 points",
        Question(relative=1.1, absolute=0.001),
        pairs.joint(0.05, 0.056, mended=0.1),
    ),
    (
        "no baseline, on a budget of 5 %",
        Question(relative=0.0, absolute=0.05, margin=0.05),
        pairs.joint(0.05, 0.05, mended=None),
    ),
)


def guarantees(opened: Pool, rollouts: int) -> Iterator[Row]:
    """Exactly on the tolerance, or exactly at the margin, for a long time, read after every block."""
    for at, (name, question, null) in enumerate(NULLS):
        share = sum(opened.batches(_wrong, rollouts, 250, 400 + at, question, null, FAIL)) / rollouts
        yield guaranteed("null", f"false fail: {name}", share, pairs.ALPHA, rollouts)
    agreeing, independent, _, alone = NULLS
    for at, (name, question, null) in enumerate((agreeing, independent, alone)):
        worse = 0.0 if question.relative == 0 else question.margin
        null = null + worse * np.array([-1.0, 1.0, 0.0, 0.0])  # noqa: PLW2901 - the same one, worse
        share = sum(opened.batches(_wrong, rollouts, 250, 450 + at, question, null, PASS)) / rollouts
        yield guaranteed("null", f"worse by the margin, passed: {name}", share, pairs.BETA, rollouts)


def _wrong(rollouts: int, seed: int, question: Question, null: Array, end: int) -> int:
    kinds = pairs.drawn(np.random.default_rng(seed), null, rollouts, 10_000)
    return int(np.isfinite(pairs.needed(kinds, question, end)).sum())


def beside_two_samples(opened: Pool, rollouts: int) -> Iterator[Row]:
    """The same answers, once with and once without what belongs together."""
    for at, (p0, p1, mended) in enumerate(
        ((0.05, 0.06, 0.05), (0.05, 0.07, 0.05), (0.10, 0.12, 0.05), (0.02, 0.07, 0.05), (0.05, 0.07, None))
    ):
        parts = opened.batches(paired_and_two_sample, rollouts, 50, 500 + at, p0, p1, mended)
        paired, other = (float(np.median(each)) for each in np.concatenate(parts, axis=1))
        agreement = "strong agreement" if mended else "independent errors"
        if mended is None:
            limit, held = f"≤ {INDEPENDENT} x two-sample", paired <= INDEPENDENT * other
        else:
            strong = p0 != 0.02  # most of an increase of 5 points on 2 % is news to either evidence
            limit, held = ("≥ 4x fewer", other >= 4 * paired) if strong else ("", None)
        yield Row(
            "pairs",
            f"{agreement}, {100 * p0:g} → {100 * p1:g} %: median requests",
            limit,
            f"{paired:,.0f}, two-sample {other:,.0f}: {other / paired:.2f}x fewer",
            held,
            value=other / paired,
        )


def budgets(opened: Pool, rollouts: int) -> Iterator[Row]:
    """No baseline: the candidate's own rate and a budget, beside the Bernoulli bound."""
    for at, (budget, rate) in enumerate(
        ((0.01, 0.03), (0.05, 0.08), (0.05, 0.1), (0.05, 0.3), (0.05, 0.02), (0.05, 0.035), (0.2, 0.1))
    ):
        end = FAIL if rate > budget else PASS
        question = Question(relative=0.0, absolute=budget, margin=budget, prior=budget)
        truth = np.array([1 - rate, rate, 0.0, 0.0])
        ours, oracle = np.concatenate(
            opened.batches(_delays, rollouts, 100, 600 + at, question, truth, end), axis=1
        )
        bound = pairs.bound_on_units(truth, question, end)
        ratio = ours.mean() / oracle.mean()
        yield Row(
            "budget",
            f"budget {100 * budget:g} %, rate {100 * rate:g} %, {_word(end)}: mean units",
            f"≤ {BY_ORACLE:g} x oracle",
            f"{ours.mean():.0f} = {ours.mean() / bound:.2f} x bound, {ratio:.2f} x oracle",
            bool(ratio <= BY_ORACLE),
            value=float(ours.mean() / bound),
        )


def _delays(rollouts: int, seed: int, question: Question, truth: Array, end: int) -> tuple[Array, Array]:
    length = math.ceil(12 * pairs.bound_on_units(truth, question, end)) + 50
    kinds = pairs.drawn(np.random.default_rng(seed), truth, rollouts, length)
    ours = np.nan_to_num(pairs.needed(kinds, question, end), nan=np.inf)
    return ours, pairs.needed_by_oracle(kinds, truth, question, end)


def late(opened: Pool, rollouts: int) -> Iterator[Row]:
    """A fault that begins after so many seconds of a good candidate; one that failed (wrongly) before is not counted as found."""
    good, bad = pairs.joint(0.07, 0.07, mended=0.2), pairs.joint(0.07, 0.2, mended=0.2)
    for onset in (0, 100, 1000, 5000):
        parts = opened.batches(_late, rollouts, 100, 700, good, bad, onset)
        units = np.concatenate(parts)
        yield Row(
            "late",
            f"  compare: 7 → 20 % from second {onset} on: mean units to the fail",
            "",
            f"{np.nanmean(units):.0f}, {percent(float(np.isfinite(units).mean()))} found",
            None,
            value=float(np.nanmean(units)),
        )


def _late(rollouts: int, seed: int, good: Array, bad: Array, onset: int) -> Array:
    rng = np.random.default_rng(seed)
    kinds = np.concatenate(
        [pairs.drawn(rng, good, rollouts, onset), pairs.drawn(rng, bad, rollouts, 2_000)], axis=1
    )
    units = pairs.needed(kinds, Question(prior=0.07), FAIL) - onset
    return np.where(units > 0, units, np.nan)


def speed(blocks: int = 1000) -> Iterator[Row]:
    """Milliseconds for one block and one reading of the verdict: five components, one rollout."""
    five = np.ones(5)
    rng = np.random.default_rng(800)
    cells = rng.multinomial(1000, [0.9, 0.03, 0.03, 0.04], (blocks, 5)).transpose(0, 2, 1).astype(float)
    y0, y1 = rng.random((2, 50, 5))
    flags, known = rng.random((2, 1000, 5)) < 0.05, np.ones((1000, 5), dtype=bool)
    feeds: dict[str, Callable[[PairedPanel, int], None]] = {
        "1,000 pairs, counted": lambda panel, at: panel.add_cells(cells[at], at * 0.1),
        "1,000 pairs, bad or not": lambda panel, at: panel.add(flags[0], flags[1], known, at * 0.1),
        "50 pairs of scores": lambda panel, at: panel.add(y0, y1, known[:50], at * 0.1),
    }
    for name, feed in feeds.items():
        panel = PairedPanel(
            1.1 * five, 0.001 * five, 0.005 * five[None], five / 5, alpha=0.01, beta=0.05, prior=0.05 * five
        )
        panel.begin(0, 0.0)
        taken = []
        for at in range(blocks):
            began = time.perf_counter()
            feed(panel, at)
            panel.results()
            taken.append(1000 * (time.perf_counter() - began))
        middle = float(np.median(taken))
        yield Row(
            "speed",
            f"a block of {name}, five components: median",
            f"≤ {MILLISECONDS:g} ms",
            f"{middle:.2f} ms (95 %: {np.percentile(taken, 95):.2f} ms)",
            middle <= MILLISECONDS,
            value=middle,
        )


def _word(end: int) -> str:
    return "fails" if end == FAIL else "passes"


def main(arguments: list[str]) -> int:
    """Prints the table as it grows and writes it; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="How soon and how safely a shadow judges pairs.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of rollouts")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of CIFAR-10H votes and predictions")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    began, table = time.perf_counter(), []
    with pool(chosen.jobs) as opened:
        for row in rows(opened, lambda count: max(20, int(count * chosen.scale)), chosen.data):
            word = "" if row.held is None else "held" if row.held else "MISSED"
            print(f"{row.target:<7} {word:<7} {row.what:<88} {row.limit:<30} {row.reached}", flush=True)
            table.append(row)
    missed = [row for row in table if row.held is not None and not row.held]
    taken = round(time.perf_counter() - began)
    print(f"\n{len(table)} rows, {len(missed)} missed, {taken} s, {chosen.jobs} jobs")
    machine = {"python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count()}
    result = {
        "machine": machine,
        "seconds": taken,
        "scale": chosen.scale,
        "rows": [row.shown() for row in table],
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
