"""How a server spreads its work over the cores: chosen by the benchmark, handed to the serving code through the environment."""

import os
from dataclasses import dataclass
from typing import Self

MAX_BATCH_SIZE = {"encoder": 32, "resnet50": 8}
"""Most inputs in one run, for every system: what NormScope's default limits allow at 224 px."""


@dataclass(frozen=True)
class Arrangement:
    """Processes that run the model, threads of a run in each, and how long a batch waits for more."""

    workers: int
    """processes; 0: the process that also speaks HTTP, where a system can do that"""
    threads: int
    """of one run of ONNX Runtime"""
    spinning: bool = False
    """threads of ONNX Runtime burn their core while they wait for work"""
    wait_ms: float = 1
    """longest time that a batch waits for more inputs"""

    @classmethod
    def read(cls) -> Self:
        """The arrangement that the benchmark asks for."""
        env = os.environ
        return cls(
            workers=int(env["BENCH_WORKERS"]),
            threads=int(env["BENCH_THREADS"]),
            spinning=env["BENCH_SPINNING"] == "1",
            wait_ms=float(env["BENCH_WAIT_MS"]),
        )

    @property
    def environment(self) -> dict[str, str]:
        """What `read` reads."""
        return {
            "BENCH_WORKERS": str(self.workers),
            "BENCH_THREADS": str(self.threads),
            "BENCH_SPINNING": str(int(self.spinning)),
            "BENCH_WAIT_MS": str(self.wait_ms),
        }

    def __str__(self) -> str:
        spinning = ", spinning" if self.spinning else ""
        return f"{self.workers} x {self.threads}{spinning}, wait {self.wait_ms:g} ms"
