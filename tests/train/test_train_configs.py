"""Every shipped config builds and traces a training step, at reduced size."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from train_cases import ROOT

import input_pipeline
from moe_vision import config as config_lib
from moe_vision import train

NAMES = sorted({p.stem for p in (ROOT / 'configs').glob('*.py')} - {'__init__', 'base', 'workdir'})


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_and_traces(name, monkeypatch):
    monkeypatch.setattr(input_pipeline, 'require', lambda cfg: None)  # no data on disk
    c = importlib.import_module(f'configs.{name}').get_config()
    c.dataset.data_dir = '/nonexistent'
    c.train.batch_size = c.model.moe.group_size  # one group
    if 'imagenet' in name:
        c.dataset.image_size = 32
    if 'depth' in c.model.args and len(c.model.args.widths) > 3:
        c.model.args.depth = 1
    config = config_lib.check(c)
    setup = train.Setup(config)
    h, w, channels = setup.info.image_shape
    rows = (1, config.train.batch_size)
    state, out = jax.eval_shape(setup.step, setup.abstract, {
        'image': jax.ShapeDtypeStruct((*rows, h, w, channels), jnp.uint8),
        'label': jax.ShapeDtypeStruct(rows, jnp.int32),
        'valid': jax.ShapeDtypeStruct(rows, jnp.bool_)})
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, setup.shapes)
    assert all(jax.tree.leaves(same))
    assert out['loss'].shape == () and out['loss'].dtype == jnp.float32
    routed = config.model.moe.placement != 'none' and config.model.twin == 'none'
    assert bool(out['layers']) == routed
    assert any('/experts/' in f'{jax.tree_util.keystr(p, simple=True, separator="/")}/'
               for p, _ in jax.tree_util.tree_leaves_with_path(setup.shapes.params)) == routed
