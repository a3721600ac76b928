"""The times of one request."""

import asyncio

from service.engine.calls import Call


async def _call(inputs: int) -> Call:
    return Call(["text"] * inputs, statistics=False, timeout_s=1)


def test_times_of_inputs_that_ran_beside_each_other_do_not_exceed_the_time_that_passed() -> None:
    """Two runs of 10 ns at the same time, with half of the inputs each, count as 10 ns; two of one input as 20."""
    call = asyncio.run(_call(4))
    call.spend(2, infer_ns=10, output_ns=2)
    call.spend(2, infer_ns=10, output_ns=2)
    call.spend(4, input_ns=6)
    assert (call.input_ns, call.infer_ns, call.output_ns) == (6, 10, 2)
    single = asyncio.run(_call(1))
    single.spend(1, infer_ns=10)
    single.spend(1, infer_ns=10)
    assert single.infer_ns == 20
