"""What a run takes of the machine: processor, memory and GPU, sampled by a thread of its own so that no step waits.

Names are those under which MLflow's pages show system metrics.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from importlib.util import find_spec
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two samples at first."""
SHARE = 1 / 500
"""Of the time gone by: no two samples lie closer. Of an hour there are 1,100, of a week 3,600."""


class Usage:
    """Samples this process and its machine until it is closed. What comes of a sampling that fails is a log line."""

    def __init__(self, device: torch.device | None = None, every: float = EVERY) -> None:
        """`device`: whose GPU counters are read where it is one; utilisation where nvidia-ml-py is installed."""
        self.device, self.every = device, every
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pairstream-usage", daemon=True)
        self._thread.start()

    def take(self) -> dict[str, float]:
        """The means of all samples since it was last asked, {} where there were none. Never waits for a sample.

        `system/cpu_utilization_percentage` is of all cores, `system/process_cpu_…` this process's part of them;
        `…_memory_usage_megabytes` are 10^6 bytes.
        """
        with self._lock:
            samples, self._samples = self._samples, defaultdict(list)
        return {f"system/{name}": sum(values) / len(values) for name, values in samples.items()}

    def close(self) -> None:
        """End the thread, which may be in the midst of a sample: wait a second for it."""
        self._stop.set()
        self._thread.join(1)

    def _watch(self) -> None:
        started, process = time.monotonic(), psutil.Process()
        try:
            _sample(process, self.device)  # shares of time are told since the last time they were asked for
            while not self._stop.wait(pause(self.every, time.monotonic() - started)):
                sample = _sample(process, self.device)
                with self._lock:
                    for name, value in sample.items():
                        self._samples[name].append(value)
        except Exception as error:  # a driver's, of a file system that is gone: the run must not end of it
            log.warning("no more system metrics: %s: %s", type(error).__name__, error)


def pause(every: float, gone_by: float) -> float:
    """Seconds to the next sample of a run that has gone on for so many."""
    return max(every, SHARE * gone_by)


def _sample(process: psutil.Process, device: torch.device | None) -> dict[str, float]:
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "process_cpu_utilization_percentage": process.cpu_percent() / (psutil.cpu_count() or 1),
        "system_memory_usage_percentage": psutil.virtual_memory().percent,
        "process_memory_usage_megabytes": process.memory_info().rss / 1e6,
    }
    if device is not None and device.type == "cuda":
        import torch

        values["process_gpu_memory_usage_megabytes"] = torch.cuda.memory_reserved(device) / 1e6
        if find_spec("pynvml"):
            values["gpu_utilization_percentage"] = float(torch.cuda.utilization(device))
    return values
