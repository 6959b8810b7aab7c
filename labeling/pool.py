"""What a reader is offered next: the series of a project that nobody has labelled, by a strategy."""

import hashlib
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from catalog import Archive, Project, current, freeze, quoted
from labeling.errors import LabelingError
from labeling.strategies import EntropyStrategy, RandomStrategy, Strategy

__all__ = ["REFERENCE", "STRATEGIES", "Offer", "Pool"]

STRATEGIES: dict[str, Strategy] = {"entropy": EntropyStrategy(), "random": RandomStrategy()}
"""Those that choose among the patients that train."""

REFERENCE = "reference"
"""The patients that validate and are held out, by series UID: the gate needs their labels."""

OPEN = 1800.0
"""Seconds for which what one reader was offered is not offered to another."""


@dataclass(frozen=True)
class Offer:
    """A series to label; ``reason`` says why this one, ``score`` is what it was chosen by (None: by nothing)."""

    series: str
    study: str
    patient: str
    strategy: str
    reason: str
    score: float | None


@dataclass(frozen=True)
class Left:
    """Unlabelled series: of patients that train, and of those that validate or are held out."""

    train: int
    reference: int


@dataclass(frozen=True)
class _Chosen:
    series: str
    score: float | None
    reason: str


class Pool:
    """The unlabelled series of projects. Remembers, in memory, whom it offered what."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._offered: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()

    def next(
        self, project: Project, *, strategy: str = "", skip: Collection[str] = (), author: str = ""
    ) -> tuple[Offer | None, Left]:
        """The first by the strategy that is not in ``skip`` and not open with another author, and how many are left.

        Without a strategy it is entropy, or at random as long as nothing is scored. LabelingError where there is no such one.
        """
        if strategy not in ("", REFERENCE, *STRATEGIES):
            named = ", ".join((*STRATEGIES, REFERENCE))
            raise LabelingError(f"no strategy {strategy!r}", about=f"project {project.key}", remedy=f"one of {named}")
        roles, known = freeze(self._archive, project), current(self._archive, project.key)
        train = [uid for uid, role in roles.items() if role == "train" and uid not in known]
        reference = sorted(uid for uid, role in roles.items() if role != "train" and uid not in known)
        left = Left(len(train), len(reference))
        with self._lock:
            skip = {*skip, *self._open(project, author)}
            if strategy == REFERENCE:
                order = [_Chosen(uid, None, f"its patient is of the {roles[uid]}") for uid in reference]
            else:
                strategy, order = self._ordered(project, strategy, train)
            chosen = next((choice for choice in order if choice.series not in skip), None)
            if chosen is None:
                return None, left
            self._offered[project.key, chosen.series] = (author, time.monotonic())
        case = next(case for case in project.cases(self._archive) if case.series_uid == chosen.series)
        return Offer(chosen.series, case.study_uid, case.patient_id, strategy, chosen.reason, chosen.score), left

    def _ordered(self, project: Project, strategy: str, pool: list[str]) -> tuple[str, list["_Chosen"]]:
        entropy = self._entropy(project)
        strategy = strategy or ("entropy" if any(uid in entropy for uid in pool) else "random")
        table = pa.table({"series_uid": pool, "entropy": pa.array([entropy.get(uid) for uid in pool], pa.float64())})
        seed = int.from_bytes(hashlib.sha256(project.split.seed.encode()).digest()[:4], "big")
        order = []
        for choice in STRATEGIES[strategy].choose(table, len(pool), seed=seed):
            score = entropy.get(choice.series_uid)
            reason = _UNSCORED if strategy == "entropy" and score is None else choice.reason
            order.append(_Chosen(choice.series_uid, score, reason))
        return strategy, order

    def _entropy(self, project: Project) -> dict[str, float]:
        """Series → predictive entropy, by the model version that scored last."""
        where = f"project = {quoted(project.key)} AND kind = 'entropy'"
        rows = self._archive.scores.scan(["series_uid", "value", "model_version", "created_at"], where=where).read_all()
        found = sorted(rows.to_pylist(), key=lambda row: row["created_at"])
        return {row["series_uid"]: row["value"] for row in found if row["model_version"] == found[-1]["model_version"]}

    def _open(self, project: Project, author: str) -> set[str]:
        """What other authors were offered lately."""
        now = time.monotonic()
        self._offered = {key: told for key, told in self._offered.items() if told[1] > now - OPEN}
        return {series for (key, series), (whose, _) in self._offered.items() if key == project.key and whose != author}


_UNSCORED = "not scored yet"
