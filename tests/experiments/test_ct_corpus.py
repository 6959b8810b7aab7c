"""The corpus that ingest is measured on."""

from pathlib import Path

import pydicom

from catalog.walk import walk
from experiments.ct_corpus import ct_corpus


def test_every_instance_is_one_of_its_own_with_a_scanners_header(tmp_path: Path) -> None:
    files = sorted(ct_corpus(tmp_path, 130, pixels=16).rglob("IM*"))
    headers = [walk(file) for file in files]
    assert len(files) == 130 == len({header.first(0x00080018) for header in headers})
    assert (
        len({header.first(0x0020000E) for header in headers}) == 2
        and len({header.first(0x0020000D) for header in headers}) == 1
    )
    dataset = pydicom.dcmread(files[129])
    assert len(dataset) > 100 and dataset.InstanceNumber == 30 and dataset.ImagePositionPatient[2] == -43.5
    assert dataset.pixel_array.shape == (16, 16) and dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    first = next(ct_corpus(tmp_path, 3, pixels=16).rglob("IM*"))
    first.write_bytes(b"mine")
    assert next(ct_corpus(tmp_path, 3, pixels=16).rglob(first.name)).read_bytes() == b"mine"
