"""What every test runs under: one thread a process, so that two cores are not oversubscribed, and a
Ray that listens on this machine only and sends no usage statistics. Set before torch and Ray load.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
