"""FLOPs and active parameters of networks of a user's own."""

import pytest
from leverage_cases import block, found, make

import input_pipeline
from moe_vision.common.errors import UserError
from moe_vision.leverage import twins

VIT = {
    'model__args': "{'width': 16, 'depth': 2, 'heads': 2, 'patch_size': 4}",
    'model__moe__group_size': 4,
}


@pytest.mark.parametrize(
    'own, base, changes',
    [
        ('SubConv', 'conv', {}),
        ('SubConv', 'conv', {'model__twin': 'same_width'}),
        ('SubConv', 'conv', {'model__moe__placement': 'head', 'model__moe__expert': 'mlp'}),
        ('SubVit', 'vit', VIT),
        ('SubVit', 'vit', VIT | {'model__moe__placement': 'every_1'}),
    ],
)
def test_a_subclass_that_calls_its_base_costs_the_same(own, base, changes):
    changes = {'model__moe__expert': ''} | changes
    mine = found(model__name=f'own_methods:{own}', **changes)
    assert mine == found(model__name=base, **changes)
    assert mine.rho_place > 0


def test_a_subclassed_expert_costs_what_its_base_costs():
    for name in ('Doubled', 'Scaled'):
        mine = found(model__moe__expert=f'own_methods:{name}', model__moe__placement='head')
        base = found(model__moe__expert='mlp', model__moe__placement='head')
        assert block(mine, 'head').flops == block(base, 'head').flops > 0


@pytest.mark.parametrize(
    'experts, k, taken',
    [(8, 1, 2), (8, 2, 4), (4, 2, 4), (4, 3, 4)],  # two layers take k each, at most all
)
def test_a_pool_that_layers_share_is_active_as_far_as_they_take_from_it(experts, k, taken):
    cost = found(
        model__name='own_methods:Pool',
        model__args='{}',
        model__moe__num_experts=experts,
        model__moe__k=k,
        model__moe__losses='{}',
        model__moe__placement='head',
    )
    one = 2 * 16 * 32 + 32 + 16
    pool = block(cost, 'pool')
    assert (pool.params, pool.params_active) == (experts * one, taken * one)
    assert pool.bytes_experts == pool.bytes == 4 * pool.params
    assert pool.bytes_active == 4 * pool.params_active
    for name in ('block_0', 'block_1'):
        place = block(cost, name)
        assert place.routed and place.flops_twin == 2 * 2 * 16 * 32
        assert place.flops == k * place.flops_twin + 2 * 16 * experts


def test_a_mistake_is_told_before_anything_is_counted():
    with pytest.raises(UserError, match='ForgetsReports.*reports no routed layer'):
        found(model__name='own_methods:ForgetsReports')


def test_a_bank_of_a_network_in_another_is_found():
    changes = {
        'model__args': "{'widths': (8, 8), 'depth': 1}",
        'model__moe__placement': 'every_1',
        'model__moe__bank': '2',
        'model__moe__k': 1,
    }
    plain, wrapped = (found(model__name=n, **changes) for n in ('conv', 'own_methods:Wrapped'))
    idle = [cost.params_total - cost.params_active for cost in (plain, wrapped)]
    assert idle[0] == idle[1] > 0


@pytest.mark.parametrize('twin', ['same_active_flops', 'same_params'])
def test_a_twin_of_an_expert_whose_cost_is_no_polynomial(twin):
    """Its hidden width goes up in steps of 24, which no three widths show."""
    changes = {
        'model__moe__expert': 'own_methods:Ranked',
        'model__moe__expert_args': "{'step': 24}",
        'model__moe__placement': 'head',
    }
    one, experts, k = 2 * 16 * 24, 4, 2  # parameters of one expert
    head = block(found(model__twin=twin, model__moe__hidden=24, **changes), 'head')
    assert head.params == one * (k if twin == 'same_active_flops' else experts)


def test_a_twin_of_an_expert_that_no_width_changes_is_refused():
    changes = {'model__moe__expert': 'own_methods:Square', 'model__moe__placement': 'head'}
    with pytest.raises(UserError, match=r"twin is 'same_params'.*Square does not grow") as error:
        found(model__twin='same_params', **changes)
    assert '\n' not in str(error.value)
    config = make(**changes)
    refused = {t.name: t.refused for t in twins(config, input_pipeline.info(config.dataset))}
    assert 'does not grow' in refused['same_active_flops'] and not refused['same_width']
