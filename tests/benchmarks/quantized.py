"""What 8 bits gain: `python -m tests.benchmarks.quantized NAME/VERSION NAME/VERSION-int8` prints how much faster that is.

Both run in every round, one after the other, each twice, of which the second run counts; the table shows the median of the ratios,
and their first and third quartile. Photos are noise: the time does not depend on them. The gain depends on the processor: it is
larger with VNNI.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime

from models.artifact import load_artifact
from models.statistics.layers import SideLayout
from service.engine.graph import prepare
from service.engine.session import Session
from service.engine.threads import available_cpus
from tests.benchmarks.rounds import measure

_SIDES, _BATCHES = (128, 224), (1, 8)


def main() -> None:
    """Prints one row for each extent and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    threads, vnni = available_cpus(), "vnni" in Path("/proc/cpuinfo").read_text()
    print(f"{threads} threads, {'with' if vnni else 'without'} VNNI, onnxruntime {onnxruntime.__version__}")
    artifacts = [load_artifact(folder) for folder in (arguments.artifact, arguments.quantized)]
    plain, quantized = (Session(prepare(artifact), threads) for artifact in artifacts)
    layout = SideLayout(tuple(artifacts[1].manifest.layers))
    watched = Session(prepare(artifacts[1], "cpu", layout.reductions, layout.pairs), threads)
    name = artifacts[0].manifest.inputs[0].name
    print("| pixels, batch | ms | ms, int8 | times as fast | ratio with statistics, int8 |\n| --- | --- | --- | --- | --- |")
    for side in _SIDES:
        for batch in _BATCHES:
            feed = {name: np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)}
            times = measure({"int8": quantized.run, "float": plain.run, "watched": watched.run}, [feed], arguments.rounds)
            milliseconds = f"{times.milliseconds('float'):.1f} | {times.milliseconds('int8'):.1f}"
            print(f"| {side}, {batch} | {milliseconds} | {times.ratio('float', 'int8')} | {times.ratio('watched', 'int8')} |")


if __name__ == "__main__":
    main()
