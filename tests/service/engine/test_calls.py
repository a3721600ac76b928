"""The times of one request."""

import asyncio
import gc
import weakref

import numpy as np
from numpy.typing import NDArray

from service.engine.calls import Call, Job
from service.engine.outcomes import Outcome


async def _call(inputs: int) -> Call:
    return Call(inputs, statistics=False, timeout_s=1)


def test_times_of_inputs_that_ran_beside_each_other_do_not_exceed_the_time_that_passed() -> None:
    """Two runs of 400 ns at the same time, with half of the inputs each, count as 400 ns; two of one input as 800."""
    call = asyncio.run(_call(4))
    for _ in range(4):
        call.spend(input_ns=600, infer_ns=400, output_ns=200)
    assert (call.input_ns, call.infer_ns, call.output_ns) == (600, 400, 200)
    single = asyncio.run(_call(1))
    single.spend(infer_ns=400)
    single.spend(infer_ns=400)
    assert single.infer_ns == 800


def test_outcomes_go_as_soon_as_nobody_holds_them() -> None:
    """A call and its jobs are no ring: with statistics of all channels its outcomes are tens of megabytes."""

    async def answered() -> weakref.ref[NDArray[np.float32]]:
        call = Call(1, statistics=True, timeout_s=1)
        job = Job(call, 0, "text")
        assert call.finish(job.index, Outcome((np.zeros(2, np.float32),), None, None, False, None))
        call.resolve()
        (outcome,) = await call.future
        return weakref.ref(outcome.outputs[0])

    gc.disable()
    try:
        assert asyncio.run(answered())() is None
    finally:
        gc.enable()
