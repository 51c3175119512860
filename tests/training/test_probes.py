"""Probes of networks built by hand. Axes: E experts, L classes, D width."""

import dataclasses
import gc
import json
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_cases

from moe_vision.routing.router import Router
from moe_vision.routing.types import Routing
from moe_vision.training import loop, probes, step
from moe_vision.training.setup import Setup

E, L = 12, 10
HEAD = {
    'model.moe.placement': 'head',
    'model.args': {'widths': (16,), 'depth': 1},
    'model.moe.num_experts': E,
    'model.moe.k': 1,
    'model.moe.router_args': {},
    'model.moe.eval_capacity_factor': math.inf,
    'model.moe.losses': {},
    'dataset.augment': 'none',
    'train.mixup': 0.0,
    'train.ema_decay': 0.0,
}


class ByClass(Router):
    """A router that is told the class, and sends every image to the expert of that number."""

    def expert(self, context):
        return context.extras['class']

    def choose(self, params, state, features, context):
        none = jnp.zeros((*features.shape[:2], self.num_experts)) + 0 * params['kernel'].sum()
        ids = (
            jnp.zeros(features.shape[:2], jnp.int32)
            if 'class' not in context.extras
            else self.expert(context)
        )
        return Routing(
            probs=jax.nn.softmax(none),
            logits=none,
            expert_of_choice=ids[..., None],
            gate=jnp.ones((*ids.shape, 1)),
            active=context.valid[..., None],
        )


class ToOne(ByClass):
    """Sends every image to expert 3."""

    def expert(self, context):
        return jnp.full_like(context.extras['class'], 3)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp('data'))


def setup_of(data_dir, changes):
    return Setup(train_cases.make(data_dir, HEAD | changes))


def state_of(setup, draw):
    """A state with drawn values, which is quicker to make than the fresh one."""
    state = jax.tree.map(lambda a: jnp.asarray(draw(a.shape), a.dtype), setup.shapes)
    return dataclasses.replace(state, seed_key=jax.random.key_data(jax.random.key(0)))


@pytest.fixture
def classes_are_told(monkeypatch):
    """No router reads labels in evaluation, so the batch tells the class under another name."""
    monkeypatch.setattr(step, 'extras_of', lambda batch: {'class': batch['label']})


def expert_names_class(setup):
    """A state whose expert e predicts class e, whatever the image: everything else is 0."""
    state = state_of(setup, np.zeros)
    params = state.params
    params['head']['experts']['out_bias'] = jnp.eye(E, 16)
    params['classifier']['kernel'] = jnp.eye(16, L)
    return dataclasses.replace(state, params=params)


def probed(setup, state):
    """The probe as at the end of a run, after the test split is scored."""
    test = setup.evaluator.score(state, 'test', 1.0, details=True)['layers']
    return probes.probe(setup, state, [], test)


@pytest.fixture(scope='module')
def labels(data_dir):
    setup = setup_of(data_dir, {})
    batches = setup.evaluator.batches('test')
    return np.concatenate([np.asarray(b['label'])[np.asarray(b['valid'])] for b in batches])


@pytest.mark.slow
def test_routes_by_class_are_worth_everything(data_dir, labels, classes_are_told):
    """Accuracy is 1. Without expert e its images look like class 0; two experts get no image."""
    setup = setup_of(data_dir, {'model.moe.router': 'test_probes:ByClass'})
    state = expert_names_class(setup)
    result = probed(setup, state)
    assert set(result) == {
        'shuffle_drop',
        'random_drop',
        'ablation',
        'specialisation',
        'agreement',
        'router_gradient',
    }
    share = np.bincount(labels, minlength=E) / len(labels)
    want = [0.0, *share[1:]]  # a network that sees nothing predicts class 0
    np.testing.assert_allclose(result['ablation']['head'], want, atol=1e-12)
    assert result['ablation']['head'][L:] == [0.0, 0.0]
    assert result['shuffle_drop'] == pytest.approx(1 - (share**2).sum(), abs=0.06)  # sd 0.016
    assert result['random_drop'] == pytest.approx(1 - 1 / E, abs=0.06)  # sd 0.015
    specialisation = result['specialisation']['head']
    entropy = -(share[:L] * np.log(share[:L])).sum()
    # Each class has its own expert: I = H, minus the bias (10 - 1) (10 - 1) / 2N.
    assert specialisation['mutual_information'] == pytest.approx(entropy - 81 / (2 * len(labels)))
    assert specialisation['normalised'] == pytest.approx(
        specialisation['mutual_information'] / entropy
    )
    assert specialisation['normalised'] > 0.94
    assert result['agreement'] == {'head': {'epoch': [], 'with_previous': [], 'with_final': []}}
    assert result['router_gradient'] == {'head': {'task': 0.0, 'balance': 0.0}}
    assert probed(setup, state) == result  # deterministic
    json.dumps(result, allow_nan=False)


def test_a_route_that_all_images_share_is_worth_nothing(data_dir, labels, classes_are_told):
    setup = setup_of(data_dir, {'model.moe.router': 'test_probes:ToOne'})
    result = probed(setup, expert_names_class(setup))
    assert result['shuffle_drop'] == 0
    share = np.bincount(labels, minlength=E) / len(labels)
    # All are predicted as 3; without expert 3, as 0.
    want = np.where(np.arange(E) == 3, share[3] - share[0], 0.0)
    np.testing.assert_allclose(result['ablation']['head'], want, atol=1e-12)
    assert result['specialisation']['head'] == {'mutual_information': 0.0, 'normalised': 0.0}


@pytest.mark.parametrize('router', ['top_k', 'expert_choice'])
def test_routes_are_drawn_only_where_tokens_choose_experts(data_dir, monkeypatch, router):
    """Experts that choose tokens have no slots to spare, so drawn routes would lose tokens, too."""
    accuracy = {probes.NONE: 0.75, probes.SHUFFLE: 0.25, probes.DRAW: 0.5}

    def scored(setup, state, interventions):
        of_expert = 0.75 - 0.03125 * np.arange(E)
        return [accuracy.get(int(i.kind), of_expert[i.expert]) for i in interventions]

    monkeypatch.setattr(probes, '_test', scored)
    monkeypatch.setattr(probes, 'router_gradients', lambda *_: {})
    capacity = {} if router == 'top_k' else {'model.moe.eval_capacity_factor': 2.0}
    setup = setup_of(data_dir, {'model.moe.router': router} | capacity)
    test = {'head': {'expert_by_class': np.ones((E, L))}}
    result = probes.probe(setup, setup.shapes, [], test)
    drops = {name: lost for name, lost in result.items() if name.endswith('_drop')}
    assert drops == {'shuffle_drop': 0.5} | ({'random_drop': 0.25} if router == 'top_k' else {})
    assert result['ablation'] == {'head': [0.03125 * e for e in range(E)]}


def gradients(data_dir, **changes):
    setup = setup_of(data_dir, {f'model.moe.{k}': v for k, v in changes.items()})
    rng = np.random.default_rng(0)
    state = state_of(setup, lambda shape: abs(rng.normal(0, 0.5, shape)))
    return probes.router_gradients(setup, state)['head']


def test_the_order_of_softmax_and_top_k_decides_what_reaches_the_router(data_dir):
    """With k = 1, a softmax over the one chosen expert is 1 whatever the logits are."""

    def with_gate(gate, weight):
        return gradients(
            data_dir, router='top_k', router_args={'gate': gate}, losses={'importance': weight}
        )

    before, after = with_gate('softmax_top_k', 1.0), with_gate('top_k_softmax', 1.0)
    assert after['task'] == 0 and before['task'] > 1e-6
    assert before['balance'] == pytest.approx(after['balance']) and after['balance'] > 1e-6
    twice = with_gate('top_k_softmax', 2.0)
    assert twice['balance'] == pytest.approx(2 * after['balance'], rel=1e-5)


def test_nothing_reaches_a_router_that_is_frozen_or_has_no_parameters(data_dir):
    for router in ('frozen_random', 'random'):
        assert gradients(data_dir, router=router) == {'task': 0.0, 'balance': 0.0}


@pytest.mark.parametrize(
    'changes',
    [{'model.twin': 'same_width'}, {'model.twin': 'same_drops'}, {'model.moe.placement': 'none'}],
    ids=str,
)
def test_a_dense_network_has_no_probe(changes, data_dir):
    if 'model.moe.placement' in changes:
        changes = {k: v for k, v in HEAD.items() if not k.startswith('model.moe.')} | changes
        setup = Setup(train_cases.make(data_dir, changes, {}))
    else:
        setup = setup_of(data_dir, changes)
    assert probes.probe(setup, setup.shapes, [], {}) == {}


def test_layers_are_numbered_in_the_order_of_the_network(data_dir):
    """block_10 comes after block_2, although it sorts before it."""
    setup = setup_of(
        data_dir, {'model.moe.placement': '2,10', 'model.args': {'widths': (8,), 'depth': 11}}
    )
    assert setup.routed_layers == ('block_2', 'block_10')


def rows(*choices):
    return [
        {'split': 'train', 'epoch': 0.5},
        *(
            {'split': 'validation', 'epoch': float(n), 'probe': {'a': c, 'b': [0] * 4}}
            for n, c in enumerate(choices, 1)
        ),
    ]


def test_agreement_by_hand():
    assert probes.agreement(rows([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 3, 0]), 'a') == {
        'epoch': [1.0, 2.0, 3.0],
        'with_previous': [None, 0.75, 0.5],
        'with_final': [0.25, 0.5, 1.0],
    }
    assert probes.agreement(rows([1, 2, 3, 0]), 'a') == {
        'epoch': [1.0],
        'with_previous': [None],
        'with_final': [1.0],
    }
    assert probes.agreement(rows([5] * 4, [6] * 4), 'b')['with_final'] == [1.0, 1.0]


def test_specialisation_by_hand():
    # Two experts, four classes: expert 0 takes classes 0 and 1. I = ln 2 = H(expert), the smaller.
    counts = 500.0 * np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    result = probes.specialisation(counts)
    assert result['mutual_information'] == pytest.approx(math.log(2) - 1 * 3 / 4000)
    assert result['normalised'] == pytest.approx(1, abs=0.002)
    assert probes.specialisation(np.full((4, 5), 100.0))['normalised'] == 0
    assert probes.specialisation(np.array([[9.0, 3.0], [0, 0]]))['normalised'] == 0  # one expert


@pytest.mark.slow
def test_a_run_writes_its_probe(data_dir, tmp_path):
    """After a few steps with everything on, the file holds what `probe` returns."""
    config = train_cases.make(
        data_dir,
        HEAD
        | {
            'model.moe.router': 'top_k',
            'model.moe.router_args': {'noise': 'gaussian'},
            'model.moe.num_experts': 4,
            'model.moe.losses': {'importance': 0.01, 'load': 0.01},
            'train.steps': 4,
            'eval.every_steps': 2,
            'checkpoint.every_steps': 2,
        },
    )
    loop.train(config, str(tmp_path), full_report=False, probe=True)
    result = json.loads((tmp_path / 'mechanism.json').read_text())
    agreement = result['agreement']['head']
    assert len(agreement['epoch']) == 2 and agreement['with_final'][-1] == 1.0
    assert agreement['with_previous'] == [None, agreement['with_final'][0]]
    assert result['router_gradient']['head']['balance'] > 0
    validations = [r for r in train_cases.rows(tmp_path) if r['split'] == 'validation']
    choices = validations[0]['probe']['head']
    assert 0 < len(choices) <= 256 and set(choices) <= set(range(4))


def test_a_setup_goes_when_nobody_needs_it(data_dir, tmp_path):
    """With the images that it keeps on the devices: the next arm of a study builds its own."""
    few = {'model.moe.num_experts': 2, 'train.steps': 1, 'train.warmup_steps': 0}
    setup = setup_of(data_dir, few | {'dataset.resident': True})
    loop.train(setup.config, str(tmp_path), setup=setup, full_report=False, probe=True)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(setup.evaluator._resident))
    gone = weakref.ref(setup)
    gc.disable()  # it may come late
    try:
        del setup
        assert gone() is None
    finally:
        gc.enable()
