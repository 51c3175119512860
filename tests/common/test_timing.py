import time

import jax
import jax.numpy as jnp
import pytest

from moe_vision.common.timing import Compiling, compiling


def test_what_lies_inside_another_event_counts_once(monkeypatch):
    at = iter([3.0, 5.0, 6.0, 9.0, 9.5])
    monkeypatch.setattr(time, 'monotonic', lambda: next(at))
    made = Compiling()
    made('/jax/core/compile/jaxpr_trace_duration', 1.0)  # 2 to 3
    made('/jax/core/compile/jaxpr_trace_duration', 1.0)  # 4 to 5
    made('/jax/core/compile/jaxpr_trace_duration', 5.0)  # 1 to 6, with both
    made('/jax/core/compile/backend_compile_duration', 2.0, fun_name='f')  # 7 to 9
    assert made.spans == [(1.0, 6.0), (7.0, 9.0)] and made.seconds == 7.0
    made('/jax/checkpoint/write/duration', 9.0)
    assert made.seconds == 7.0
    made('/jax/core/compile/backend_compile_duration', 1.0)  # 8.5 to 9.5: half of it is new
    assert made.seconds == 7.5


def test_a_new_program_counts_and_an_old_one_does_not():
    made = compiling()
    assert compiling() is made
    f, before, began = jax.jit(lambda x: jnp.sin(x) * 3.25), made.seconds, time.monotonic()
    f(jnp.ones(7)).block_until_ready()
    took = made.seconds - before
    assert 0 < took <= time.monotonic() - began
    f(jnp.ones(7)).block_until_ready()
    assert made.seconds - before == pytest.approx(took)
