"""All routers, experts and backbones can be exported: they are traced for any number of groups."""

import jax
import model_cases
import pytest
from jax import export
from layer_cases import moe

from moe_vision.config import registry
from moe_vision.layers import Step

GROUP = 8


def traced(net, shape, tokens=True):
    """The shape of what a network, or a layer, gives for any number of groups.

    Args:
      shape: of one token or image.
      tokens: whether the step also tells what routers of tokens may ask for.
    """
    (b,) = export.symbolic_shape(f'{GROUP}*g')

    def given(*shape, dtype='float32'):
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    told = {'valid': given(dtype='bool')}
    if tokens:
        told['images'] = given(4, 4, 3)
        told['extras'] = {'attention': given(4), 'domain': given(dtype='int32')}

    def run(x, told):
        step = Step(key=jax.random.key(0), **told)
        return net.init_with_output(jax.random.key(0), x, step)[0][0]

    return jax.eval_shape(run, given(*shape), told).shape


@pytest.mark.parametrize('router', registry.ROUTERS)
def test_routers(router):
    is_map = 'map' in registry.ROUTERS[router].needs
    expert = 'conv' if is_map else 'mlp'
    layer = moe(4, 2, GROUP, router=router, expert=expert)
    assert str(traced(layer, (4, 4, 8) if is_map else (8,))[0]) == '8*g'


@pytest.mark.parametrize('router', ['ahead', 'rmoe'])
def test_what_a_layer_hands_to_the_next(router):
    changes = {'router': router, 'losses': {}, 'group_size': GROUP}
    net = model_cases.build('vit', 'every_1', **changes)
    assert str(traced(net, model_cases.IMAGE, tokens=False)[0]) == '8*g'


READ = {'choices', 'bank', 'units'}  # what every router's choices, and MLPs, offer to losses
OF_GROUPS = [n for n, e in registry.LOSSES.items() if not e.of_layer and READ >= set(e.needs)]


def test_losses_of_groups():
    """Evaluation computes these, too."""
    layer = moe(4, 2, GROUP, losses=dict.fromkeys(OF_GROUPS, 1.0), expert='mlp')
    assert str(traced(layer, (8,))[0]) == '8*g'


def test_a_budget_of_several_layers():
    kinds = ({}, {'divide': 16}, {'expert': 'skip'})
    changes = {'router': 'duo', 'kinds': kinds, 'losses': {'budget': 1.0}, 'layers': 2}
    assert str(traced(moe(2, 3, GROUP, expert='mlp', **changes), (8,))[0]) == '8*g'


@pytest.mark.parametrize(
    'changes',
    [
        *({'expert': name} for name in registry.EXPERTS),
        {'priority': 'gate'},
        {'priority': 'random'},
        {'num_experts': 64},  # one group has fewer choices than there are experts
        {'kinds': ({'count': 2}, {'count': 2, 'divide': 2}, {'expert': 'skip'})},
    ],
    ids=str,
)
def test_experts_and_priorities(changes):
    is_map = 'map' in registry.EXPERTS[changes.get('expert', 'mlp')].needs
    layer = moe(**{'group_size': GROUP, 'expert': 'mlp', **changes})
    assert str(traced(layer, (4, 4, 8) if is_map else (8,))[0]) == '8*g'


@pytest.mark.parametrize(
    'backbone, twin', [*((name, 'none') for name in registry.BACKBONES), ('conv', 'same_drops')]
)
def test_backbones(backbone, twin):
    net = model_cases.build(backbone, twin=twin, group_size=GROUP)
    b, classes = traced(net, model_cases.IMAGE, tokens=False)
    assert str(b) == '8*g' and classes == model_cases.CLASSES
