"""From a finished run to answers: the gate, the registry, the endpoint, batch inference, receipts.

What needs torch or MLflow imports it when it is used; the endpoint is ``serving.endpoint.serve``.
"""

from serving.batch import BatchReport, batch_infer, score_pool
from serving.errors import ServingError
from serving.gate import Comparison, Evidence, evaluate, judge
from serving.receipt import Receipt, receipt
from serving.registry import Registry
from serving.request import Item, parse

__all__ = [
    "BatchReport",
    "Comparison",
    "Evidence",
    "Item",
    "Receipt",
    "Registry",
    "ServingError",
    "batch_infer",
    "evaluate",
    "judge",
    "parse",
    "receipt",
    "score_pool",
]
