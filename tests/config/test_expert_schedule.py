"""Experts by layer: `model.moe.schedule` keeps their sum (DynaMoE, arXiv 2603.01697)."""

import pytest
from leverage_cases import make
from model_cases import abstract, build, paths

from moe_vision.common.errors import UserError
from moe_vision.config.expert_schedule import SHAPES, experts_of_layers
from moe_vision.config.places import moe_at, place_at
from moe_vision.config.schema import Moe
from moe_vision.leverage import table

DEEP = {'model__args': {'widths': (8,), 'depth': 4}, 'model__moe__placement': 'every_1'}


@pytest.mark.parametrize('layers', [4, 5, 6, 12])
@pytest.mark.parametrize('name', sorted(set(SHAPES) - {'uniform'}))
def test_schedules_keep_the_sum_and_leave_nobody_without_experts(name, layers):
    for e in (2, 3, 8, 13):
        for least in {1, e // 2, e - 1} - {0}:
            counts = experts_of_layers(
                Moe(schedule=name, num_experts=e, schedule_least=least), layers
            )
            assert len(counts) == layers and sum(counts) == layers * e
            assert min(counts) >= least >= 1


def test_schedules_by_hand():
    """Least 4 of a mean of 8: 16 more are spread over four layers by 1 - u and so on."""

    def of(name, layers=4, **moe):
        return experts_of_layers(Moe(**{'schedule': name, 'num_experts': 8} | moe), layers)

    # shares 1, 2/3, 1/3, 0 of 8 = 16 / 2 above 4: 12, 9.33, 6.67, 4; the largest remainder is .67
    assert of('descending') == (12, 9, 7, 4)
    assert of('ascending') == (4, 7, 9, 12)
    assert of('pyramid_up') == (4, 12, 12, 4)  # 0, 2/3, 2/3, 0: 16 / (4/3) = 12 times these
    assert of('pyramid_up', 5) == (4, 9, 14, 9, 4)  # 0, 1/2, 1, 1/2, 0: 10 times these
    assert of('pyramid_down', 3) == (10, 4, 10)  # 1, 0, 1: 6 times these
    # (1 + sin 2 pi u) / 2: 1/2, 1, 1/2, 0, 1/2; 20 / 2.5 = 8 times these
    assert of('wave', 5) == (8, 12, 8, 4, 8)
    assert of('uniform') == (8, 8, 8, 8)
    assert of('descending', 2, schedule_least=1) == (15, 1)


@pytest.mark.parametrize(
    'name, layers, moe',
    [
        ('descending', 1, {}),
        ('pyramid_up', 2, {}),
        ('wave', 3, {}),
        ('ascending', 3, {'num_experts': 1}),
        ('ascending', 3, {'schedule_least': 8}),
    ],
)
def test_a_schedule_that_changes_nothing_is_refused(name, layers, moe):
    with pytest.raises(UserError, match=f"model.moe.schedule '{name}' leaves {layers} routed") as e:
        experts_of_layers(Moe(**{'schedule': name} | moe), layers)
    assert '\n' not in str(e.value)


def test_every_layer_of_a_network_has_its_own_number():
    """Blocks of one size, so the parameters of all experts are those of the uniform network."""
    settings = {'args': {'depth': 4}, 'placement': 'every_1', 'num_experts': 4}
    banks = {}
    for schedule in ('uniform', 'descending'):
        shapes = paths(abstract(build('vit', schedule=schedule, **settings))['params'])
        banks[schedule] = [a.shape for n, a in shapes.items() if n.endswith('experts/in_kernel')]
        routers = [a.shape for n, a in shapes.items() if n.endswith('router/kernel')]
        assert [s[0] for s in banks[schedule]] == [s[1] for s in routers]
    assert [s[0] for s in banks['descending']] == [6, 5, 3, 2]  # 2 and 4 times 1, 2/3, 1/3, 0
    assert sum(s[0] for s in banks['uniform']) == 16


def test_whoever_asks_for_a_layer_gets_its_number():
    config = make(**DEEP, model__moe__num_experts=8, model__moe__schedule='ascending')
    assert [moe_at(config.model, n).num_experts for n in range(4)] == [4, 7, 9, 12]
    assert place_at(config.model, 3).num_experts == 12
    assert table.network(config).startswith('4, 7, 9, 12 experts, k=2')
    with_k = make(**DEEP, model__moe__schedule='ascending', model__moe__layers={'-1': {'k': 4}})
    assert (moe_at(with_k.model, 3).num_experts, moe_at(with_k.model, 3).k) == (6, 4)


@pytest.mark.parametrize(
    'changes, parts',
    [
        ({'mesh__expert': 2, 'model__moe__num_experts': 8}, ['num_experts 9', 'layer 1', '3']),
        ({'model__moe__k': 3}, ['k is 3', 'num_experts is 2', 'layer 3', '1 to 2']),
        ({'model__moe__schedule': 'uniform', 'model__moe__schedule_least': 2}, ['not read']),
        ({'model__moe__layers': {'1': {'num_experts': 2}}}, ["layer '1'", "'descending'", 'one']),
        ({'model__moe__placement': 'last_1'}, ["schedule 'descending'", '1 routed', "'uniform'"]),
        ({'model__moe__schedule_least': 4}, ['4 at the least', 'smaller']),
        ({'model__moe__schedule': 'falling'}, ["'falling'", 'descending']),
    ],
)
def test_a_schedule_that_does_not_fit_is_one_line(changes, parts):
    with pytest.raises(UserError) as error:
        make(**DEEP | {'model__moe__schedule': 'descending'} | changes)
    assert '\n' not in str(error.value)
    for part in parts:
        assert part in str(error.value), error.value
