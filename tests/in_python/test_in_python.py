"""moe_vision in Python: train, look, predict, with the names that `dir(moe_vision)` shows."""

import inspect
import json

import numpy as np
import pytest

import moe_vision as mv
from moe_vision.common.errors import UserError
from moe_vision.in_python import pictures
from moe_vision.in_python.table import Table, flat

TINY = {
    'dataset': {'augment': 'none'},
    'model': {'name': 'vit', 'args': {'width': 8, 'depth': 2, 'heads': 2, 'patch_size': 2}},
    'model__moe__num_experts': 4,
    'model__moe__group_size': 16,
    'train__steps': 4,
    'train__batch_size': 32,
    'train__warmup_epochs': 0.0,
    'eval__every_steps': 2,
    'log__every_steps': 2,
}


@pytest.fixture(scope='module')
def run(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    return mv.train(mv.config('digits_k2'), folder, dataset__data_dir=data_dir, **TINY)


def test_dir_shows_what_there_is():
    shown = [name for name in dir(mv) if not name.startswith('_')]
    assert shown == sorted(mv.__all__) == ['Run', 'config', 'leverage', 'load', 'summary', 'train']
    assert all(callable(getattr(mv, name)) for name in shown)


def test_config_and_leverage_are_packages_and_functions():
    import moe_vision.config.check
    import moe_vision.leverage.table

    assert moe_vision.config.check.check and moe_vision.leverage.table.text
    assert list(inspect.signature(mv.config).parameters) == ['name', 'overrides']
    assert repr(mv.config).startswith('<package and function moe_vision.config(name')
    assert repr(mv.leverage).startswith('<package and function moe_vision.leverage(config')


def test_a_config_comes_by_name_or_from_a_file(tmp_path):
    shipped, file = mv.config('digits_k2'), mv.config('configs/digits_k2.py')
    assert shipped == file and shipped.is_locked
    assert mv.config('digits_k2', train__epochs=2, model={'moe': {'k': 1}}).model.moe.k == 1
    with pytest.raises(UserError, match="no config 'digits_k3' .* Did you mean 'digits_k2'"):
        mv.config('digits_k3')
    with pytest.raises(UserError, match=r"config file 'configs/digits_k3.py' does not exist"):
        mv.config('configs/digits_k3.py')


@pytest.mark.parametrize(
    'overrides, said',
    [
        ({'train__epoch': 2}, "unknown key 'train.epoch'. Did you mean 'train.epochs'?"),
        ({'epochs': 2}, "unknown key 'epochs'. Did you mean 'train.epochs'?"),
        ({'train': {'epoch': 2}}, "unknown key 'train.epoch'."),
        ({'train': 3}, "unknown key 'train'."),
        ({'train__epochs': 'two'}, "train.epochs is 'two'; it must be a number"),
        ({'model__moe__router_args__nois': 'x'}, "Did you mean 'noise'?"),
    ],
)
def test_a_wrong_override_is_told_before_anything_is_written(overrides, said, tmp_path):
    config = mv.config('digits_k2')
    with pytest.raises(UserError) as error:
        mv.train(config, tmp_path / 'w', **overrides)
    assert said in str(error.value) and not (tmp_path / 'w').exists()
    assert config == mv.config('digits_k2')  # it stays as it was


def test_overrides_reach_arguments_of_methods_and_losses():
    config = mv.config(
        'digits_k2',
        model__moe__router_args={'temperature': 0.5},
        model__moe__losses={'switch': 0.1},
        **{'model.args.depth': 3},
    )
    assert config.model.moe.router_args.to_dict() == {'temperature': 0.5}
    assert config.model.moe.losses.to_dict() == {'switch': 0.1}
    assert config.model.args.depth == 3


def test_a_run_tells_what_it_is(run):
    assert repr(run) == (
        f"<Run '{run.workdir}' of digits: test accuracy {run.result['test_accuracy']:.2%} after 4 "
        f'steps, rho_place {run.result["rho_place"]:.4f}>'
    )
    assert run.config.train.steps == 4 and run.config.model.args.depth == 2
    with open(f'{run.workdir}/result.json') as f:
        assert run.result == json.load(f)
    assert run.evaluation['layers'].keys() == {'block_1'}
    assert mv.Run(run.workdir).result == run.result
    with pytest.raises(UserError, match='holds no run'):
        mv.Run(run.workdir + '/checkpoints')


def test_the_history_is_a_table(run):
    history = run.history
    assert history.where(split='train')['step'] == [2, 4]
    assert history.where(split='validation')['step'] == [2, 4]
    assert len(history['layers.block_1.load'][0]) == 4
    assert all(isinstance(v, float) for v in history['loss'])
    assert not any('probe' in c for c in history.columns)
    assert repr(history).endswith(f'[4 rows, {len(history.columns)} columns]')
    assert '<th>loss</th>' in history._repr_html_()
    with pytest.raises(UserError, match="no column 'los'. Did you mean 'loss'"):
        history['los']


def test_a_table_by_hand():
    table = Table([{'a': 1, 'b': {'x': 0.25}}, {'a': 2, 'c': 'n'}] * 10)
    table = Table(map(flat, table))
    assert table.columns == ['a', 'b.x', 'c'] and table['c'][:2] == [None, 'n']
    assert isinstance(table[:2], Table) and table[1] == {'a': 2, 'c': 'n'}
    assert repr(table[:2]) == 'a   b.x  c\n1  0.25   \n2        n\n[2 rows, 3 columns]'
    assert len(repr(table).splitlines()) == 15 and '…' in repr(table)


def test_prediction_and_model(run):
    images, labels = run.images(5)
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8 and len(labels) == 5
    prediction = run.predict(images)
    model = mv.load(run.workdir)
    np.testing.assert_array_equal(prediction.probabilities, model(images).probabilities)
    assert repr(model).startswith("<Model vit of 'digits', step 4: 4 experts, k=2, at last_1")
    assert repr(prediction).startswith('<Prediction of 5 images: classes [')
    assert run.model is run.model


def test_pictures(run):
    images, _ = run.images(3)
    for picture in (run.plot(), run.routes(images)):
        assert picture._repr_png_().startswith(b'\x89PNG')
    routes = run.routes(images, 'block_1')
    numbers = [t.get_text() for t in routes.axes[0].texts]
    chosen = run.predict(images).layers['block_1']
    first = chosen['expert'][0][np.arange(16), chosen['gate'][0].argmax(-1)]
    assert numbers == [str(e) for e in first]
    with pytest.raises(UserError, match="no routed layer 'block_0'. Did you mean 'block_1'"):
        run.routes(images, 'block_0')


def test_the_grid_of_patches():
    assert pictures.grid(16, 8, 8) == (4, 4, 0)
    assert pictures.grid(17, 8, 8) == (4, 4, 1)  # a class token comes first
    assert pictures.grid(8, 4, 8) == (2, 4, 0)
    with pytest.raises(ValueError):
        pictures.grid(7, 8, 8)


def test_leverage_and_summary_count_without_training():
    config = mv.config('digits_k2')
    leverage = mv.leverage(config)
    assert repr(leverage).startswith('<Leverage: rho_place 0.2344, ')
    assert mv.leverage(config, model__moe__k=1).rho_place == leverage.rho_place
    summary = mv.summary(config, train__epochs=3.0)
    assert repr(summary) == summary and 'rho_place 0.2344' in summary and '(3.0 epochs)' in summary


def test_report_is_written_anew(run):
    path = run.report()
    assert path == f'{run.workdir}/report.html' and '<html' in open(path).read()[:200]
