"""Each validation records the first choices of the same tokens, whatever the batch size."""

import dataclasses

import jax
import numpy as np
import pytest
import train_cases
from slow import except_for

from moe_vision.leverage import soft, tokens_per_image
from moe_vision.run_folder import tensorboard
from moe_vision.training.evaluate import Evaluator
from moe_vision.training.setup import Setup

HEAD = {'model.moe.placement': 'head', 'model.args': {'widths': (8,), 'depth': 1}}
DEFAULTS = {'model.moe.router_args': {}, 'model.moe.losses': {}}
CASES = {
    'images': HEAD | DEFAULTS | {'model.moe.router': 'top_k'},
    'soft': HEAD | DEFAULTS | {'model.moe.router': 'soft', 'model.moe.eval_capacity_factor': 2.0},
    'patches': train_cases.VIT
    | DEFAULTS
    | {
        'model.moe.router': 'top_k',
        'model.moe.group_size': 4,
        'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    },
}


@pytest.mark.parametrize('name', except_for([*CASES][:1], CASES))
def test_the_probe_is_the_first_choice_of_the_first_tokens(name, data_dir):
    config = train_cases.make(data_dir, CASES[name])
    setup = Setup(config)
    state = dataclasses.replace(setup.fresh_state(), ema={})
    images = setup.info.split_sizes['test']
    recorded = []
    for size in (16, 208):
        resized = dataclasses.replace(
            config, eval=dataclasses.replace(config.eval, batch_size=size)
        )
        tokens = tokens_per_image(config, setup.info)
        evaluator = Evaluator(resized, setup.info, setup.mesh, tokens)
        recorded.append(evaluator.score(state, 'test', 0.5)['probe'])
    assert recorded[0] == recorded[1]
    short = evaluator.score(state, 'validation', 0.5)['probe']  # ends with padding
    assert {len(v) for v in short.values()} == {
        min(setup.info.split_sizes['validation'] * tokens, 256)
    }
    want = []
    for run in setup.evaluator.outputs(state, 'test', 0.5):
        out = jax.device_get(run())
        ((layer, choices),) = out['choices'].items()
        ids = np.take_along_axis(choices['expert'], choices['gate'].argmax(-1)[:, None], -1)
        if not soft(config.model):
            assert (ids[:, 0] == choices['expert'][:, 0]).all()  # the best comes first
        want += ids[np.repeat(out['valid'], tokens), 0].tolist()
    assert len(want) == images * tokens > 256
    assert recorded[0] == {layer: want[:256]}
    assert len(set(want)) > 1


def test_events_do_not_hold_the_probe():
    row = {
        'step': 4,
        'split': 'validation',
        'loss': 1.0,
        'probe': {'head': [1, 2]},
        'layers': {'head': {'load': [0.5, 0.5]}},
    }
    assert [name for name, _ in tensorboard.flat(row)] == [
        'loss',
        'layers/head/load/0',
        'layers/head/load/1',
    ]


def test_a_twin_with_drops_reports_them_and_without_them_is_the_dense_twin(data_dir):
    routed = (
        HEAD
        | DEFAULTS
        | {'model.moe.router': 'top_k', 'model.moe.k': 1, 'model.moe.eval_capacity_factor': 0.5}
    )
    scores = {}
    for twin in ('same_width', 'same_drops'):
        setup = Setup(train_cases.make(data_dir, routed | {'model.twin': twin}))
        state = dataclasses.replace(setup.fresh_state(), ema={})
        scores[twin] = setup.evaluator.score(state, 'test', 0.5)
        assert setup.cost.flops == setup.cost.flops_executed
        scores[twin]['flops'] = setup.cost.flops
    drops, dense = scores['same_drops'], scores['same_width']
    assert drops['flops'] == dense['flops']
    assert drops['accuracy_unbounded'] == dense['accuracy']
    assert drops['loss'] != dense['loss'] and not dense['layers']
    layer = drops['layers']['head']
    assert layer['drop_rate'] == layer['orphan_rate'] >= 0.5  # k = 1, half a slot for each
