"""A script for eight virtual devices: compares seeds trained together with each trained alone.

python seeds_laid_out.py DATA_DIR
"""

import json
import sys

import jax
import numpy as np
from eight_devices import CASES, STEPS, furthest, make_setup

from moe_vision.study.run.together import Program
from moe_vision.training import feed, mesh

SEEDS = (5, 1, 2, 7)
RESIDENT = {'dataset.resident': True, 'train.batch_size': 32}


def alone(setup, seed):
    """(losses, state on the host) of a seed trained alone."""
    config, state, losses = setup.config, setup.fresh_state(seed), []
    with feed.on_host(config, seed, range(config.train.batch_size), 0, STEPS) as batches:
        for arrays in batches:
            state, out = setup.step(state, setup.gather(mesh.to_devices(arrays, setup.mesh, 1)))
            losses.append(float(out['loss']))
    return losses, jax.device_get(state)


def together(setup, devices):
    """(losses [steps, S], states, on how many devices the arrays lie) of all seeds together."""
    config, program = setup.config, Program(setup, len(SEEDS), devices)
    states = program.stack([setup.fresh_state(seed) for seed in SEEDS])
    sources = [
        feed.on_host(config, seed, range(config.train.batch_size), 0, STEPS) for seed in SEEDS
    ]
    losses = []
    for arrays in zip(*[s.__enter__() for s in sources], strict=True):
        states, out = program.step(states, program.batch(arrays))
        losses.append(np.asarray(out['loss']))
    laid = [len(x.sharding.device_set) for x in jax.tree.leaves(states)]
    state_of = program.unstack(states)
    return np.array(losses), [jax.device_get(state_of(i)) for i in range(len(SEEDS))], set(laid)


def main(data_dir: str) -> None:
    seen = {}
    for name, devices in (('conv', 2), ('conv dense', 2)):
        changes = CASES[name.split()[0]] | RESIDENT
        if 'dense' in name:
            changes = changes | {'model.twin': 'same_width'}
        setup = make_setup(changes, (1, 1), data_dir)
        losses, states, laid = together(setup, devices)
        single = [alone(setup, seed) for seed in SEEDS]
        want = np.array([each for each, _ in single]).T
        seen[f'{name} {devices}'] = {
            'laid': sorted(laid),
            'loss_error': float(np.abs(losses / want - 1).max()),
            'apart': float(np.abs(want - want.mean(1, keepdims=True)).min()),
            'params_error': max(
                furthest(a.params, b.params) for a, (_, b) in zip(states, single, strict=True)
            ),
        }
    print(json.dumps(seen))


if __name__ == '__main__':
    main(sys.argv[1])
