"""Query strategies: which unlabelled series a reader should see next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from labeling.errors import LabelingError

__all__ = ["Choice", "EntropyStrategy", "RandomStrategy", "Strategy"]


@dataclass(frozen=True)
class Choice:
    """One series to label next, the score it was chosen by and the reason in words."""

    series_uid: str
    score: float
    reason: str


class Strategy(Protocol):
    """Chooses from a pool. The same pool, ``k`` and ``seed`` give the same choices."""

    def choose(self, pool: pa.Table, k: int, *, seed: int) -> Sequence[Choice]:
        """At most ``k`` distinct series of ``pool``, best first; all of them where the pool is smaller.

        ``pool`` has a row a series: ``series_uid`` (string), and ``entropy`` (float64, mean predictive entropy in nats,
        null where the series has not been scored).
        """
        ...


class RandomStrategy:
    """Any series, each as likely: for the first round, when no model exists, and as the study's baseline."""

    def choose(self, pool: pa.Table, k: int, *, seed: int) -> Sequence[Choice]:
        """See Strategy."""
        uids = _uids(pool)
        order = np.random.default_rng(seed).permutation(len(uids))[:k]
        return [Choice(uids[i], 0.0, "drawn at random") for i in order]


class EntropyStrategy:
    """The series whose voxels the model is least sure of (uncertainty sampling, Settles 2009, §3.1); unscored ones last."""

    def choose(self, pool: pa.Table, k: int, *, seed: int) -> Sequence[Choice]:
        """See Strategy; ``seed`` orders series of equal entropy."""
        uids = _uids(pool)
        if "entropy" not in pool.column_names:
            raise LabelingError("the pool has no entropy", remedy="score the pool before choosing by it")
        entropy = [-1.0 if value is None else float(value) for value in pool["entropy"].to_pylist()]
        shuffled = np.random.default_rng(seed).permutation(len(uids))
        order = sorted(shuffled, key=lambda i: -entropy[i])[:k]
        return [Choice(uids[i], entropy[i], f"predictive entropy {entropy[i]:.4f} nats") for i in order]


def _uids(pool: pa.Table) -> list[str]:
    """The pool's series in an order of their own, so that the rows' order does not matter."""
    if "series_uid" not in pool.column_names:
        raise LabelingError("the pool has no series_uid", remedy="give a row a series")
    uids = [str(uid) for uid in pool["series_uid"].to_pylist()]
    if len(set(uids)) < len(uids):
        raise LabelingError("a series is in the pool twice", about=next(uid for uid in uids if uids.count(uid) > 1))
    return uids
