"""What stands at a block's place, and what it is told of the config."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from model_cases import TRAIN, config

from moe_vision.config import registry
from moe_vision.config.kinds import Kind
from moe_vision.config.schema import Moe
from moe_vision.layers import DenseBlock, DroppingBlock, MoE
from moe_vision.models.branch import Infos, branch_at, make_branch

# A value for each setting that no layer has by default.
MOE = {
    'router': 'random',
    'router_args': registry.RandomArgs(gate='softmax'),
    'num_experts': 5,
    'k': 3,
    'capacity_factor': 0.5,
    'eval_capacity_factor': 0.75,
    'capacity_multiple': 2,
    'group_size': 4,
    'priority': 'gate',
    'expert': 'mlp',
    'expert_args': registry.MlpArgs(activation='relu'),
    'hidden': 24,
    'losses': {'z': 0.25},
    'loss_args': {'z': {}},
    'kinds': (Kind(count=5),),
}


def branch(twin='none'):
    return make_branch(
        config('vit', twin=twin, **MOE),
        None,
        name='block_7',
        width=16,
        hidden=64,
        payload=(16,),
        layer=2,
    )


def test_every_setting_of_the_config_reaches_the_layer():
    elsewhere = {'placement', 'layers', 'bank', 'shared_hidden', 'schedule', 'schedule_least'}
    elsewhere |= {
        'splits'
    }  # see test_model_hooks.py, test_expert_schedule.py, test_model_splits.py
    assert set(MOE) == {f.name for f in dataclasses.fields(Moe)} - elsewhere
    made = branch()
    assert isinstance(made, MoE) and (made.name, made.layer) == ('block_7', 2)
    assert {name: getattr(made, name) for name in MOE} == MOE


def test_a_twin_with_drops_has_the_settings_that_decide_them():
    made = branch('same_drops')
    assert isinstance(made, DroppingBlock) and (made.name, made.layer) == ('block_7', 2)
    shared = {f.name for f in dataclasses.fields(DroppingBlock)} & set(MOE) - {'expert'}
    assert {name: getattr(made, name) for name in shared} == {name: MOE[name] for name in shared}
    assert shared == {
        'num_experts',
        'k',
        'capacity_factor',
        'eval_capacity_factor',
        'capacity_multiple',
        'group_size',
        'priority',
    }
    assert made.expert.hidden == 24 and isinstance(branch('same_width'), DenseBlock)


class Times(nn.Module):
    """A branch of one's own where nothing is routed: it sees the step."""

    factor: float

    @nn.compact
    def __call__(self, x, step):
        return self.factor * x * self.param('scale', nn.initializers.ones, ()) * step.fraction


def test_a_place_is_routed_where_the_placement_says_so():
    class Net(nn.Module):
        model: object
        mesh: object = None

        @nn.compact
        def __call__(self, x):
            infos = Infos()
            return [
                branch_at(
                    self,
                    number,
                    x,
                    TRAIN,
                    infos,
                    hidden=8,
                    unrouted=lambda name: Times(3.0, name=name),
                )
                for number in (0, 1)
            ], infos.by_layer

    net, x = Net(config('vit', 'last_1', num_experts=2, k=1)), jnp.ones((4, 16))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    shapes = jax.tree.map(jnp.shape, variables['params'])
    assert shapes['block_0'] == {'scale': ()}
    assert shapes['block_1']['experts']['in_kernel'] == (2, 16, 8)
    (first, _), infos = jax.jit(net.apply)(variables, x)
    assert (first == 3 * TRAIN.fraction).all() and list(infos) == ['block_1']
