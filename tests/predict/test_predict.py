"""A run predicts image files as its evaluation does at unbounded capacity, each image alone."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import train_cases

import input_pipeline
import moe_vision
from input_pipeline import files
from input_pipeline.decode import decode, encode_png
from moe_vision.common.errors import UserError
from moe_vision.config.places import of_one_image
from moe_vision.predict import __main__ as predict
from moe_vision.predict.model import Model
from moe_vision.run_folder import checkpoints
from moe_vision.surgery.init_from import init_from
from moe_vision.training import loop

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


@pytest.fixture(scope='module', params=CASES)
def run(request, data_dir, tmp_path_factory):
    """(folder, setup, state with a moving average that differs from the weights)."""

    def shift(state):
        return dataclasses.replace(
            state, step=state.step + 6, ema=jax.tree.map(lambda x: x + 0.05, state.params)
        )

    folder = tmp_path_factory.mktemp('run')
    config = train_cases.make(data_dir, CASES[request.param])
    return (folder, *train_cases.saved(config, folder, shift))


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
    (folder / '.hidden').mkdir()
    shutil.copy(folder / '0.PNG', folder / '.hidden')
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
        named = f"skipping '{pictures}/notes.txt': it cannot be decoded\n"
        assert code == 0 and error == f'{named}1 of 11 files skipped\n'
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


@pytest.mark.parametrize(
    'router, args, mixes',
    [
        ('soft', {'axis': 'batch'}, True),
        ('soft', {'axis': 'none'}, False),
        ('shuffled', {}, True),
        ('dynamoe', {'rule': 'quantile'}, True),
        ('dynamoe', {}, False),
        ('top_k', {}, False),
    ],
)
def test_a_network_that_mixes_images_prints_a_note(router, args, mixes, data_dir, capsys):
    moe = {'router': router, 'router_args': args, 'losses': {}}
    config = train_cases.make(data_dir, {f'model.moe.{key}': value for key, value in moe.items()})
    alone = types.SimpleNamespace(model=of_one_image(config.model, 1))
    predict._note(types.SimpleNamespace(config=config, network=alone))
    assert ('depends on the others of its group' in capsys.readouterr().err) == mixes


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


def bind_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has at most 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def make_large(path):
    with open(path, 'wb') as file:
        file.truncate(files.MAX_IMAGE_FILE + 1)  # takes no room on the disk


ODD = {
    'FIFO': (os.mkfifo, 'it is a FIFO'),
    'socket': (bind_socket, 'it is a socket'),
    'device': (lambda path: path.symlink_to('/dev/zero'), 'it is a device'),
    'dangling': (
        lambda path: path.symlink_to('gone'),
        'it is a link to a file that does not exist',
    ),
    'loop': (lambda path: path.symlink_to(path.name), 'Too many levels of symbolic links'),
    'directory': (os.mkdir, 'it is a directory'),
    'large': (make_large, 'it has 1,073,741,825 bytes; at most 1,073,741,824 are read'),
    'pixels': (
        lambda path: path.write_bytes(
            b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x7f\xff\0\0\x7f\xff\1' + bytes(99)
        ),
        '32,767 x 32,767 pixels, but at most 268,435,456 are decoded',
    ),
}


@pytest.mark.parametrize('kind', ODD)
def test_what_is_no_image_file_is_named_and_skipped(kind, tmp_path, capsys):
    """In a folder and as an argument; the rest of the folder is read all the same."""
    make, reason = ODD[kind]
    (tmp_path / 'a.png').write_bytes(encode_png(np.zeros((8, 8, 1), np.uint8)))
    make(tmp_path / 'odd.JPG')
    model = types.SimpleNamespace(image=lambda data: decode(data, 1))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('something was opened that blocks'))
    signal.alarm(60)
    try:
        for paths in ([str(tmp_path)], [str(tmp_path / 'a.png'), str(tmp_path / 'odd.JPG')]):
            if kind == 'directory' and len(paths) == 2:
                continue  # as an argument, it is a folder of images
            read = list(predict._read(model, list(predict._files(paths))))
            assert [path for path, _ in read] == [str(tmp_path / 'a.png')]
            assert capsys.readouterr().err == f"skipping '{tmp_path}/odd.JPG': {reason}\n"
    finally:
        signal.alarm(0)


def test_a_name_that_is_no_utf_8_is_printed(capsys):
    name = os.fsdecode(b'\xff.png')
    sys.stdout.write(predict._lines({'file': name, 'classes': [], 'layers': {}}))
    assert capsys.readouterr().out == '\ufffd.png'


def test_the_best_weights(run, tmp_path):
    folder, _, state = run
    with pytest.raises(UserError, match='no best checkpoint in .*leave out --best .* of step 6'):
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
        (['--workdir={tmp}', 'x.png', f'--batch_size={10**12}'], 'must be at most 100,000'),
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


def test_a_folder_that_a_link_leads_back_to_is_read_once(tmp_path, capsys):
    for name in ('a.png', 'below/b.png', '.hidden/c.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'below/up').symlink_to('..')
    (tmp_path / 'again').symlink_to('below')
    paths = list(predict._files([str(tmp_path)]))
    assert paths == [str(tmp_path / 'a.png'), str(tmp_path / 'below/b.png')]
    error = capsys.readouterr().err
    for name in ('again', 'below/up'):
        assert f"skipping '{tmp_path}/{name}': it is a link to a folder" in error


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


DOCUMENTS = {
    'half': lambda text: text[: len(text) // 2],
    'byte': lambda text: text[:9] + b'\xff' + text[9:],
    'list': lambda text: b'[]',
    'deep': lambda text: b'[' * 10_000 + b']' * 10_000,
    'huge': lambda text: text.replace(b'"depth": 1', b'"depth": 1' + b'0' * 400),
    'zeros': lambda text: bytes(len(text)),
}
VALUES = [  # of config.json: what is damaged, and how
    (key, value)
    for key, values in {
        'config': [None, [], 5, {}],
        'dataset': [None, [], {}],
        'dataset.num_classes': [10**400, '10', 11, -1, None],
        'dataset.image_shape': [[], [8, 8], [8, 8, '1'], [0, 8, 1], [8, 10**9, 10**9], None],
        'dataset.class_names': [[], 'text', [1] * 10, ['a'] * 9],
        'dataset.split_sizes': [{}, {'train': 0}, {'train': 10**30}, {'train': '5'}],
        'config.model.moe.num_experts': [9, 0, -1, 10**18, 10**400, '8'],
        'config.model.moe.group_size': [10**400],
        'config.model.moe.k': [99],
        'config.train.batch_size': [0, 10**400],
        'config.train.epochs': [10**400],
        'config.model.args': [[], {'depth': 10**9}],
    }.items()
    for value in values
]


def one_line(call):
    with pytest.raises(UserError) as e:
        call()
    assert '\n' not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / 'run')


@pytest.mark.parametrize('damage', DOCUMENTS)
def test_a_damaged_config_is_an_error_of_one_line(damage, copy, pictures, capsys):
    file = copy / 'config.json'
    file.write_bytes(DOCUMENTS[damage](file.read_bytes()))
    one_line(lambda: moe_vision.load(str(copy)))
    code, out, error = command(capsys, f'--workdir={copy}', pictures)
    assert code == 2 and out == '' and error.startswith('error: ') and error.count('\n') == 1


@pytest.mark.parametrize('key, value', VALUES, ids=str)
def test_a_config_that_does_not_fit_is_an_error_of_one_line(key, value, copy):
    """Never another prediction: it must describe the network of the checkpoint."""
    record = json.loads((copy / 'config.json').read_text())
    *parents, last = key.split('.')
    holder = record
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    (copy / 'config.json').write_text(json.dumps(record))
    one_line(lambda: moe_vision.load(str(copy)))


def test_names_of_classes_hold_nothing_that_a_terminal_obeys(copy, pictures, capsys):
    record = json.loads((copy / 'config.json').read_text())
    record['dataset']['class_names'] = ['\x1b[2J', '\ud800', 'a\nb', '\u202eb', *'456789']
    (copy / 'config.json').write_text(json.dumps(record))
    code, out, _ = command(capsys, f'--workdir={copy}', '--top=10', pictures / '0.PNG')
    assert code == 0 and not set('\x1b\ud800\u202e') & set(out)


def flip_weights(folder):
    """Flips a bit in every kilobyte of the largest file of each checkpoint."""
    for step in (folder / 'checkpoints' / 'latest').iterdir():
        file = max((p for p in step.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(file.read_bytes())
        for at in range(512, len(data), 1024):
            data[at] ^= 1
        file.write_bytes(bytes(data))


def test_flipped_weights_are_not_predicted_with(copy, run, pictures, capsys, caplog):
    flip_weights(copy)
    one_line(lambda: moe_vision.load(str(copy)))
    one_line(lambda: init_from(run[2], str(copy), run[1].info.class_names, run[1].shardings))
    one_line(lambda: loop.evaluate(run[1].config, str(copy)))
    assert sum('checkpoint 6 cannot be read (' in r.getMessage() for r in caplog.records) == 3
    code, out, error = command(capsys, f'--workdir={copy}', pictures)
    assert code == 2 and out == '' and 'none of the checkpoints [6]' in error.splitlines()[-1]
    assert 'Traceback' not in error


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run, copy, pictures, capsys, caplog
):
    flip_weights(copy)
    with checkpoints.Checkpoints(str(copy), 2) as saves:
        saves.save(5, dataclasses.replace(run[2], step=run[2].step - 1))
    assert moe_vision.load(str(copy)).step == 5
    assert 'checkpoint 6 cannot be read (' in caplog.text


@pytest.mark.parametrize(
    'change',
    [lambda leaf: leaf[:-1], lambda leaf: leaf.astype('int32'), None],
    ids=['shape', 'type', 'gone'],
)
@pytest.mark.parametrize('kind', ['params', 'ema'])
def test_arrays_that_are_not_the_networks_are_refused(run, kind, change):
    """As a checkpoint of another network has them, whole as it is."""
    config, info = run[1].config, run[1].info
    state = jax.device_get(
        {
            n: getattr(run[2], n)
            for n in ('step', 'seed_key', 'params', 'batch_stats', 'router_state', 'ema')
        }
    )
    Model(config, info, state)
    if kind == 'params':
        state.pop('ema')
    leaves = dict(jax.tree_util.tree_leaves_with_path(state[kind]))
    path = max(leaves, key=str)
    holder = state[kind]
    for part in path[:-1]:
        holder = holder[part.key]
    leaf = holder.pop(path[-1].key)
    if change:
        holder[path[-1].key] = change(leaf)
    with pytest.raises(UserError, match='params/.* in the network of the config'):
        Model(config, info, state)
