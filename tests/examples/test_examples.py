"""Adds the router, the backbone, the transform and the data set of the examples."""

import ast
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
from configs import digits_k2
from examples import own_losses
from moe_vision import models
from moe_vision.check import transforms
from moe_vision.common.paths import ROOT
from moe_vision.common.place import Place
from moe_vision.config import check as config_lib
from moe_vision.config import registry
from moe_vision.config.places import place_at
from moe_vision.layers import Step
from moe_vision.layers.moe import make_router
from moe_vision.models.places import expert_at
from moe_vision.routing.types import Context, View


def _config(**keys):
    c = digits_k2.get_config()
    for key, value in keys.items():
        section, name = key.split('__')
        part = {'moe': c.model.moe, 'model': c.model, 'dataset': c.dataset, 'train': c.train}[
            section
        ]
        with part.unlocked():
            part[name] = value
    return config_lib.check(c)


def _loss_falls(config, image_shape, num_classes):
    """Five gradient steps on one batch lower its loss; returns the routed layers' names."""
    net = models.build(config.model, num_classes)
    x = jax.random.normal(jax.random.key(0), (config.model.moe.group_size, *image_shape))
    y = jnp.arange(len(x)) % num_classes
    variables = jax.jit(lambda x: net.init(jax.random.key(1), x, Step()))(x)

    @jax.jit
    def step(variables):
        def loss(params):
            (logits, infos), _ = net.apply(
                {**variables, 'params': params},
                x,
                Step(train=True, key=jax.random.key(2)),
                mutable=['batch_stats'],
            )
            each = -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]
            return each.mean(), list(infos)

        (value, layers), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables['params'], grads)
        return {**variables, 'params': params}, value

    losses = []
    for _ in range(5):
        variables, value = step(variables)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    return list(jax.eval_shape(lambda v: net.apply(v, x, Step())[1], variables))


def test_a_router_of_ones_own():
    config = _config(
        moe__router='examples.two_layer_router:TwoLayer',
        moe__router_args={'hidden': 16},
        moe__losses={'importance': 0.01},
        moe__num_experts=4,
        moe__expert_args={},
        model__args={'widths': (8, 16), 'depth': 1},
    )
    assert config.model.moe.router_args.hidden == 16
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_1']
    router = make_router('examples.two_layer_router:TwoLayer', {'hidden': 2}, Place(2, 1))
    params = {'in_kernel': jnp.eye(2), 'out_kernel': jnp.asarray([[1.0, 0.0], [0.0, 3.0]])}
    context = Context(
        valid=jnp.ones((1, 2), bool), key=jax.random.key(0), group=jnp.zeros(1, jnp.int32)
    )
    routing = router(params, {}, jnp.asarray([[[9.0, 0.1], [9.0, 9.0]]]), context)
    np.testing.assert_allclose(routing.logits[0], [[1, 3 * np.tanh(0.1)], [1, 3]], rtol=1e-5)
    np.testing.assert_array_equal(routing.expert_of_choice[0, :, 0], [0, 1])


SMALL = {
    'moe__num_experts': 4,
    'moe__expert_args': {},
    'model__args': {'widths': (8, 16), 'depth': 1},
}
EIGHT = {'moe__num_experts': 8}


def test_a_router_that_observes():
    config = _config(
        moe__router='examples.unsure_router:Unsure',
        moe__router_args={},
        moe__losses={'importance': 0.01},
        **SMALL,
    )
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_1']
    router = make_router('examples.unsure_router:Unsure', {'decay': 0.5}, Place(2, 2))
    context = Context(
        valid=jnp.asarray([[True, True, False]]), key=None, group=jnp.zeros(1, jnp.int32)
    )
    x = jnp.log(jnp.asarray([[[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]]))
    routing = router({'kernel': jnp.eye(2)}, {'sure': jnp.float32(0.7)}, x, context)
    # the first token is sure, the second is not, the third is padding
    assert routing.active.tolist() == [[[True, False], [True, True], [False, False]]]
    seen = {n: v.sum(0) for n, v in router.observe(routing, context).items()}
    state = router.update_state({'sure': jnp.float32(0.5)}, seen | {'tokens': jnp.float32(2)})
    assert float(state['sure']) == pytest.approx(0.5 * 0.5 + 0.5 * (0.9 + 0.6) / 2)


def test_a_router_that_pools_its_own_features():
    config = _config(moe__router='examples.contrast_router:Contrast', **SMALL)
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_1']
    router = make_router('examples.contrast_router:Contrast', None, Place(4, 2))
    x = jnp.asarray([1.0, 3.0, 1.0, 3.0]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(router.pool({}, x, {}), [[2.0, 1.0]], rtol=1e-5)
    assert router.params(8)['kernel'][0] == (16, 4)


def test_losses_of_ones_own():
    short, alike = 'examples.own_losses:short_rows', 'examples.own_losses:alike'
    in_a_file = alike.replace('.', '/')  # a ConfigDict takes no names with dots
    config = _config(
        moe__losses={short.replace('.', '/'): 0.01, in_a_file: 0.1},
        moe__loss_args={in_a_file: {'margin': 0.5}},
        **SMALL,
    )
    assert config.model.moe.loss_args[alike].margin == 0.5
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_1']
    view = View(Place(3, 1), own_losses.AlikeArgs(0.5), bank={'w': jnp.eye(3)[:, None]})
    assert float(own_losses.alike(view, None)) == 0
    same = dataclasses.replace(view, bank={'w': jnp.ones((3, 1, 2)), 'b': jnp.ones((3, 2))})
    assert float(own_losses.alike(same, None)) == pytest.approx(0.5)  # cosine 1, margin 0.5


def test_experts_that_differ():
    """The kinds that the example's command names, read from it."""
    text = (ROOT / 'examples' / 'kinds_of_experts.py').read_text()
    kinds = ast.literal_eval(re.search(r'kinds="(\(.*?\))"', text, re.S)[1])
    config = _config(moe__kinds=kinds, moe__losses={'importance': 0.01}, **SMALL | EIGHT)
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_1']
    expert = expert_at(config.model.moe, 16, 16)
    assert [(type(e).__name__, n) for e, n in expert.parts(8)] == [
        ('Conv', 4),
        ('Conv', 2),
        ('Rescale', 2),
    ]
    assert place_at(config.model, 0).kinds == (0, 0, 1, 2) * 2  # two blocks of ids
    one = expert.kinds[2][0].apply({'scale': jnp.asarray([2.0, 3.0])}, jnp.ones((1, 2)))
    np.testing.assert_array_equal(one, [[2.0, 3.0]])


def test_a_backbone_of_ones_own():
    config = _config(
        model__name='examples.mixer_backbone:Mixer',
        model__args={'width': 16},
        moe__group_size=64,
        moe__num_experts=4,
    )
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_2']


def test_a_transform_of_ones_own():
    name = 'examples.steady_router:Steady'
    args = config_lib.from_dict(
        config_lib.to_dict(_config(train__transforms={name.replace('.', '/'): {'until': 0.5}}))
    ).train.transforms[name]
    transforms.transform(name, {'until': 0.5})
    made = registry.load(name)(args, 4)
    params = {'head': {'router': {'kernel': jnp.array([[3.0, 0.0], [4.0, 2.0]])}}, 'b': jnp.ones(2)}
    updates = jax.tree.map(lambda p: p + 1.0, params)
    state = made.init(params)
    for step, turned in ((0, True), (1, True), (2, False)):
        new, state = made.update(updates, params, step=jnp.int32(step), state=state)
        w = params['head']['router']['kernel'] + new['head']['router']['kernel']
        want = np.array([[7.0, 1.0], [9.0, 5.0]])  # twice the column, and 1
        if turned:  # to the lengths 5 and 2
            want = want * np.array([5.0, 2.0]) / np.sqrt([49 + 81, 1 + 25])
        np.testing.assert_allclose(w, want, rtol=1e-6)
        np.testing.assert_array_equal(new['b'], updates['b'])


def test_the_transform_in_the_documentation():
    guide = (ROOT / 'docs' / 'adding.md').read_text()
    names: dict = {}
    exec(guide.split('for one step in\ntwo:')[1].split('```python\n')[1].split('```')[0], names)
    turns, bank = names['Turns'](None, 9), jnp.ones((3, 2, 2))
    for step in (0, 1):
        found = turns.moves('a/experts/kernel', bank, step=jnp.int32(step), state={})
        assert found.ravel().tolist() == [step == 0, step == 1, step == 0]
        assert (found & (bank > 0)).shape == bank.shape
    assert turns.moves('a/router/kernel', bank, step=jnp.int32(0), state={}) is True


def test_a_router_that_reads_the_experts():
    """The expert whose first matrix is the largest finds most; what experts learn moves routes."""
    config = _config(
        moe__router='examples.autonomous_router:Autonomous',
        moe__router_args={},
        moe__losses={},
        moe__num_experts=4,
        moe__expert_args={},
        model__args={'widths': (8, 16), 'depth': 1},
    )
    layers = _loss_falls(config, (8, 8, 1), 10)
    router = make_router('examples.autonomous_router:Autonomous', None, place_at(config.model, 0))
    expert = expert_at(config.model.moe, 16, 16)
    bank = {n: jnp.ones((4, *s)) for n, (s, _) in expert.shapes().items()}
    bank['conv1'] = bank['conv1'] * jnp.asarray([1.0, 3.0, 2.0, 0.5])[:, None, None, None, None]
    x = jnp.ones((1, 6, 16))
    valid = jnp.ones((1, 6), bool)
    view = View(router.place, tokens=x, bank=bank, expert=expert)
    routing = router({}, {}, x, Context(valid, None, jnp.arange(1), view=view))
    assert layers and (routing.expert_of_choice == jnp.asarray([1, 2])).all()
    # a convolution of ones sums 9 x 16 ones
    np.testing.assert_allclose(routing.logits[0, 0], np.array([1, 3, 2, 0.5]) * 9 * 16, rtol=1e-5)


def test_a_data_set_of_ones_own(tmp_path):
    config = _config(
        dataset__name='examples.patches_dataset:Patches',
        dataset__augment='none',
        dataset__data_dir=str(tmp_path),
    )
    info = input_pipeline.info(config.dataset)
    assert (info.num_classes, info.image_shape) == (2, (16, 16, 3))
    input_pipeline.require(config.dataset)
    seen = 0
    with input_pipeline.evaluation_batches(
        config.dataset, split='test', batch_size=100, rows=range(100)
    ) as batches:
        for batch in batches:
            seen += int(batch['valid'].sum())
    assert seen == info.split_sizes['test'] == 1040  # 2 photographs x 26 rows x 20 columns


@pytest.mark.parametrize('name', sorted(p.stem for p in (ROOT / 'examples').glob('[!_]*.py')))
def test_the_commands_in_an_example_name_what_it_defines(name):
    text = (ROOT / 'examples' / f'{name}.py').read_text()
    named = re.findall(r'(examples\.\w+):(\w+)', text)
    assert named
    for module, own in named:
        assert module == f'examples.{name}' and re.search(rf'^(class|def) {own}\(', text, re.M)


def test_the_layer_in_a_model_of_ones_own():
    """Runs the ten lines in the README unchanged."""
    readme = (ROOT / 'README.md').read_text()
    code = readme.split('<!-- own model -->')[1].split('```python\n')[1].split('```')[0]
    names: dict = {}
    exec(code, names)
    assert names['y'].shape == names['x'].shape
    assert set(names['info']['losses']) == {'importance'}
    assert np.isfinite(names['info']['losses']['importance'])


def test_layers_share_the_columns_of_a_router_and_its_experts():
    config = _config(
        moe__router='examples.shared_router:SharedColumns',
        moe__router_args={'decay': 0.5},
        moe__losses={'importance': 0.01},
        moe__num_experts=4,
        moe__expert_args={},
        moe__placement='last_2',
        moe__bank='2',
        model__args={'widths': (8, 16), 'depth': 2},
    )
    assert _loss_falls(config, (8, 8, 1), 10) == ['block_2', 'block_3']
    net = models.build(config.model, 10)
    x = jnp.zeros((config.model.moe.group_size, 8, 8, 1))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), x, Step()))
    params = jax.tree_util.tree_leaves_with_path(variables['params'])
    names = ['/'.join(k.key for k in path) for path, _ in params]
    assert sum(n.endswith('/project') for n in names) == 2  # one in each layer
    assert sum(n.endswith('/columns') for n in names) == 1
    assert sum(n.endswith('/conv1') and 'bank' in n for n in names) == 1
    router = make_router(config.model.moe.router, {'decay': 0.5}, place_at(config.model, 0))
    sums = [{'chosen': jnp.array(c)} for c in ([3.0, 1.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0])]
    share = router.update_shared_state({'share': jnp.full(4, 0.25)}, sums)['share']
    np.testing.assert_allclose(share, [0.375, 0.375, 0.125, 0.125])
