"""Models in service: the pyfunc made from a run, the gate, the registry, the endpoint, batch inference, receipts."""

from serving.batch import BatchReport, batch_infer, score_pool
from serving.errors import ServingError
from serving.gate import Evidence, evaluate
from serving.receipt import Receipt, receipt
from serving.registry import Registry

__all__ = [
    "BatchReport",
    "Evidence",
    "Receipt",
    "Registry",
    "ServingError",
    "batch_infer",
    "evaluate",
    "receipt",
    "score_pool",
]
