"""Who trains, who validates, who is held out: by patient, in an order that a key fixes, never changed once recorded."""

import hashlib
import hmac
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from catalog._query import quoted
from catalog.project import Case, Project, Split
from catalog.schemas import SPLITS

if TYPE_CHECKING:
    from catalog.archive import Archive

__all__ = ["Role", "freeze", "units"]

Role = Literal["train", "validation", "holdout"]
Unit = tuple[str, Literal["patient", "study"]]


def units(cases: Iterable[Case], held: Collection[Unit] = ()) -> dict[str, Unit]:
    """Series UID → what is never torn apart: the patient whom the study's series name, all of them or some.

    It is the study, flagged by its kind, where they name no patient or several, and where ``held`` has it already.
    """
    cases = list(cases)
    named: dict[str, set[str]] = {}
    for case in cases:
        named.setdefault(_study(case), set()).update({case.patient_id.strip()} - {""})

    def unit(case: Case) -> Unit:
        study, patients = _study(case), named[_study(case)]
        return (study, "study") if len(patients) != 1 or (study, "study") in held else (next(iter(patients)), "patient")

    return {case.series_uid: unit(case) for case in cases}


def _study(case: Case) -> str:
    return case.study_uid or case.series_uid


def freeze(archive: "Archive", project: Project) -> dict[str, Role]:
    """Series UID → role for every case of the cohort.

    Roles that ``splits`` has stay for ever; newcomers are given theirs, in the order of HMAC-SHA256(seed, unit), so that
    holdout and validation have round(share x units) each, at least one where there are three units. A newcomer that shares
    a patient or a study with one that has a role, as where a study names two patients, is given the same.
    """
    cases = project.cases(archive)
    while True:
        held = _held(archive, project.key)
        found = units(cases, held)
        new = _assign(found.values(), held, project.split, _kin(cases, found))
        if not new:
            return {series_uid: held[unit] for series_uid, unit in found.items()}
        # The batch counts the units already held: of two who freeze at once one is a repeat, and reads what the other wrote.
        archive.splits.append(_rows(project.key, new), writer=f"split/{project.key}", batch=len(held))


def _kin(cases: Iterable[Case], found: Mapping[str, Unit]) -> dict[Unit, set[Unit]]:
    """Unit → the units that a patient joins with it: studies that stand for themselves and the patients whom they name."""
    kin: dict[Unit, set[Unit]] = {}
    for case in cases:
        unit = found[case.series_uid]
        patient: Unit = (case.patient_id.strip(), "patient")
        if patient[0] and unit != patient:
            joined = kin.get(unit, {unit}) | kin.get(patient, {patient})
            kin |= dict.fromkeys(joined, joined)
    return kin


def _assign(
    units: Iterable[Unit], held: Mapping[Unit, Role], split: Split, kin: Mapping[Unit, Collection[Unit]]
) -> dict[Unit, Role]:
    fresh = sorted({found for found in units if found not in held}, key=lambda found: _order(split.seed, found))
    total, roles = len(held) + len(fresh), list(held.values())
    lacking: dict[Role, int] = {
        "holdout": _quota(total, split.holdout) - roles.count("holdout"),
        "validation": _quota(total, split.validation) - roles.count("validation"),
    }
    assigned: dict[Unit, Role] = {}
    for found in fresh:
        given = {**held, **assigned}
        near = [given[unit] for unit in sorted(kin.get(found, ())) if unit in given]
        role: Role = near[0] if near else next((role for role, missing in lacking.items() if missing > 0), "train")
        if role != "train":
            lacking[role] -= 1
        assigned[found] = role
    return assigned


def _quota(total: int, share: float) -> int:
    return max(int(total * share + 0.5), 1 if share > 0 and total >= 3 else 0)


def _order(seed: str, found: Unit) -> bytes:
    return hmac.digest(seed.encode(), "\0".join(reversed(found)).encode(), hashlib.sha256)


def _held(archive: "Archive", key: str) -> dict[Unit, Role]:
    where = f"project = {quoted(key)}"
    rows = archive.splits.scan(["unit", "unit_kind", "role"], where=where).read_all().to_pylist()
    return {(row["unit"], row["unit_kind"]): row["role"] for row in rows}


def _rows(key: str, assigned: Mapping[Unit, Role]) -> pa.Table:
    now = datetime.now(UTC)
    rows = [
        {"project": key, "unit": name, "unit_kind": kind, "role": role, "created_at": now}
        for (name, kind), role in assigned.items()
    ]
    return pa.Table.from_pylist(rows, schema=SPLITS)
