"""Reading a dataset's files with nothing but pyarrow, NumPy and torch: no petastorm, no copies, no order, no checks."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

__all__ = ["tensors"]


def tensors(folder: Path) -> Iterator[torch.Tensor]:
    """Every array of every row, file by file."""
    for path in sorted(folder.glob("*.parquet")):
        table = pq.ParquetFile(path).read()  # faster than read_table
        for column in table.columns:
            if pa.types.is_binary(column.type):
                yield from (_tensor(cell.as_buffer()) for cell in column if cell.is_valid)


def _tensor(cell: pa.Buffer) -> torch.Tensor:
    header = io.BytesIO(cell[:256])
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only
        return torch.from_numpy(np.frombuffer(cell, dtype, offset=header.tell()).reshape(shape))
