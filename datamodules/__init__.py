"""From labelled series to what a network sees: the plan, the one preprocessing, datasets, the data module."""

from datamodules.cases import LabelledCase
from datamodules.dataset import DatasetInfo, build
from datamodules.errors import DataError
from datamodules.fingerprint import Fingerprint
from datamodules.plan import Plan

__all__ = ["DataError", "DatasetInfo", "Fingerprint", "LabelledCase", "Plan", "build"]
