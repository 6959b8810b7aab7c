"""Transformers over the files that ``Catalog.catalog`` lists, for a ``pyspark.ml.Pipeline``."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.ml import Transformer
from pyspark.sql import functions
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from catalog.listing import PATHS, as_listed
from catalog.objects import rows
from catalog.schemas import OBJECTS
from catalog.thumbnail_extractor import DicomThumbnailExtractor

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from catalog.catalog import Catalog

__all__ = ["DicomMetaExtractor", "DicomThumbnailExtractor"]

_HEADER = pa.schema([field for field in OBJECTS if field.name not in PATHS.names or field.name in ("file_type", "error")])


class DicomMetaExtractor(Transformer):
    """Adds what each file's header says: ``meta`` (DICOM JSON, PS3.18 §F), the typed columns, ``status`` and ``error``.

    ``meta`` is VARIANT, or with ``useVariant`` false a string; ``deep`` reads the pixels too: their hash, smallest, largest
    and mean stored value, and shape. No row is lost: a file that is not DICOM or is broken has a ``status`` that says so; only
    one that is still being written is left for the next run.
    """

    def __init__(self, catalog: "Catalog", deep: bool = False, useVariant: bool = True) -> None:
        super().__init__()
        self.catalog, self.deep, self.use_variant = catalog, deep, useVariant

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        given = to_arrow_schema(dataset.schema, timezone="UTC")
        kept = [field for field in given if field.name not in _HEADER.names]
        schema = pa.schema([*kept, *_HEADER])
        found = dataset.mapInArrow(_extract(schema, self.deep), from_arrow_schema(schema))
        if not self.use_variant:
            return found
        return found.withColumn("meta", functions.parse_json("meta"))


def _extract(schema: pa.Schema, deep: bool) -> "Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]":
    def extract(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            parsed = rows(as_listed(batch), "/", deep=deep, settled=0)
            kept = batch.filter(pc.is_in(batch["path"], parsed["path"].combine_chunks()))
            own = set(_HEADER.names)
            columns = [parsed[n].combine_chunks() if n in own else kept[n] for n in schema.names]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return extract
