"""What is written is read: in any order, exactly, by plain petastorm too, and one volume at a time."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from datamodules._petastorm import samples, seal, write
from datamodules.sample import Sample

READ_TWO = """
import resource, sys
from pathlib import Path
from datamodules._petastorm import samples
for folder in map(Path, sys.argv[1:]):
    for _ in range(2):
        for sample in samples(folder):
            total = int(sample.image.sum())
    print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def sample(index: int, dtype: torch.dtype = torch.int16) -> Sample:
    """Two channels of 6×4×4 voxels that are all different."""
    image = (torch.arange(192) + 1000 * index).view(2, 6, 4, 4).to(dtype)
    states = torch.tensor([True, False])
    numbers = torch.tensor([[1.0, -5.0, 5.0, 0.5, 2.0]] * 2)
    mask = torch.arange(96, dtype=torch.uint8).view(6, 4, 4)
    centres = torch.tensor([[1, 0, 0, 1]], dtype=torch.int32)
    return Sample(f"c{index}", "s", "p", "l", image, numbers, mask, states, ~states, centres)


def same(one: Sample, other: Sample) -> bool:
    tensors = ("image", "intensity", "mask", "annotated", "present", "centres")
    texts = ("case", "study_uid", "patient_id", "label_id")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in tensors) and all(
        getattr(one, n) == getattr(other, n) for n in texts
    )


@pytest.mark.parametrize("block", [2**20, 300, 1], ids=["one block", "several", "one a slice"])
def test_samples_come_back_in_the_asked_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("datamodules._petastorm.BLOCK", block)
    written = [sample(index, torch.float32 if index % 2 else torch.int16) for index in range(4)]
    for index in (2, 0, 3, 1):
        write(tmp_path / f"{index}.parquet", written[index])
    assert seal(tmp_path) == 4
    for order in (None, [], [2, 0, 3, 2, 2], [3], np.array([1, 0])):
        wanted = range(4) if order is None else order
        found = list(samples(tmp_path, order))
        assert [one.case for one in found] == [f"c{index}" for index in wanted]
        assert [one.image.dtype for one in found] == [written[index].image.dtype for index in wanted]
        assert all(same(one, written[index]) for one, index in zip(found, wanted, strict=True))


def test_a_volume_is_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr("datamodules._petastorm.BLOCK", 150)
    write(tmp_path / "0.parquet", sample(0))
    told = pq.read_metadata(tmp_path / "0.parquet")
    assert (told.num_row_groups, told.num_rows) == (1, 3)
    cells = pq.read_table(tmp_path / "0.parquet")["image_int16"].to_pylist()
    assert [np.load(io.BytesIO(cell)).shape for cell in cells] == [(2, 2, 4, 4)] * 3


def test_no_centre_and_no_text_are_kept(tmp_path: Path) -> None:
    bare = replace(sample(1), case="é", study_uid="", centres=torch.zeros((0, 4), dtype=torch.int32))
    write(tmp_path / "0.parquet", bare)
    seal(tmp_path)
    [found] = samples(tmp_path)
    assert same(found, bare)


def test_plain_petastorm_reads_it(tmp_path: Path) -> None:
    from petastorm import make_reader

    for index in range(2):
        write(tmp_path / f"{index}.parquet", sample(index))
    seal(tmp_path)
    reader = make_reader(
        tmp_path.as_uri(), filesystem=LocalFileSystem(), reader_pool_type="dummy", shuffle_row_groups=False, num_epochs=1
    )
    rows = list(reader)
    reader.stop()
    reader.join()
    for row, index in zip(rows, range(2), strict=True):
        assert (row.case, row.blocks, row.image_float32) == (f"c{index}", 1, None)
        for name, kept in (("image_int16", "image"), ("mask", "mask"), ("intensity", "intensity"), ("centres", "centres")):
            assert np.array_equal(getattr(row, name), getattr(sample(index), kept).numpy())


@pytest.mark.slow
def test_ten_times_as_many_volumes_take_no_more_memory(tmp_path: Path) -> None:
    image = torch.arange(2**21).view(1, 32, 256, 256).to(torch.int16)
    volume = replace(sample(0), image=image, mask=torch.zeros(image.shape[1:], dtype=torch.uint8))
    write(tmp_path / "small" / "000.parquet", volume)
    (tmp_path / "large").mkdir()
    for folder, number in (("small", 6), ("large", 60)):
        for index in range(number):
            if not (tmp_path / folder / f"{index:03d}.parquet").exists():
                os.link(tmp_path / "small" / "000.parquet", tmp_path / folder / f"{index:03d}.parquet")
        seal(tmp_path / folder)
    command = [sys.executable, "-c", READ_TWO, str(tmp_path / "small"), str(tmp_path / "large")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (total, small), (again, large) = (map(int, line.split()) for line in lines)
    assert total == again == int(volume.image.sum())
    assert (large - small) * 1024 < volume.nbytes
