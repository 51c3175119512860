"""Seconds of compiling count once, and only for new programs."""

import time

import jax
import jax.numpy as jnp
import pytest

from moe_vision.common.timing import PARTS, Compiling, compiling


def test_events_inside_another_event_count_once(monkeypatch):
    clock = iter([3.0, 5.0, 6.0, 9.0, 9.5])
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    compile_time = Compiling()
    compile_time('/jax/core/compile/jaxpr_trace_duration', 1.0)  # 2 to 3
    compile_time('/jax/core/compile/jaxpr_trace_duration', 1.0)  # 4 to 5
    compile_time('/jax/core/compile/jaxpr_trace_duration', 5.0)  # 1 to 6, with both
    compile_time('/jax/core/compile/backend_compile_duration', 2.0, fun_name='f')  # 7 to 9
    assert compile_time.spans == [(1.0, 6.0), (7.0, 9.0)] and compile_time.seconds == 7.0
    compile_time('/jax/checkpoint/write/duration', 9.0)
    assert compile_time.seconds == 7.0
    compile_time('/jax/core/compile/backend_compile_duration', 1.0)  # 8.5 to 9.5: half of it is new
    assert compile_time.seconds == 7.5


def test_a_part_counts_alone(monkeypatch):
    clock = iter([3.0, 9.0])
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    lowering = Compiling(PARTS['lowering'])
    for event in ('jaxpr_trace', 'jaxpr_to_mlir_module', 'backend_compile'):
        lowering(f'/jax/core/compile/{event}_duration', 1.5)
    assert lowering.spans == [(1.5, 3.0)]


def test_only_new_programs_count():
    compile_time = compiling()
    assert compiling() is compile_time
    f, before, began = jax.jit(lambda x: jnp.sin(x) * 3.25), compile_time.seconds, time.monotonic()
    f(jnp.ones(7)).block_until_ready()
    took = compile_time.seconds - before
    assert 0 < took <= time.monotonic() - began
    f(jnp.ones(7)).block_until_ready()
    assert compile_time.seconds - before == pytest.approx(took)
