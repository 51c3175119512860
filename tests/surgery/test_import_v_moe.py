"""A checkpoint laid out as V-MoE's are: read whole, and the same logits as its own arithmetic."""

import jax
import numpy as np
import pytest
import weight_files

from moe_vision.common.errors import UserError
from moe_vision.config.surgery import ImportArgs
from moe_vision.surgery.import_weights import Import
from moe_vision.surgery.state import Misfit, State
from moe_vision.surgery.weights import files

D, F, E, K, HEADS, CLASSES, PATCH, SIDE = 16, 24, 4, 2, 2, 5, 4, 8
TOKENS = (SIDE // PATCH) ** 2 + 1
GROUP, CAPACITY_FACTOR = 2 * TOKENS, 0.7  # two images; ceil(0.7 * 2 * 10 / 4) = 4 slots: some drop
SHAPES = {
    'embedding/kernel': (PATCH, PATCH, 3, D),
    'embedding/bias': (D,),
    'cls': (1, 1, D),
    'Encoder/posembed_input/pos_embedding': (1, TOKENS, D),
    'Encoder/encoder_norm/scale': (D,),
    'Encoder/encoder_norm/bias': (D,),
    'pre_logits/kernel': (D, D),
    'pre_logits/bias': (D,),
    'head/kernel': (D, CLASSES),
    'head/bias': (CLASSES,),
}
for _n in range(2):
    _block = f'Encoder/encoderblock_{_n}'
    for _norm in ('LayerNorm_0', 'LayerNorm_1'):
        SHAPES |= {f'{_block}/{_norm}/{k}': (D,) for k in ('scale', 'bias')}
    for _which in ('query', 'key', 'value'):
        SHAPES[f'{_block}/SelfAttention/{_which}/kernel'] = (D, HEADS, D // HEADS)
        SHAPES[f'{_block}/SelfAttention/{_which}/bias'] = (HEADS, D // HEADS)
    SHAPES[f'{_block}/SelfAttention/out/kernel'] = (HEADS, D // HEADS, D)
    SHAPES[f'{_block}/SelfAttention/out/bias'] = (D,)
    _mlp, _lead = (f'{_block}/Moe/Mlp', (E,)) if _n else (f'{_block}/Mlp', ())
    for _d, (_i, _o) in enumerate(((D, F), (F, D))):
        SHAPES[f'{_mlp}/Dense_{_d}/kernel'] = (*_lead, _i, _o)
        SHAPES[f'{_mlp}/Dense_{_d}/bias'] = (*_lead, _o)
SHAPES['Encoder/encoderblock_1/Moe/Router/dense/kernel'] = (D, E)


@pytest.fixture(scope='module')
def params():
    rng = np.random.default_rng(3)
    return {
        name: (rng.normal(size=s) * (0.3 if len(s) > 1 else 0.2) + name.endswith('scale')).astype(
            np.float32
        )
        for name, s in SHAPES.items()
    }


def forward(p, images):
    """V-MoE's own arithmetic, in plain numpy: images [B, H, W, 3], in -1 to 1, to logits."""

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[f'{name}/scale'] + p[f'{name}/bias']

    def dense(x, name, e=None):
        kernel, bias = p[f'{name}/kernel'], p[f'{name}/bias']
        return x @ kernel + bias if e is None else x @ kernel[e] + bias[e]

    def mlp(x, name, e=None):
        h = dense(x, f'{name}/Dense_0', e)
        h = h * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return dense(h, f'{name}/Dense_1', e)

    def attention(x, name):
        q, k, v = (
            np.einsum('bnd,dhe->bhne', x, p[f'{name}/{w}/kernel']) + p[f'{name}/{w}/bias'][:, None]
            for w in ('query', 'key', 'value')
        )
        weights = softmax(np.einsum('bhne,bhme->bhnm', q, k) / np.sqrt(q.shape[-1]))
        out = np.einsum('bhnm,bhme->bnhe', weights, v)
        return np.einsum('bnhe,hed->bnd', out, p[f'{name}/out/kernel']) + p[f'{name}/out/bias']

    def routed(x, name):
        """All first choices before all second ones; each expert has a few slots in a group."""
        slots = -(-CAPACITY_FACTOR * K * GROUP // E)
        slots += -slots % 4
        y = np.zeros_like(x)
        for start in range(0, len(x), GROUP):
            probs = softmax(x[start : start + GROUP] @ p[f'{name}/Router/dense/kernel'])
            order, free = np.argsort(-probs, -1, kind='stable'), np.full(E, slots)
            for choice in range(K):
                for t, e in enumerate(order[:, choice]):
                    if free[e] > 0:
                        free[e] -= 1
                        y[start + t] += probs[t, e] * mlp(x[start + t], f'{name}/Mlp', e)
        return y

    b = len(images)
    patches = images.reshape(b, 2, PATCH, 2, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    x = patches.reshape(b, 4, -1) @ p['embedding/kernel'].reshape(-1, D) + p['embedding/bias']
    x = np.concatenate([np.broadcast_to(p['cls'], (b, 1, D)), x], 1)
    x = x + p['Encoder/posembed_input/pos_embedding']
    for n in range(2):
        name = f'Encoder/encoderblock_{n}'
        x = x + attention(norm(x, f'{name}/LayerNorm_0'), f'{name}/SelfAttention')
        y = norm(x, f'{name}/LayerNorm_1')
        y = routed(y.reshape(-1, D), f'{name}/Moe') if n else mlp(y, f'{name}/Mlp')
        x = x + y.reshape(x.shape)
    x = norm(x, 'Encoder/encoder_norm')[:, 0]
    return dense(np.tanh(dense(x, 'pre_logits')), 'head')


def config_of(data_dir, **changes):
    start = {
        'model.name': 'vit',
        'model.args': {
            'width': D,
            'depth': 2,
            'heads': HEADS,
            'patch_size': PATCH,
            'hidden': F,
            'pool': 'token',
        },
        'model.moe.placement': '1',
        'model.moe.num_experts': E,
        'model.moe.k': K,
        'model.moe.group_size': GROUP,
        'model.moe.eval_capacity_factor': CAPACITY_FACTOR,
    }
    return weight_files.config(data_dir, start | changes)


def imported(path, config, args=None):
    arrays, names = files.read(path)
    source = State(arrays, about={'names': names})
    kind = Import(ImportArgs(**(args or {})))
    config = kind.configured(source, None, config)
    return config, kind(source, None, weight_files.fresh(config, (SIDE, SIDE, 3)), config)


def in_params(arrays):
    return {'params': weight_files.nested(arrays)}


def test_logits_are_those_of_its_own_arithmetic(params, data_dir, tmp_path):
    """Experts lie in files of their own, some choices are dropped, and nothing is normalised."""
    path = weight_files.v_moe(
        tmp_path / 'v', in_params(params), cut=lambda name: E if '/Moe/Mlp/' in name else 1, files=3
    )
    config, state = imported(path, config_of(data_dir), {'mean': (0.5,), 'std': (0.5,)})
    assert config.model.args.representation == D and config.model.moe.capacity_multiple == 4
    x = np.random.default_rng(1).uniform(-1, 1, (4, SIDE, SIDE, 3)).astype(np.float32)
    import input_pipeline

    m, s = (np.float32(v[0]) for v in input_pipeline.mean_std(config.dataset))
    with jax.default_matmul_precision('highest'):
        ours = weight_files.logits(config, state, ((x + 1) / 2 - m) / s)
    theirs = forward(params, x)
    assert np.abs(ours - theirs).max() < 1e-5 * theirs.std()
    assert any('mean 0.5' in line for line in imported(path, config_of(data_dir))[1].told)


def test_drops_make_a_difference_there(params):
    x = np.random.default_rng(1).uniform(-1, 1, (4, SIDE, SIDE, 3)).astype(np.float32)
    global CAPACITY_FACTOR
    before, CAPACITY_FACTOR = CAPACITY_FACTOR, 100.0
    try:
        assert np.abs(forward(params, x)).max() > 0
        unbounded = forward(params, x)
    finally:
        CAPACITY_FACTOR = before
    assert np.abs(unbounded - forward(params, x)).max() > 1e-3


def state_of(params):
    """A training state: Adam's moments have the shapes of parameters."""
    moments = {
        n: weight_files.nested({m: x + i for m, x in params.items()})
        for i, n in enumerate(('mu', 'nu'), 1)
    }
    return in_params(params) | {
        'step': np.int32(7),
        'opt_state': {'0': {'count': np.int32(7), **moments}, '1': {}},
        'rngs': {'dropout': np.arange(2, dtype=np.uint32)},
    }


@pytest.mark.parametrize(
    'order, version',
    [
        (sorted, '20220622'),
        (sorted, None),
        (lambda tree: ['step', 'params', 'opt_state', 'rngs'], None),
    ],
)
def test_parameters_are_found_in_a_training_state_of_either_order(params, order, version, tmp_path):
    path = weight_files.v_moe(tmp_path / 'v', state_of(params), order=order, version=version)
    for given in (path, f'{path}.index'):
        arrays, names = files.read(given)
        assert names == 'v_moe' and arrays.keys() == params.keys()
        for name, x in params.items():
            np.testing.assert_array_equal(arrays[name], x)


def test_a_network_without_these_experts_says_so(params, data_dir, tmp_path):
    path = weight_files.v_moe(tmp_path / 'v', in_params(params))
    with pytest.raises(Misfit) as e:
        imported(path, config_of(data_dir, **{'model.moe.placement': '0'}))
    table = '\n'.join(e.value.table)
    assert 'block_0/experts/in_kernel' in table and 'Moe/Mlp/Dense_0/kernel (4, 16, 24)' in table
    router = {'model.moe.router': 'hash', 'model.moe.router_args': {}, 'model.moe.losses': {}}
    with pytest.raises(UserError, match="router is 'hash'; V-MoE has router 'top_k'"):
        imported(path, config_of(data_dir, **router))


def damage(folder, name, change):
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize('name', ['v.index', 'v.data-00001-of-00002'])
@pytest.mark.parametrize('change', [lambda b: b[:-9], lambda b: b'\xc1', lambda b: b'\x01'])
def test_damaged_files_are_one_line(name, change, params, tmp_path):
    path = weight_files.v_moe(tmp_path / 'v', in_params(params))
    damage(tmp_path, name, change)
    with pytest.raises(UserError, match='cannot be read') as e:
        files.read(path)
    assert '\n' not in str(e.value)


def test_a_file_that_is_missing_is_told(params, tmp_path):
    path = weight_files.v_moe(tmp_path / 'v', in_params(params))
    (tmp_path / 'v.data-00001-of-00002').unlink()
    with pytest.raises(UserError, match='data-00001-of-00002'):
        files.read(path)
