"""Every file of configs builds and traces a training step, at reduced size.

Of files that hold a table of arms the first one does: test_studies.py traces the others' networks.
"""

import jax
import jax.numpy as jnp
import pytest
from config_cases import CONFIGS, made

import input_pipeline
from moe_vision.config import check as config_lib
from moe_vision.training import loop

SMALL = {
    'conv': {'depth': 1},
    'resnet': {'widths': (32,), 'depths': (2,)},
    'convnext': {'widths': (16,), 'depths': (1,)},
    'vit': {'depth': 2},
}
FIRST = {n.partition(':')[0]: n for n in reversed(CONFIGS)}  # of each file
NAMES = sorted(FIRST[file] for file in FIRST if file != 'base.py')


@pytest.mark.tables
@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_and_traces(name, monkeypatch):
    monkeypatch.setattr(input_pipeline, 'require', lambda cfg: None)  # no data on disk
    c = made(name)
    c.dataset.data_dir = '/nonexistent'
    if 'imagenet' in name:
        c.dataset.image_size = 32
        c.model.args.update(SMALL.get(c.model.name, {}))
        c.model.moe.hidden = min(c.model.moe.hidden, 16)
    if c.model.moe.placement.startswith('last_'):
        c.model.moe.placement = 'last_1'
    if c.model.name == 'vit':
        c.model.moe.group_size = c.model.moe.group_size // 197 * 5  # 4 patches and the class token
    c.train.batch_size = max(c.model.moe.group_size, 2)  # one group, or a pair to mix
    c.mesh.expert = 1  # the device there is
    config = config_lib.check(c)
    setup = loop.Setup(config)
    h, w, channels = setup.info.image_shape
    rows = (1, config.train.batch_size)
    state, out = jax.eval_shape(
        setup.step,
        setup.abstract,
        {
            'image': jax.ShapeDtypeStruct((*rows, h, w, channels), jnp.uint8),
            'label': jax.ShapeDtypeStruct(rows, jnp.int32),
            'valid': jax.ShapeDtypeStruct(rows, jnp.bool_),
        },
    )
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, setup.shapes)
    assert all(jax.tree.leaves(same))
    assert out['loss'].shape == () and out['loss'].dtype == jnp.float32
    routed = config.model.moe.placement != 'none' and config.model.twin == 'none'
    drops = config.model.twin == 'same_drops'  # tells what it drops
    assert bool(out['layers']) == (routed or drops)
    assert (
        any(
            '/experts/' in f'{jax.tree_util.keystr(p, simple=True, separator="/")}/'
            for p, _ in jax.tree_util.tree_leaves_with_path(setup.shapes.params)
        )
        == routed
    )
