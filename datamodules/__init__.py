"""From labelled series to what a network sees: the plan, the one preprocessing, datasets, the data module."""

from datamodules.dataset import DatasetInfo, LabelledCase, build
from datamodules.errors import DataError
from datamodules.plan import Fingerprint, Plan

__all__ = ["DataError", "DatasetInfo", "Fingerprint", "LabelledCase", "Plan", "build"]
