"""Losses that ask for what a router or an expert does not give are refused in one line."""

import pytest
from leverage_cases import make

from moe_vision.common.errors import UserError

NONE = {'model__moe__router_args': {}}


@pytest.mark.parametrize(
    'changes, parts',
    [
        (
            NONE | {'model__moe__router': 'soft', 'model__moe__losses': {'erc': 1.0}},
            ['losses.erc is 1.0', "router 'soft' has no kernel", "'top_k'", 'to 0'],
        ),
        (
            NONE | {'model__moe__router': 'frozen_random', 'model__moe__losses': {'simbal': 1.0}},
            ["router 'frozen_random' has no kernel", 'learns'],
        ),
        (
            NONE | {'model__moe__router': 'random', 'model__moe__losses': {'orthogonality': 1.0}},
            ["router 'random' has no kernel"],
        ),
        (
            {'model__moe__losses': {'remoe': 1.0}},
            ["router 'top_k' has no coefficient", "'remoe'"],
        ),
        (
            {'model__moe__losses': {'own_methods:needs_what_nobody_has': 1.0}},
            ["router 'top_k' has no banks", 'take one that supplies it', 'to 0'],
        ),
        (
            NONE
            | {
                'model__moe__router': 'own_methods:Right',
                'model__moe__losses': {'own_methods:needs_what_nobody_has': 1.0},
            },
            ["router 'own_methods:Right' has no banks"],
        ),
        (
            NONE
            | {
                'model__moe__router': 'own_methods:Right',
                'model__moe__losses': {'prior_approximate': 1.0},
                'mesh__expert': 2,
            },
            ['prior_approximate is 1.0', 'mesh.expert is 2', 'set it to 1'],
        ),
        (
            NONE
            | {
                'model__moe__router': 'own_methods:ReadsExperts',
                'model__moe__losses': {},
                'mesh__expert': 2,
            },
            ["'own_methods:ReadsExperts' reads all experts", 'mesh.expert is 2', 'set it to 1'],
        ),
        (
            {
                'model__moe__router': 'remoe',
                'model__moe__router_args': {'max_choices': 1},
                'model__moe__losses': {'remoe': 1.0},
            },
            ['max_choices is 1', 'model.moe.k is 2', 'k or more', 'or to 0'],
        ),
    ],
)
def test_what_does_not_fit_together_is_one_line(changes, parts):
    with pytest.raises(UserError) as error:
        make(**changes)
    assert '\n' not in str(error.value)
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize('router', ['top_k', 'bias_balanced', 'null_experts', 'remoe', 'dynamoe'])
def test_linear_routers_take_losses_on_their_columns(router):
    losses = {'erc': 1.0, 'simbal': 0.1, 'orthogonality': 0.1}
    config = make(**NONE | {'model__moe__router': router, 'model__moe__losses': losses})
    assert config.model.moe.losses == losses
