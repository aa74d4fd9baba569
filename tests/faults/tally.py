"""What the faults did, counted: the table at the end of `make faults`."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Row:
    """One kind of fault: how often it was tried, how often something was wrong after it, and what is worth a word."""

    tried: int = 0
    violations: int = 0
    words: list[str] = field(default_factory=list)


class Tally:
    """Every kind of fault of one test run."""

    def __init__(self):
        self.rows: dict[str, Row] = {}
        self.asked: Counter[str] = Counter()

    def count(self, what, tried, violations=0, words=""):
        """Add to the row of this kind of fault. A test still asserts that nothing was violated: this only says it."""
        row = self.rows.setdefault(what, Row())
        row.tried += tried
        row.violations += violations
        if words:
            row.words.append(words)

    def lines(self):
        """The table as text."""
        width = max(len(what) for what in self.rows)
        yield f"{'fault':<{width}}  {'tried':>9}  violations"
        for what, row in self.rows.items():
            words = "; ".join(row.words)
            yield f"{what:<{width}}  {row.tried:>9,}  {row.violations:>10,}  {words}".rstrip()
