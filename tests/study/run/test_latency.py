"""Interleaved timing: order, medians and budget with a fake clock; then two tiny networks."""

import re
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


def test_rho_in_time_compares_what_was_timed_in_the_same_round():
    """Round by round, 1 - 3/4, 1 - 3/5 and 1 - 2/4."""
    found = latency.share([4.0, 5.0, 4.0], [3.0, 3.0, 2.0])
    assert found == pytest.approx(
        {'rest_ms': 3000.0, 'rho_time': 0.4, 'rho_time_low': 0.325, 'rho_time_high': 0.45}
    )
    assert latency.share([1.0], [1.25])['rho_time'] == -0.25  # noise is shown as it is


def test_arms_of_one_trunk_share_the_network_without_branches(monkeypatch):
    arms = {
        'dense': make(model__twin='same_width'),
        'k2': make(),
        'wider': make(**{'model__args': {'widths': (8, 32), 'depth': 1}}),
        'head': make(model__moe__placement='head'),
        'plain': make(
            model__moe__placement='none',
            **{
                f'model__moe__{key}': value
                for key, value in {'num_experts': 8, 'group_size': 64}.items()
            },
        ),
    }
    called = []
    took = {
        'dense': [4.0, 8.0],
        'k2': [8.0, 8.0],
        'wider': [10.0, 10.0],
        'head': [5.0, 5.0],
        'plain': [4.0, 4.0],
    }

    def call(config, variables, batch, without=()):
        called.append((config, without))
        return lambda: None

    def rounds(calls, *_):
        assert list(calls)[:5] == list(arms) and len(calls) == 8
        first, second, third = list(calls)[5:]
        return took | {first: [2.0, 2.0], second: [7.0, 7.0], third: [4.0, 4.0]}

    monkeypatch.setattr(latency, 'call', call)
    monkeypatch.setattr(latency, 'variables_of', lambda config: None)
    monkeypatch.setattr(timing, 'rounds', rounds)
    found = latency.measure(arms, (8,))['arms']
    assert [w for _, w in called] == [()] * 5 + [{'block_1'}, {'block_1'}, {'head'}]
    at = {name: arm['batches']['8'] for name, arm in found.items()}
    # dense: 1 - 2/4 and 1 - 2/8
    assert {n: a.get('rho_time') for n, a in at.items()} == pytest.approx(
        {'dense': 0.625, 'k2': 0.75, 'wider': 0.3, 'head': 0.2, 'plain': None}
    )
    assert at['dense']['rest_ms'] == at['k2']['rest_ms'] == 2000 and at['wider']['rest_ms'] == 7000
    assert not {'rest_ms', 'rho_time'} & set(at['plain'])


@pytest.mark.parametrize(
    'changes',
    [
        {},
        *(
            pytest.param(c, marks=pytest.mark.tables)
            for c in (
                VIT,
                {'model__moe__placement': 'head'},
                {'model__moe__placement': 'pure_head'},
            )
        ),
    ],
)
def test_without_its_branches_a_network_computes_no_more_than_its_trunk(changes):
    """Routed network and twin are then the same function, and the compiled program has no expert,
    no router and no branch of the twin in it."""
    logits, programs = {}, {}
    place = changes.get('model__moe__placement') and 'head' or ('block_0' if changes else 'block_1')
    for twin in ('none', 'same_width'):
        config = make(**changes, model__twin=twin)
        variables = latency.variables_of(config)
        for without in (frozenset(), frozenset({place})):
            timed = latency.call(config, variables, 8, without)
            logits[twin, bool(without)] = np.asarray(timed())
            programs[twin, bool(without)] = timed.func.as_text()
    assert logits['none', True].std() > 0
    np.testing.assert_allclose(logits['none', True], logits['same_width', True], rtol=1e-5)
    assert not np.allclose(logits['none', False], logits['none', True])
    for twin in ('none', 'same_width'):
        assert f'/{place}/' in programs[twin, False]
        assert len(products(programs[twin, True])) < len(products(programs[twin, False]))
    assert products(programs['none', True]) == products(programs['same_width', True])
    assert not [line for line in products(programs['none', True]) if f'/{place}/' in line]


def products(program: str) -> list[str]:
    """The names of the products and convolutions of a compiled program, in order."""
    kinds = r' (?:dot|convolution|custom-call)\(.*op_name="([^"]*)"'
    return re.findall(kinds, program)
