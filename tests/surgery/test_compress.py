"""Compress: experts become low-rank plus column-sparse, exactly where nothing is cut."""

import dataclasses

import numpy as np
import pytest
import weight_files

import input_pipeline
from moe_vision.common.errors import UserError
from moe_vision.config import surgery
from moe_vision.leverage import measure
from moe_vision.surgery import samples
from moe_vision.surgery.compress import Compress

IMAGE, CLASSES, EXPERTS, HIDDEN, TOKENS, WIDTH = (8, 8, 1), 10, 3, 16, 4, 16
ROUTED = {
    'model.name': 'vit',
    'model.args': {'width': WIDTH, 'depth': 2, 'heads': 2, 'patch_size': 4},
    'model.moe.placement': 'last_1',
    'model.moe.num_experts': EXPERTS,
    'model.moe.k': 2,
    'model.moe.group_size': 4,
    'model.moe.hidden': HIDDEN,
    'model.moe.router_args': {},
    'model.moe.losses': {},
    'model.moe.capacity_factor': float('inf'),
    'model.moe.eval_capacity_factor': float('inf'),
}
BANK = 'block_1/experts'


def config_of(data_dir, **changes):
    return weight_files.config(data_dir, ROUTED | changes)


def compressed(data_dir, **args):
    chosen = {'model.moe.expert': 'low_rank_mlp', 'model.moe.expert_args': args}
    return config_of(data_dir, **chosen)


def fresh(config, seed=0):
    return weight_files.fresh(config, IMAGE, CLASSES, seed)


def cut(source, source_config, config, **args):
    kind = Compress(surgery.SURGERY['compress'].args(**args))
    config = kind.configured(source, source_config, config)
    return kind(source, source_config, fresh(config, seed=9), config)


@pytest.mark.parametrize(
    'args, kept',
    [
        ({'columns': 1.0}, 16),  # whatever the rank is
        ({'parameter_ratio': 9.0, 'columns': 0.0}, 0),
        ({'parameter_ratio': 9.0, 'columns': 0.3}, 5),  # hidden units stand in another order
    ],
)
def test_with_full_rank_or_all_columns_the_network_computes_the_same(args, kept, data_dir):
    erf = {'model.moe.expert_args': {'activation': 'gelu_erf'}}
    config, smaller = config_of(data_dir, **erf), compressed(data_dir, **args)
    state = fresh(config)
    kind = Compress(surgery.SURGERY['compress'].args(samples=8))
    smaller = kind.configured(state, config, smaller)
    assert smaller.model.moe.expert_args.activation == 'gelu_erf'  # as there
    result = kind(state, config, fresh(smaller, seed=9), smaller)
    x = np.random.default_rng(5).normal(size=(4, *IMAGE)).astype(np.float32)
    before = weight_files.logits(config, state, x, CLASSES)
    after = weight_files.logits(smaller, result, x, CLASSES)
    assert np.abs(after - before).max() < 1e-5 * before.std()
    (told,) = result.told
    assert f'{kept} of 16 hidden units' in told and '0.00% away' in told
    if kept == 5:
        orders = [
            np.argmax(state.params[f'{BANK}/in_bias'][e] == x[:, None], 1)
            for e, x in enumerate(result.params[f'{BANK}/in_bias'])
        ]
        for order in orders:
            assert (np.diff(order[:5]) > 0).all() and (np.diff(order[5:]) > 0).all()
        assert any((order != np.arange(16)).any() for order in orders)


def diagonal(data_dir, seed=3):
    """Experts whose hidden unit n reads and writes channel n alone, with strengths 1 to 16."""
    config, rng = config_of(data_dir), np.random.default_rng(seed)
    state = fresh(config)
    strength = np.stack([rng.permutation(np.arange(1.0, 17)) for _ in range(EXPERTS)])
    matrices = np.stack([np.diag(s) for s in strength]).astype(np.float32)
    params = {
        **state.params,
        f'{BANK}/in_kernel': matrices,
        f'{BANK}/out_kernel': matrices,
        f'{BANK}/in_bias': strength.astype(np.float32),
    }
    return config, dataclasses.replace(state, params=params), strength


def test_the_rank_takes_the_strongest_and_columns_what_is_strongest_then(data_dir):
    """Rank 2 of 0.15 * 256 / 32 = 1.2; of 16 hidden units 4 keep what is left."""
    config, state, strength = diagonal(data_dir)
    result = cut(state, config, compressed(data_dir), importance='magnitude')
    bias = result.params[f'{BANK}/in_bias']
    for e in range(EXPERTS):
        assert set(bias[e, :4]) == {14, 13, 12, 11}
        assert set(bias[e, 4:]) == set(range(1, 11)) | {15, 16}
        p = {n: result.params[f'{BANK}/{n}'][e] for n in ('in_down', 'in_up', 'in_sparse')}
        whole = p['in_down'] @ p['in_up']
        whole[:, :4] += p['in_sparse']
        expected = np.diag(strength[e])[:, np.argsort(strength[e])][:, bias[e].astype(int) - 1]
        expected = expected * (bias[e] > 10)  # ten hidden units are lost
        np.testing.assert_allclose(whole, expected, atol=1e-4)
        np.testing.assert_allclose(  # both factors have the same share
            (p['in_down'] ** 2).sum(0), (p['in_up'] ** 2).sum(1), rtol=1e-4
        )
    lost = np.sqrt(sum(n**2 for n in range(1, 11)) / sum(n**2 for n in range(1, 17)))
    assert f'{lost:.2%} away' in result.told[0]


def test_sensitivity_is_smoothed_from_batch_to_batch(data_dir, monkeypatch):
    """b = 0.85: a product of 1 in the first of two batches counts 0.1275, one of 0.9 in the second
    0.135."""
    config, state, strength = diagonal(data_dir)
    zeros = np.zeros((EXPERTS, 16, 16))
    batches = [{f'{BANK}/{n}_kernel': zeros.copy() for n in ('in', 'out')} for _ in range(2)]
    place = np.argsort(strength, 1)  # of strength n + 1, in each expert

    def set_product(batch, name, rank, value):
        for e in range(EXPERTS):
            n = place[e, rank - 1]
            batches[batch][f'{BANK}/{name}_kernel'][e, n, n] = -value / rank

    for rank in (1, 2, 3):
        set_product(1, 'in', rank, 5.0)
    set_product(0, 'out', 4, 1.0)
    set_product(1, 'out', 5, 0.9)
    monkeypatch.setattr(samples, 'gradients', lambda *args: iter(batches))
    result = cut(state, config, compressed(data_dir))
    for bias in result.params[f'{BANK}/in_bias']:
        assert set(bias[:4]) == {1, 2, 3, 5}


def test_the_gradient_is_that_of_the_mean_loss_of_the_images(data_dir):
    """Along one direction of two arrays, against the difference of two losses."""
    config = config_of(data_dir)
    state = fresh(config)
    args = surgery.SURGERY['compress'].args(samples=20)
    (gradient,) = samples.gradients(state, config, args)
    assert gradient.keys() == state.params.keys()
    with input_pipeline.evaluation_batches(
        config.dataset, split='train', batch_size=20, rows=range(20)
    ) as batches:
        batch = next(iter(batches))
    mean, std = input_pipeline.mean_std(config.dataset)
    images = (batch['image'] / 255.0 - np.array(mean)) / np.array(std)

    def loss(params):
        logits = weight_files.logits(
            config, dataclasses.replace(state, params=params), images.astype(np.float32), CLASSES
        ).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return -logits[np.arange(20), batch['label']].mean()

    for path in (f'{BANK}/out_kernel', 'classifier/kernel'):
        there = state.params[path]
        step = 1e-2 * np.random.default_rng(0).normal(size=there.shape).astype(np.float32)
        up, down = (loss({**state.params, path: there + s * step}) for s in (1, -1))
        np.testing.assert_allclose((gradient[path] * step).sum(), (up - down) / 2, rtol=1e-2)


def test_the_counts_are_those_that_leverage_predicts(data_dir):
    config, smaller = config_of(data_dir), compressed(data_dir)
    state = fresh(config)
    result = cut(state, config, smaller, samples=8, samples_of='validation')
    info = input_pipeline.info(config.dataset)
    before, after = (measure(c, info) for c in (config, smaller))
    counts = [sum(x.size for x in s.params.values()) for s in (state, result)]
    assert [before.params_total, after.params_total] == counts
    saved = 2 * WIDTH * HIDDEN - (2 * 2 * (WIDTH + HIDDEN) + 2 * 4 * WIDTH)
    assert before.params_total - after.params_total == EXPERTS * saved
    assert before.flops - after.flops == 2 * saved * 2 * TOKENS  # of k = 2 experts


def test_a_shared_expert_is_compressed_as_the_others_are(data_dir):
    """Nothing is lost with all columns; else its size is as predicted, and gradients choose."""
    beside = {'model.moe.shared_hidden': 24}
    config = config_of(data_dir, **beside)
    state = fresh(config)
    x = np.random.default_rng(5).normal(size=(4, *IMAGE)).astype(np.float32)
    for args in ({'columns': 1.0}, {'columns': 0.3}):
        low = {'model.moe.expert': 'low_rank_mlp', 'model.moe.expert_args': args}
        smaller = config_of(data_dir, **beside, **low)
        result = cut(state, config, smaller, samples=8)
        kept = 24 if args['columns'] == 1.0 else 8
        assert result.params['block_1_shared/in_sparse'].shape == (WIDTH, kept)
        assert f'block_1_shared: an expert of rank 2, and {kept} of 24' in result.told[1]
        if kept == 24:
            before = weight_files.logits(config, state, x, CLASSES)
            after = weight_files.logits(smaller, result, x, CLASSES)
            assert np.abs(after - before).max() < 1e-5 * before.std()
    total = measure(smaller, input_pipeline.info(config.dataset)).params_total
    assert total == sum(p.size for p in result.params.values())
    sizes = cut(state, config, smaller, importance='magnitude').params
    name = 'block_1_shared/in_sparse'
    assert sizes[name].shape == result.params[name].shape
    assert np.abs(sizes[name] - result.params[name]).max() > 0


@pytest.mark.parametrize(
    'before, after, hint',
    [
        ({}, {}, "model.moe.expert is 'mlp'; set it"),
        ({'model.moe.expert': 'film', 'model.moe.hidden': 0}, None, "there are 'film'; it takes"),
        ({'model.twin': 'same_width'}, None, 'there are no experts there to compress'),
    ],
)
def test_what_cannot_be_compressed_is_one_line(before, after, hint, data_dir):
    config = config_of(data_dir, **before)
    result = compressed(data_dir) if after is None else config_of(data_dir, **after)
    with pytest.raises(UserError, match=hint) as e:
        cut(fresh(config), config, result)
    assert '\n' not in str(e.value)
