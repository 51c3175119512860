"""The studies that compare routers: every entry of the tables has an arm; arms do equal work."""

import dataclasses
import functools
import itertools
from pathlib import Path

import pytest

from configs.studies import beside_confirm, routers
from moe_vision.config import registry
from moe_vision.study import load, registration

FILE = Path(__file__).parents[2] / 'configs/studies/routers.py'
PARTS = ('digits', 'digits_check', 'fashion_mnist_14')
# What reads domains, what is for parts of a trained block, and what came after the study.
NO_ARM = {'router': {'oracle', 'ahead'}, 'loss': {'prior_approximate', 'unit_overlap'}}


@functools.cache
def loaded(part):
    return load.load(f'{FILE}:{part}')


@pytest.mark.parametrize('kind, table', [('router', registry.ROUTERS), ('loss', registry.LOSSES)])
def test_every_router_and_loss_has_an_arm(kind, table):
    moe = [config.model.moe for config in loaded('digits').configs.values()]
    used = {m.router for m in moe} if kind == 'router' else {n for m in moe for n in m.losses}
    assert set(table) - used == NO_ARM[kind]


@pytest.mark.parametrize('part', PARTS)
def test_no_arm_is_another_one_of_the_same_study(part):
    arms = registration.record(loaded(part))['arms']
    for (a, ours), (b, theirs) in itertools.combinations(arms.items(), 2):
        assert not registration.same_arm(ours, theirs), (a, b)


def test_arms_execute_equally_many_experts_but_for_those_that_are_named():
    """k times the capacity factor is the number of slots per image, each of one expert's width."""
    configs = loaded('digits').configs
    work = {
        (moe.k * moe.capacity_factor, moe.hidden, moe.shared_hidden, moe.splits, moe.router)
        for name in set(routers.CONV) - set(routers.DIFFERENT_WORK)
        for moe in [configs[name].model.moe]
    }
    assert {w[:-1] for w in work} == {(2.5, 0, 0, 1)} and 'soft' not in {w[-1] for w in work}


def test_the_check_differs_in_the_learning_rate_alone():
    first, second = loaded('digits'), loaded('digits_check')
    assert first.study.comparisons == second.study.comparisons
    for name, arm in first.study.arms.items():
        rate = {'train.learning_rate': routers.RATES['digits_check']}
        assert {**arm.overrides, **rate} == second.study.arms[name].overrides


@pytest.mark.parametrize('part', PARTS)
def test_each_method_stands_beside_top_k_and_both_dense_twins(part):
    study = loaded(part).study
    assert not study.hypotheses and not any(c.primary for c in study.comparisons.values())
    for name in study.arms:
        prefix = next((p for p in routers.NETWORKS if p and name.startswith(p)), '')
        others = {prefix + n for n in ('top_k', *routers.TWINS)} - {name}
        found = {c.baseline for c in study.comparisons.values() if c.arm == name}
        assert found == (set() if name.removeprefix(prefix) in routers.TWINS else others)


def test_the_twelve_are_methods_of_the_first_network():
    assert len(routers.TWELVE) in (0, 12)
    assert set(routers.TWELVE) <= set(routers.CONV) - set(routers.DIFFERENT_WORK) - {'default'}


def test_the_campaign_lends_the_networks_that_it_trains_anyway():
    ours = loaded('fashion_mnist_14').study.arms
    for name, theirs in {'default': 'k2', 'dense': 'dense', 'dense_active': 'dense_active'}.items():
        lent = beside_confirm.lent(theirs)[theirs]
        configs = [load.of_study(one_arm(arm), ()).configs['x'] for arm in (ours[name], lent)]
        assert configs[0] == configs[1]


def one_arm(arm):
    study = loaded('fashion_mnist_14').study
    return dataclasses.replace(study, arms={'x': arm}, comparisons={})
