"""Weights of other programs: the same logits, or a table of what does not fit."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import timm_logits
import weight_files

from moe_vision.common.errors import UserError
from moe_vision.config.surgery import ImportArgs
from moe_vision.surgery.import_weights import Import, interpolated
from moe_vision.surgery.state import Misfit, State
from moe_vision.surgery.weights import files

TIMM = json.loads(timm_logits.FILE.read_text())
NETWORKS = {
    'vit': {'width': 32, 'depth': 2, 'heads': 4, 'patch_size': 8, 'pool': 'token'},
    'convnext': {'widths': (8, 16, 24, 32), 'depths': (1, 2, 1, 1)},
    'resnet': {'widths': (256, 32, 32, 32), 'depths': (2, 2, 1, 1)},
}


def arrays_of(name):
    return {n: timm_logits.drawn(n, s) for n, s in TIMM[name]['shapes'].items()}


def config_of(data_dir, name, **changes):
    start = {'model.name': name, 'model.args': NETWORKS[name], 'model.moe.placement': 'none'}
    return weight_files.config(data_dir, start | changes)


def imported(source, config, args=None, classes=5, size=32, names=()):
    """(config, state) of the result."""
    kind = Import(ImportArgs(**(args or {})))
    config = kind.configured(source, None, config)
    fresh = weight_files.fresh(config, (size, size, 3), classes, names=names)
    return config, kind(source, None, fresh, config)


def source_of(name, changed=lambda arrays: arrays):
    return State(changed(arrays_of(name)), about={'names': 'torch'})


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_are_those_of_timm(name, data_dir, tmp_path):
    """They differ by rounding alone, through a file, at a full and at a ragged image size."""
    path = weight_files.safetensors(tmp_path / 'x.safetensors', arrays_of(name))
    arrays, names = files.read(path)
    source = State(arrays, about={'names': names})
    config, state = imported(source, config_of(data_dir, name), size=timm_logits.SIZES[name])
    with jax.default_matmul_precision('highest'):
        ours = weight_files.logits(config, state, timm_logits.images(name))
    theirs = np.array(TIMM[name]['logits'])
    assert np.abs(ours - theirs).max() < (5e-6 if name == 'vit' else 1e-4) * theirs.std()
    assert f'took {len(state.params) + len(state.batch_stats)} arrays' in state.told


@pytest.mark.parametrize(
    'name, option', [('vit', 'activation'), ('convnext', 'activation'), ('resnet', 'padding')]
)
def test_without_the_options_that_import_sets_they_are_others(name, option, data_dir):
    config, state = imported(
        source_of(name), config_of(data_dir, name), size=timm_logits.SIZES[name]
    )
    default = {'activation': 'gelu', 'padding': 'same'}[option]
    args = dataclasses.replace(config.model.args, **{option: default})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, args=args))
    ours = weight_files.logits(config, state, timm_logits.images(name))
    theirs = np.array(TIMM[name]['logits'])
    assert np.abs(ours - theirs).max() > 2e-4 * theirs.std()


def test_a_same_width_twin_is_a_dense_network_too(data_dir):
    """Its blocks at routed places take gelu from the arguments of the expert."""
    config = config_of(
        data_dir,
        'vit',
        **{
            'model.moe.placement': 'every_2',
            'model.moe.group_size': 17,
            'model.twin': 'same_width',
        },
    )
    config, state = imported(source_of('vit'), config)
    assert config.model.moe.expert_args.activation == 'gelu_erf'
    ours = weight_files.logits(config, state, timm_logits.images('vit'))
    theirs = np.array(TIMM['vit']['logits'])
    assert np.abs(ours - theirs).max() < 1e-5 * theirs.std()


def test_what_does_not_fit_is_named_in_one_table(data_dir):
    def changed(arrays):
        del arrays['blocks.1.norm1.bias']
        arrays['blocks.0.mlp.fc1.weight'] = arrays['blocks.0.mlp.fc1.weight'][:-1]
        return arrays | {'blocks.0.ls1.gamma': np.ones(32, np.float32)}

    with pytest.raises(Misfit, match="into 'vit': 3 arrays do not fit") as e:
        imported(source_of('vit', changed), config_of(data_dir, 'vit'))
    table = '\n'.join(e.value.table)
    assert 'blocks.0.ls1.gamma (32,)' in table and 'this network has no such array' in table
    assert 'block_1_attention_norm/bias float32 (32,)' in table
    assert 'blocks.0.mlp.fc1.weight (127, 32)' in table and '(32, 128) is due' in table


@pytest.mark.parametrize(
    'name, changes, hint',
    [
        ('vit', {'model.moe.group_size': 17}, 'import it into a dense network, and then upcycle'),
        ('resnet', {'model.twin': 'same_width'}, 'use --config.model.moe.placement=none'),
    ],
)
def test_a_network_that_the_file_cannot_fill_says_what_works(name, changes, hint, data_dir):
    config = config_of(data_dir, name, **{'model.moe.placement': '0', **changes})
    with pytest.raises(Misfit) as e:
        imported(source_of(name), config)
    assert hint in '\n'.join(e.value.table)


def test_the_head_is_new_where_classes_are_others(data_dir, tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('a\nb\nc\nd\ne\n')
    source, config = source_of('vit'), config_of(data_dir, 'vit')

    def head(args=None, **more):
        _, state = imported(source, config, args, **more)
        return state.params['classifier/bias'].any(), ' '.join(state.told)  # a new one is zero

    taken, told = head()
    assert taken and 'its 5 classes in the order of the data set' in told
    taken, told = head({'classes': str(names)}, names=tuple('abcde'))
    assert taken and 'have the same names' in told
    taken, told = head({'classes': str(names)}, names=tuple('bacde'))
    assert not taken and 'new: the classes there have other names' in told
    taken, told = head(classes=7)
    assert not taken and 'new: it has 5 classes there and 7 here' in told
    assert not head({'head': 'new'})[0]
    source = source_of('vit', lambda a: {n: x for n, x in a.items() if 'head' not in n})
    assert not head()[0]


def test_positions_are_interpolated_to_another_image_size(data_dir):
    source = source_of('vit')
    _, state = imported(source, config_of(data_dir, 'vit'), size=48)
    assert state.params['position'].shape == (1, 37, 32)
    assert 'interpolated positions from 17 to 37 tokens' in state.told
    there = source.params['pos_embed']
    np.testing.assert_array_equal(state.params['position'][:, 0], there[:, 0])
    plane = np.add.outer(np.arange(4.0), 2 * np.arange(4.0)).reshape(1, 16, 1)
    fine = interpolated(plane.astype(np.float32), 64, class_token=False).reshape(8, 8)
    # away from the border a plane stays one: half the steps between neighbours
    np.testing.assert_allclose(np.diff(fine[3:5, 3:5], axis=0), 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.diff(fine[3:5, 3:5], axis=1), 1.0, rtol=1e-5)


def test_the_first_layer_takes_over_how_images_were_normalised(data_dir):
    """With x the image, both networks see the same; digits have a mean of their own."""
    import input_pipeline

    config = config_of(data_dir, 'vit')
    _, plain = imported(source_of('vit'), config)
    config, moved = imported(source_of('vit'), config, {'mean': (0.5,), 'std': (0.25,)})
    m, s = (np.float32(x[0]) for x in input_pipeline.mean_std(config.dataset))
    x = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    there = weight_files.logits(config, plain, (x - 0.5) / 0.25)
    np.testing.assert_allclose(weight_files.logits(config, moved, (x - m) / s), there, atol=2e-5)
    with pytest.raises(UserError, match='pads and has no bias'):
        imported(source_of('resnet'), config_of(data_dir, 'resnet'), {'mean': (0.9,), 'std': (1,)})


def test_files_of_numpy_and_half_precision(data_dir, tmp_path):
    arrays = {n: x.astype(np.float16) for n, x in arrays_of('vit').items()}
    np.savez(tmp_path / 'x.npz', **arrays)
    path = weight_files.safetensors(tmp_path / 'x.safetensors', arrays)
    for file in (str(tmp_path / 'x.npz'), path):
        found, names = files.read(file)
        assert names == 'torch' and found.keys() == arrays.keys()
        for name, x in arrays.items():
            np.testing.assert_array_equal(found[name], x)
    _, state = imported(State(found, about={'names': 'torch'}), config_of(data_dir, 'vit'))
    assert {x.dtype.name for x in state.params.values()} == {'float32'}


def longer(header):
    header['a']['data_offsets'][1] += 4
    return header


def larger(header):
    header['a']['shape'] = [2**40]
    return header


@pytest.mark.parametrize('change', [longer, larger, lambda h: [1], lambda h: {'a': {}}])
def test_a_header_that_lies_is_refused(change, tmp_path):
    path = weight_files.safetensors(tmp_path / 'x.safetensors', {'a': np.ones(3, 'f4')}, change)
    with pytest.raises(UserError, match='cannot be read') as e:
        files.read(path)
    assert '\n' not in str(e.value)


def test_a_header_that_is_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes((2**62).to_bytes(8, 'little') + b'{}')
    with pytest.raises(UserError, match='its header would have'):
        files.read(str(tmp_path / 'x.safetensors'))


class Hostile:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('name', ['x.npz', 'x.pth', 'x.safetensors'])
def test_a_pickle_that_runs_code_runs_nothing(name, tmp_path):
    import pickle

    mark, file = tmp_path / 'mark', tmp_path / name
    if name == 'x.npz':
        np.savez(file, a=np.array([Hostile(mark)], object))
    else:
        file.write_bytes(pickle.dumps({'a': Hostile(mark)}))
    with pytest.raises(UserError):
        files.read(str(file))
    assert not mark.exists()


def test_what_numpy_files_may_hold(tmp_path):
    np.savez(tmp_path / 'x.npz', a=np.zeros(3, [('b', 'f4')]))
    with pytest.raises(UserError, match="'a' is of type .*; numbers are read alone"):
        files.read(str(tmp_path / 'x.npz'))
    np.savez_compressed(tmp_path / 'x.npz', a=np.arange(1000.0))
    data = bytearray((tmp_path / 'x.npz').read_bytes())
    data[200:260] = bytes(60)
    (tmp_path / 'x.npz').write_bytes(data)
    with pytest.raises(UserError, match='cannot be read'):
        files.read(str(tmp_path / 'x.npz'))


def test_a_file_that_is_none_says_which_there_are(tmp_path):
    with pytest.raises(UserError, match='there is no such file. Give a .safetensors, .npz'):
        files.read(str(tmp_path / 'x.safetensors'))
    (tmp_path / 'x.bytes').write_bytes(b'')
    with pytest.raises(UserError, match='its name must end in .safetensors'):
        files.read(str(tmp_path / 'x.bytes'))


@pytest.mark.parametrize('exact', [True, False])
def test_exact_variances_hold_where_the_mean_is_large(exact):
    """The mean of x^2, less the squared mean, loses what is left of x beside a mean of 1,000."""
    from moe_vision.config.backbone_args import VitArgs
    from moe_vision.models.parts import layer_norm

    x = np.random.default_rng(0).normal(size=(4, 64)) + 1000
    norm = layer_norm(VitArgs(exact_variance=exact), 'float32')()
    params = {'scale': np.ones(64, 'f4'), 'bias': np.zeros(64, 'f4')}
    ours = norm.apply({'params': params}, x.astype(np.float32))
    theirs = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    assert (np.abs(ours - theirs).max() < 1e-3) == exact
