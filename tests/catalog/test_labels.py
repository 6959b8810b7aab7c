import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catalog import Archive, CatalogError, LabelRevision, LabelSet, Submission, current, mask, submit
from catalog import labels as events
from catalog.disk import TEMPORARY
from catalog.labels import LabelTaken

Stored = Callable[..., tuple[Archive, str]]


def handed_in(archive: Archive, uid: str, value: int = 1, **changed: object) -> Submission:
    """Voxels of one structure (or none, value 0), the other absent."""
    like = archive.volume(uid)
    array = np.zeros(like.spatial_shape, np.uint8)
    array[2:4, 3:6, 4:8] = value
    states = {"Liver": "present" if value == 1 else "absent", "Spleen": "present" if value == 7 else "not_annotated"}
    return replace(Submission(uid, like.with_array(array), states, "Anna"), **changed)  # type: ignore[arg-type]


def rows(archive: Archive) -> int:
    return int(archive.sql("SELECT count(*) n FROM labels")["n"][0].as_py())


def test_a_label_is_a_segmentation_and_an_event(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    given = handed_in(archive, uid, seconds=12.5, suggested_by="abdomen/3", voxels_changed=4)
    revision = submit(archive, "p", labels, given)
    assert isinstance(revision, LabelRevision)
    assert (revision.series_uid, revision.patient_id, revision.author) == (uid, "P1", "Anna")
    assert (revision.seconds, revision.suggested_by, revision.voxels_changed) == (12.5, "abdomen/3", 4)
    assert dict(revision.states) == {"Liver": "present", "Spleen": "not_annotated"}
    np.testing.assert_array_equal(mask(archive, revision, labels).array, given.mask.array)
    found = archive.sql(f"SELECT Modality FROM instances WHERE SOPInstanceUID = '{revision.seg_uid}'")
    assert found.to_pylist() == [{"Modality": "SEG"}]


def test_an_empty_label_is_an_answer(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    revision = submit(archive, "p", labels, handed_in(archive, uid, value=0))
    assert not mask(archive, revision, labels).array.any()


def test_the_same_label_id_adds_nothing(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    first = submit(archive, "p", labels, handed_in(archive, uid), label_id="L")
    before = archive.objects.version(), archive.labels.version()
    assert submit(archive, "p", labels, handed_in(archive, uid, seconds=99.0, voxels_changed=4), label_id="L") == first
    assert (archive.objects.version(), archive.labels.version()) == before


def test_another_label_under_an_id_is_refused(stored: Stored, labels: LabelSet) -> None:
    """Whoever handed it in would be told that it is stored, and it would be lost."""
    archive, uid = stored()
    first = handed_in(archive, uid)
    submit(archive, "p", labels, first, label_id="L")
    moved = first.mask.with_array(np.roll(first.mask.array, 1, axis=2))
    for other, says in [
        (replace(first, mask=moved), "another mask"),
        (replace(first, author="Bela"), "another author"),
        (replace(first, status="draft"), "another status"),
        (replace(first, suggested_by="m/1"), "another suggested_by"),
        (handed_in(archive, uid, value=7), "another states"),
    ]:
        with pytest.raises(LabelTaken, match=rf"label L: a label of {says} is there under this id \(give .* a new id\)"):
            submit(archive, "p", labels, other, label_id="L")
    with pytest.raises(LabelTaken, match="another project"):
        submit(archive, "q", labels, first, label_id="L")
    assert rows(archive) == 1


def test_of_several_at_once_with_one_id_one_is_stored_and_the_others_are_refused(
    stored: Stored, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, uid = stored()
    given = {name: handed_in(archive, uid, value=value, author=name) for name, value in (("Anna", 1), ("Bela", 7), ("Cleo", 0))}
    ready, measured = threading.Barrier(len(given), timeout=60), events._measured

    def together(*told: object) -> object:
        found = measured(*told)  # type: ignore[arg-type]
        ready.wait()
        return found

    monkeypatch.setattr(events, "_measured", together)
    for label_id in ("L", "M", "N"):
        with ThreadPoolExecutor(len(given)) as pool:
            every = [pool.submit(submit, Archive(archive.home), "p", labels, one, label_id=label_id) for one in given.values()]
        revision = events.revision(archive, label_id)
        assert revision is not None
        assert [one.result() for one in every if not one.exception()] == [revision]
        assert [type(one.exception()) for one in every if one.exception()] == [LabelTaken] * (len(given) - 1)
        np.testing.assert_array_equal(mask(archive, revision, labels).array, given[revision.author].mask.array)
    assert rows(archive) == 3


def test_current_is_the_latest_as_of_a_version(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    first = submit(archive, "p", labels, handed_in(archive, uid))
    as_of = archive.labels.version()
    second = submit(archive, "p", labels, handed_in(archive, uid, value=7, parent=first.label_id))
    submit(archive, "p", labels, handed_in(archive, uid, value=0, parent=second.label_id, status="draft"))
    submit(archive, "other", labels, handed_in(archive, uid, value=0))
    assert current(archive, "p")[uid] == second
    assert current(archive, "p", version=as_of)[uid] == first
    assert current(archive, "p", drafts=True)[uid].status == "draft"
    assert second.parent == first.label_id and second.created_at > first.created_at
    np.testing.assert_array_equal(mask(archive, first, labels).array, handed_in(archive, uid).mask.array)


def test_what_contradicts_itself_is_refused(stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    good = handed_in(archive, uid)
    moved = good.mask.affine.copy()
    moved[0, 3] += 1
    for bad, why in [
        (replace(good, states={"Liver": "absent", "Spleen": "absent"}), "said to be absent but has voxels"),
        (replace(good, states={"Liver": "present", "Spleen": "present"}), "has no voxels"),
        (replace(good, states={"Liver": "present"}), "do not fit"),
        (replace(good, states={"Liver": "present", "Spleen": "perhaps"}), "do not fit"),
        (replace(good, parent="nobody"), "no revision of this series"),
        (replace(good, status="final"), "no status"),
        (replace(good, series_uid="1.2.3"), "no such series"),
        (replace(good, mask=good.mask[:3]), "grid"),
        (replace(good, mask=type(good.mask)(good.mask.array, moved, "PATIENT")), "grid"),
    ]:
        with pytest.raises(CatalogError, match=why):
            submit(archive, "p", labels, bad)
    assert archive.labels.version() == -1
    assert not (archive.home / "volume" / "labels").exists()


@pytest.mark.slow
def test_another_mask_under_a_stored_uid_is_refused(stored: Stored, labels: LabelSet) -> None:
    """A crash before the event leaves the file; whoever submits that id again must mean the same mask."""
    archive, uid = stored()
    _die(archive.home, uid, labels, "label_rows")
    with pytest.raises(CatalogError, match="other pixels"):
        submit(archive, "p", labels, handed_in(archive, uid, value=7), label_id="L")
    submit(archive, "p", labels, handed_in(archive, uid), label_id="L")
    assert rows(archive) == 1


@pytest.mark.slow
@pytest.mark.parametrize("where", ["put", "catalogue", "label_rows"])
def test_finish_mends_what_a_kill_left(where: str, stored: Stored, labels: LabelSet) -> None:
    archive, uid = stored()
    _die(archive.home, uid, labels, where)
    archive = Archive(archive.home)
    done = archive.finish()
    assert archive.finish() == []
    assert not list((archive.home / "journal").iterdir())
    files = list((archive.home / "volume" / "labels").rglob("*.*"))
    if where == "put":
        assert any("L" in line for line in done) and rows(archive) == 0 and not [f for f in files if f.is_file()]
        return
    revision = current(archive, "p")[uid]
    assert revision.label_id == "L" and rows(archive) == 1
    np.testing.assert_array_equal(mask(archive, revision, labels).array, handed_in(archive, uid).mask.array)
    assert submit(archive, "p", labels, handed_in(archive, uid), label_id="L") == revision


def _die(home: Path, uid: str, labels: LabelSet, where: str) -> None:
    """Submit label L in a process that is killed by SIGKILL as it enters the function ``where``."""
    process = multiprocessing.get_context("spawn").Process(target=_submit_and_die, args=(home, uid, labels, where))
    process.start()
    process.join(120)
    assert process.exitcode == -9


def _submit_and_die(home: Path, uid: str, labels: LabelSet, where: str) -> None:
    import os
    import signal

    import catalog.labels
    import catalog.store

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(path: Path) -> object:
        if "volume" not in path.parts:
            return whole(path)
        path.parent.mkdir(parents=True)
        path.with_name(f"{TEMPORARY}1-{path.name}").write_bytes(b"half")
        return die()

    whole = catalog.store.atomic_file
    if where == "put":
        catalog.store.atomic_file = half  # type: ignore[assignment]
    elif where == "catalogue":
        catalog.store.catalogue = die  # type: ignore[assignment]
    else:
        catalog.labels.label_rows = die  # type: ignore[assignment]
    archive = Archive(home)
    submit(archive, "p", labels, handed_in(archive, uid), label_id="L")
