"""Spark's Python worker daemon with torch and MONAI imported before it forks: workers share the pages and start at once.

Threads do not survive a fork, so nothing here may run a parallel operation; each worker computes on one thread, Spark
runs as many workers as there are cores.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import monai.inferers
import monai.networks.nets  # noqa: F401
import torch
from pyspark import daemon

if __name__ == "__main__":
    torch.set_num_threads(1)
    daemon.manager()
