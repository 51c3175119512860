"""A script for eight virtual devices: loss `erc` of a layer on a mesh, as JSON."""

import json
import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layer_cases import TRAIN, init, jit, moe, normal

from moe_vision.layers.exchange import param_spec
from moe_vision.layers.moe import MoE

COLLECTIVE = re.compile(r'(all-to-all|all-gather|all-reduce|collective-permute)(?:-start)?\(')


def gradient(layer: MoE):
    def of(variables, x):
        return layer.apply(variables, x, TRAIN)[1]['losses']['erc']

    return jax.value_and_grad(of)


def main() -> None:
    mesh = jax.make_mesh((2, 4), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
    settings = {'losses': {'erc': 1.0}, 'loss_args': {'erc': {'alpha': 0.5}}}
    alone, spread = moe(8, **settings), moe(8, mesh=mesh, **settings)
    x = normal(0, 32, 8)
    variables = init(alone, x)
    want, grads = jit(gradient(alone))(variables, x)
    split = jax.tree_util.tree_map_with_path(
        lambda path, a: jax.device_put(a, NamedSharding(mesh, param_spec(path))), variables
    )
    rows = jax.device_put(x, NamedSharding(mesh, P(('data', 'expert'))))
    program = jit(gradient(spread)).lower(split, rows).compile()
    value, ours = program(split, rows)
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours, grads)
    print(
        json.dumps(
            {
                'loss': float(value),
                'loss_of_one': float(want),
                'gradient_error': max(jax.tree.leaves(errors)),
                'kinds': COLLECTIVE.findall(program.as_text()),
            }
        )
    )


if __name__ == '__main__':
    main()
