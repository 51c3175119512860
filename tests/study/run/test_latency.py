"""Interleaved timing: order, medians and budget with a fake clock; then two tiny networks."""

import statistics
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.table import row
from moe_vision.common import timing
from moe_vision.config import check as config_lib
from moe_vision.config import source
from moe_vision.study.run import latency

BASE = str(Path(__file__).resolve().parents[3] / 'configs' / 'base.py')


class Clock:
    """A clock that moves only inside the functions config by `takes`."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def __call__(self):
        return self.now

    def takes(self, name, *seconds):
        left = list(seconds)

        def fn():
            self.called.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return fn


def test_functions_take_turns_and_the_warm_up_is_not_counted():
    clock = Clock()
    fns = {'a': clock.takes('a', 9.0, 9.0, 1.0, 2.0, 6.0), 'b': clock.takes('b', 7.0, 7.0, 0.5)}
    times = timing.rounds(fns, 3, clock=clock)
    assert clock.called == ['a', 'b'] * 5
    assert times == {'a': [1.0, 2.0, 6.0], 'b': [0.5, 0.5, 0.5]}


def test_the_budget_ends_the_rounds_but_not_the_least_of_them():
    for budget, expected in ((3.5, 4), (0.0, 2), (100.0, 9)):
        clock = Clock()
        times = timing.rounds({'a': clock.takes('a', 50.0, 50.0, 1.0)}, 9, budget, 2, clock=clock)
        assert len(times['a']) == expected  # a round begins at 0, 1, 2 and 3 s


def test_results_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, 'block_until_ready', waited.append)
    timing.rounds({'a': lambda: 'result'}, 3, warm_up=1)
    assert waited == ['result'] * 4


def test_the_benchmarks_use_the_same_timing():
    found = row('a case', {'a': lambda: 1 + 2, 'b': lambda: 3}, rounds=3)
    assert list(found.seconds) == ['a', 'b'] and {len(s) for s in found.seconds.values()} == {3}


def test_medians_and_quartiles_of_a_call():
    seconds = [0.004, 0.001, 0.002, 0.003, 0.1]
    found = latency.summary(seconds, batch=8)
    assert found == pytest.approx(
        {'median_ms': 3.0, 'low_ms': 2.0, 'high_ms': 4.0, 'images_per_second': 8 / 0.003, 'runs': 5}
    )
    assert statistics.median(seconds) * 1e3 == found['median_ms']


def make(**changes):
    keys = {
        'model.args': {'widths': (8, 16), 'depth': 1},
        'model.moe.num_experts': 4,
        'model.moe.group_size': 16,
        **{k.replace('__', '.'): v for k, v in changes.items()},
    }
    common, opened, _ = source.take_overrides([f'--config.{k}={v}' for k, v in keys.items()])
    return config_lib.check(source.load(BASE, common, opened))


VIT = {
    'model__name': 'vit',
    'model__args': {'width': 8, 'depth': 1, 'heads': 1, 'patch_size': 2, 'pool': 'mean'},
}


@pytest.mark.parametrize(
    'changes, groups',
    [
        ({}, {1: 1, 8: 8, 16: 16, 24: 12, 64: 16}),  # images; 16 does not divide 24
        ({'model__twin': 'same_width'}, {1: 0, 8: 0}),
        ({'model__twin': 'same_drops'}, {1: 1, 64: 16}),
        (VIT, {1: 16, 8: 16}),  # patches: 16 of an image
        ({**VIT, 'model__moe__group_size': 64}, {1: 16, 2: 32, 3: 48, 6: 48, 8: 64}),
        ({**VIT, 'model__moe__placement': 'head'}, {1: 1, 8: 8, 32: 16}),
    ],
)
def test_a_group_is_as_large_as_the_batch_lets_it_be(changes, groups):
    config = make(**changes)
    assert {b: latency.group_size(config, b) for b in groups} == groups


@pytest.fixture(scope='module')
def measured():
    arms = {
        'random': make(
            model__moe__router='random', model__moe__losses={}, model__moe__router_args={}
        ),  # which also draws in evaluation
        'dense': make(model__twin='same_width'),
    }
    return arms, latency.measure(arms, (1, 8), repeats=4, budget_s=5.0)


def test_what_is_measured_of_two_tiny_networks(measured):
    arms, found = measured
    assert set(found) == {'device', 'arms'} and found['device'] == jax.devices()[0].device_kind
    assert set(found['arms']) == set(arms)
    for name, arm in found['arms'].items():
        assert set(arm['batches']) == {'1', '8'}
        assert arm['flops_executed'] >= arm['flops'] > 0
        for batch, at in arm['batches'].items():
            assert 0 < at['low_ms'] <= at['median_ms'] <= at['high_ms']
            assert at['images_per_second'] == pytest.approx(1e3 * int(batch) / at['median_ms'])
            assert 3 <= at['runs'] <= 4
            assert at['group_size'] == (0 if name == 'dense' else int(batch))
    assert found['arms']['random']['flops'] > found['arms']['dense']['flops']


def test_what_is_timed_are_the_logits_of_a_real_forward_pass():
    config = make(model__moe__eval_capacity_factor='inf')  # so that no image depends on its batch
    variables = latency.variables_of(config)
    two, eight = (np.asarray(latency.call(config, variables, b)()) for b in (2, 8))
    assert two.shape == (2, 10) and two.std() > 0 and eight.shape == (8, 10)
    np.testing.assert_allclose(two, eight[:2], rtol=1e-4, atol=1e-5)
