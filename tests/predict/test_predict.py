"""A run predicts image files as its evaluation does at unbounded capacity, each image alone."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import train_cases

import input_pipeline
import moe_vision
from input_pipeline.decode import encode_png
from moe_vision.common.errors import UserError
from moe_vision.predict import __main__ as predict
from moe_vision.run_folder import checkpoints, record
from moe_vision.training.setup import Setup

CASES = {
    'images': {
        'model.moe.placement': 'head',
        'model.args': {'widths': (8,), 'depth': 1},
        'model.moe.num_experts': 8,
        'model.moe.eval_capacity_factor': 0.75,
    },
    'patches': train_cases.VIT
    | {
        'model.moe.eval_capacity_factor': 0.75,
        'model.moe.group_size': 4,
        'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    },
}


def saved(config, folder, change=lambda state: state):
    """Writes a run's folder with its config and one checkpoint, without training."""
    setup = Setup(config)
    record.write_config(str(folder), config, 'mine.py', setup.info, setup.cost)
    state = change(setup.fresh_state())
    with checkpoints.Checkpoints(str(folder), 1) as saves:
        saves.save(int(state.step), state)
    return setup, state


@pytest.fixture(scope='module', params=CASES)
def run(request, data_dir, tmp_path_factory):
    """(folder, setup, state with a moving average that differs from the weights)."""

    def shift(state):
        return dataclasses.replace(
            state, step=state.step + 6, ema=jax.tree.map(lambda x: x + 0.05, state.params)
        )

    folder = tmp_path_factory.mktemp('run')
    return (folder, *saved(train_cases.make(data_dir, CASES[request.param]), folder, shift))


@pytest.fixture(scope='module')
def model(run):
    return moe_vision.load(str(run[0]))


@pytest.fixture(scope='module')
def digits(data_dir):
    config = train_cases.make(data_dir).dataset
    with input_pipeline.evaluation_batches(
        config, split='test', batch_size=360, rows=range(360)
    ) as batches:
        return next(batches)


@pytest.fixture(scope='module')
def pictures(digits, tmp_path_factory):
    """A folder with ten test images as PNG, some of them in a subfolder, and two other files."""
    folder = tmp_path_factory.mktemp('pictures')
    (folder / 'below').mkdir()
    for i in range(10):
        to = folder / ('below' if i % 3 == 2 else '') / f'{i}.PNG'
        to.write_bytes(encode_png(digits['image'][i]))
    (folder / 'notes.txt').write_text('no image')
    (folder / '.hidden.png').write_text('no image')
    return folder


def test_images_are_predicted_as_the_evaluation_does_at_unbounded_capacity(run, model, digits):
    _, setup, state = run
    prediction = model(digits['image'])
    assert prediction.probabilities.shape == (360, 10) and model.step == 6
    near(prediction.probabilities.sum(1), 1)
    assert list(prediction.layers) == [*setup.cost.capacities]
    want = setup.evaluator.score(state, 'test', 0.5)['accuracy_unbounded']
    right = prediction.probabilities.argmax(1) == digits['label']
    assert float(right.mean()) == want
    (layer,) = prediction.layers.values()
    assert layer['kept'].all() and layer['expert'].shape[2] == 2
    assert len(np.unique(layer['expert'])) > 2


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_image_does_not_depend_on_the_others(model, digits):
    some = digits['image'][:8]
    together, alone = model(some), [model(x[None]) for x in some]
    mixed = model(np.concatenate([some[:1], digits['image'][100:107]]))
    for i, one in enumerate(alone):
        near(together.probabilities[i], one.probabilities[0])
        for name, layer in one.layers.items():
            assert (together.layers[name]['expert'][i] == layer['expert'][0]).all()
    near(mixed.probabilities[0], alone[0].probabilities[0])


def test_images_of_another_shape_are_refused(model, digits):
    for wrong in (digits['image'][0], digits['image'][:2].astype(np.float32)):
        with pytest.raises(UserError, match='this network takes uint8'):
            model(wrong)


def command(capsys, *args):
    code = predict.main([*map(str, args)])
    out, error = capsys.readouterr()
    return code, out, error


def test_the_command_at_any_batch_size(run, model, pictures, digits, capsys):
    folder, setup, _ = run
    rows = {}
    for size in (1, 4):
        code, out, error = command(
            capsys, f'--workdir={folder}', f'--batch_size={size}', '--json', pictures
        )
        assert code == 0 and error == ''
        rows[size] = [json.loads(line) for line in out.splitlines()]
    names = [r['file'] for r in rows[1]]
    assert names == [r['file'] for r in rows[4]] == sorted(names) and len(names) == 10
    for one, other in zip(rows[1], rows[4], strict=True):
        i = int(one['file'].rsplit('/', 1)[1].removesuffix('.PNG'))
        prediction = model(digits['image'][i : i + 1])
        p = prediction.probabilities[0]
        assert [c['label'] for c in one['classes']] == [*(-p).argsort(kind='stable')[:5]]
        assert [c['class'] for c in one['classes']] == [
            setup.info.class_names[c['label']] for c in one['classes']
        ]
        near(
            [c['probability'] for c in one['classes']], [c['probability'] for c in other['classes']]
        )
        for name, experts in one['layers'].items():
            layer = prediction.layers[name]
            want = sorted({*layer['expert'][0].ravel().tolist()})
            assert sorted(r['expert'] for r in experts) == want
            gates = [r['gate'] for r in experts]
            assert gates == sorted(gates, reverse=True)
            near(sum(gates), layer['gate'][0].sum(-1).mean())


@pytest.mark.parametrize('axis', ['batch', 'none'])
def test_a_network_that_mixes_images_prints_a_note(axis, data_dir, capsys):
    config = train_cases.make(
        data_dir,
        {
            'model.moe.router': 'soft',
            'model.moe.losses': {},
            'model.moe.router_args': {'axis': axis},
        },
    )
    predict._note(types.SimpleNamespace(config=config))
    assert ('mixes the images of a group' in capsys.readouterr().err) == (axis == 'batch')


def test_files_that_cannot_be_read_are_named_and_counted(run, pictures, tmp_path, capsys):
    (tmp_path / 'text.jpg').write_text('no image')
    shutil.copy(pictures / '0.PNG', tmp_path / 'fine')
    args = f'--workdir={run[0]}', '--batch_size=2', '--top=3'
    code, out, error = command(
        capsys, *args, tmp_path / 'text.jpg', tmp_path / 'gone.png', tmp_path / 'fine'
    )
    assert code == 0
    assert f"skipping '{tmp_path}/text.jpg': it cannot be decoded" in error
    assert f"skipping '{tmp_path}/gone.png': No such file" in error
    assert '2 of 3 files skipped' in error
    lines = out.splitlines()
    assert lines[0] == str(tmp_path / 'fine') and len([x for x in lines if '%  ' in x]) == 3
    assert [x.split(':')[0].strip() for x in lines[4:]] == [*run[1].cost.capacities]
    assert 'expert' in lines[4] and 'gate' in lines[4]
    code, out, error = command(capsys, *args, tmp_path / 'text.jpg')
    assert code == 2 and out == '' and '1 of 1 files skipped' in error


def test_the_best_weights(run, tmp_path):
    folder, _, state = run
    with pytest.raises(UserError, match='no readable checkpoint'):
        moe_vision.load(str(folder), best=True)
    shutil.copytree(folder, tmp_path / 'run')
    with checkpoints.Checkpoints(str(tmp_path / 'run'), 1) as saves:
        saves.save_best(3, dataclasses.replace(state, step=state.step - 3))
    assert moe_vision.load(str(tmp_path / 'run'), best=True).step == 3


@pytest.mark.parametrize(
    'args, message',
    [
        (['x.png'], '--workdir'),
        (['--workdir={tmp}'], 'images'),
        (['--workdir={tmp}', 'x.png', '--batch_size=0'], '--batch_size is 0; it must be positive'),
        (['--workdir={tmp}', 'x.png', '--batchsize=1'], "Did you mean '--batch_size'?"),
        (['--workdir={tmp}', '{tmp}'], "{tmp}' holds no images"),
        (['--workdir={tmp}/gone', 'x.png'], "no run to read in workdir '{tmp}/gone'"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(args, message, tmp_path, capsys):
    code, out, error = command(capsys, *[a.replace('{tmp}', str(tmp_path)) for a in args])
    assert code == 2 and out == '' and error.startswith('error: ') and error.count('\n') == 1
    assert message.replace('{tmp}', str(tmp_path)) in error


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    scan, locked = os.scandir, tmp_path / 'locked'
    locked.mkdir()

    def scandir(path):
        if str(path) == str(locked):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    (tmp_path / 'a.png').touch()
    assert list(predict._files([str(tmp_path)])) == [str(tmp_path / 'a.png')]
    assert f"skipping '{locked}': Permission denied" in capsys.readouterr().err


def test_a_mistake_is_an_error_without_importing_jax(tmp_path):
    code = (
        'import sys; from moe_vision.predict import __main__ as predict\n'
        f'assert predict.main(["--workdir={tmp_path}/gone", "x.png"]) == 2\n'
        'assert "jax" not in sys.modules'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=train_cases.ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
