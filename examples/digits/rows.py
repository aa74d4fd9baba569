"""Scikit-learn's handwritten digits, parted once and for all: even rows train, odd rows are held out.

Nothing that is trained may see a held-out row; nothing that is measured or sent as traffic may be a trained one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits


@dataclass(frozen=True, slots=True)
class Rows:
    """`pixels` are float32 [rows, 64] from 0 to 16, `labels` what people read, 0 to 9."""

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def every(self, stride: int) -> Rows:
        """A thinner set: one row in `stride`."""
        return Rows(self.pixels[::stride], self.labels[::stride])


def training_rows() -> Rows:
    """The 899 rows that models may learn from."""
    return _all_rows().every(2)


def holdout_rows() -> Rows:
    """The 898 rows that models are measured on and that the traffic is made of."""
    rows = _all_rows()
    return Rows(rows.pixels[1::2], rows.labels[1::2])


def _all_rows() -> Rows:
    digits = load_digits()
    return Rows(np.asarray(digits.data, dtype=np.float32), np.asarray(digits.target, dtype=np.int64))
