"""An exported network computes what its run's evaluation does, with this package and without it."""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
import train_cases
from jax import export as jax_export
from layer_cases import made_for

import input_pipeline
import moe_vision
from input_pipeline.decode import encode_png
from moe_vision import leverage, models
from moe_vision.common import safetensors
from moe_vision.common.errors import UserError
from moe_vision.common.paths import path_name
from moe_vision.config.places import can_drop, with_eval_capacity
from moe_vision.export import __main__ as export
from moe_vision.export import options, program
from moe_vision.layers import Step
from moe_vision.predict import __main__ as predict
from moe_vision.run_folder import checkpoints
from moe_vision.surgery import runs
from moe_vision.training.evaluate import STREAM
from moe_vision.training.step import init_variables_fn, normalize_images
from moe_vision.training.trained import Trained

SMALL_VIT = train_cases.VIT | {
    'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    'model.moe.eval_capacity_factor': 0.75,
}
CHOICE = {'model.moe.router': 'expert_choice', 'model.moe.router_args': {}, 'model.moe.losses': {}}
CONV = {'model.args': {'widths': (8,), 'depth': 1}, 'model.moe.eval_capacity_factor': 0.75}
CASES = {  # changes of the config, and the images of a group
    'conv': (CONV, 16),
    'patches': (SMALL_VIT | {'model.moe.group_size': 32, 'model.moe.priority': 'random'}, 8),
    'expert choice': (CHOICE | {'model.args': CONV['model.args']}, 16),
    'dense twin': (CONV | {'model.twin': 'same_width'}, 1),
}


@dataclasses.dataclass(frozen=True)
class Case:
    trained: Trained
    images: np.ndarray
    valid: np.ndarray
    programs: dict = dataclasses.field(default_factory=dict)

    def run(self, capacity):
        """The logits of the valid images."""
        if capacity not in self.programs:
            made = program.make(self.trained, 'cpu', capacity).serialize()
            self.programs[capacity] = jax_export.deserialize(bytearray(made))
        return np.asarray(self.programs[capacity].call(self.images, self.valid))[self.valid]


def drawn(config, info, seed=1):
    """The state of a run of 6 steps, with drawn values, which are quicker to make than initial
    ones."""
    images = leverage.trace_images(config, leverage.tokens_per_image(config, info))
    init = init_variables_fn(models.build(config.model, info.num_classes), info.image_shape, images)

    def draw(path, leaf):
        rng = np.random.default_rng([zlib.crc32(path_name(path).encode()), seed])
        values = rng.normal(size=leaf.shape) * max(np.prod(leaf.shape[:-1]), 1) ** -0.5
        values *= 0.1 if path[0].key == 'router_state' else 1  # as biases that balance loads are
        return np.asarray(abs(values) + 0.5 if path[-1].key == 'var' else values, leaf.dtype)

    shapes = jax.eval_shape(init, jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return {'step': 6, 'seed_key': np.asarray([0, 7], np.uint32), **variables}


@pytest.fixture(scope='module')
def digits(data_dir):
    with input_pipeline.evaluation_batches(
        train_cases.make(data_dir).dataset, split='test', batch_size=360, rows=range(360)
    ) as batches:
        return next(batches)


@pytest.fixture(scope='module')
def case_of(data_dir, digits):
    @functools.cache
    def made(name):
        changes, unit = CASES[name]
        config = train_cases.make(data_dir, changes)
        info = input_pipeline.info(config.dataset)
        images = digits['image'][: 3 * unit if unit > 1 else 30]
        valid = np.arange(len(images)) % 7 > 1  # so others would lose slots to what is not
        return Case(Trained(config, info, drawn(config, info)), images, valid)

    return made


def evaluated(case, factor=None):
    """The logits of the valid images, and the experts of each routed layer that tokens reached, by
    flax alone."""
    config, info = case.trained.config, case.trained.info
    model = config.model if factor is None else with_eval_capacity(config.model, factor)
    key = jax.random.fold_in(jax.random.wrap_key_data(case.trained.seed_key), STREAM)

    @jax.jit
    def run(variables):
        images = normalize_images(case.images, *input_pipeline.mean_std(config.dataset))
        step = Step(valid=case.valid, key=key, fraction=0.5)
        logits, infos = models.build(model, info.num_classes).apply(variables, images, step)
        return logits, [(i['choices']['expert'], i['choices']['kept']) for i in infos.values()]

    logits, choices = jax.device_get(run(case.trained.variables))
    return logits[case.valid], [set(expert[kept].tolist()) for expert, kept in choices]


@pytest.mark.parametrize('name', CASES)
def test_a_program_computes_what_the_evaluation_does(name, case_of):
    """Over several groups with gaps, at both rules of capacity."""
    case = case_of(name)
    logits, experts = evaluated(case)
    assert experts == [{0, 1, 2, 3}] * (name != 'dense twin')
    near(case.run('evaluation'), logits)
    drops = name in ('conv', 'patches')
    assert can_drop(case.trained.config.model) == drops
    if drops:
        unbounded = evaluated(case, float('inf'))[0]
        near(case.run('unbounded'), unbounded)
        assert np.abs(unbounded - logits).max() > 1e-3


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_groups_do_not_touch_each_other_and_must_be_whole(case_of):
    case = case_of('conv')
    last = slice(32, None)
    alone = dataclasses.replace(case, images=case.images[last], valid=case.valid[last])
    near(alone.run('evaluation'), case.run('evaluation')[-alone.valid.sum() :])
    part = dataclasses.replace(case, images=case.images[1:], valid=case.valid[1:])
    with pytest.raises(ValueError, match='16'):
        part.run('evaluation')


@dataclasses.dataclass(frozen=True)
class Exported:
    run: str
    out: str
    setup: object
    state: object


@pytest.fixture(scope='module')
def exported(data_dir, tmp_path_factory):
    """A run with a moving average that differs from its weights, and what the command wrote."""

    def moved(state):
        ema = jax.tree.map(lambda x: 2 * x + 0.05, state.params)
        return dataclasses.replace(state, step=state.step + 6, ema=ema)

    folder = tmp_path_factory.mktemp('export')
    made = train_cases.saved(train_cases.make(data_dir, CONV), folder / 'run', moved)
    run, out = f'{folder}/run', f'{folder}/out'
    assert export.main([f'--workdir={run}', f'--out={out}', '--platforms=cpu']) == 0
    return Exported(run, out, *made)


def test_the_losses_of_the_evaluator_follow_from_the_logits(exported):
    evaluator = exported.setup.evaluator
    batch = {n: x[0] for n, x in next(evaluator.batches('test')).items()}
    run = next(evaluator.outputs(exported.state, 'test', 0.5))
    with open(f'{exported.out}/evaluation.cpu.jax_export', 'rb') as file:
        program = jax_export.deserialize(bytearray(file.read()))
    log_p = np.asarray(jax.nn.log_softmax(program.call(batch['image'], batch['valid'])))
    losses = -np.take_along_axis(log_p, batch['label'][:, None], 1)[:, 0]
    near(losses, jax.device_get(run()['loss']))


def lines_of(out):
    """The lines of a folder's README that run a program."""
    with open(f'{out}/README.md') as file:
        (lines,) = [b for b in file.read().split('```')[1::2] if 'deserialize' in b]
    lines = lines.removeprefix('python\n')
    assert lines.count('\n') == 3
    return lines


WITHOUT = """
import sys
import numpy as np
try:
    import moe_vision
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('moe_vision is here')
given = np.load('given.npz')
images, valid = given['images'], given['valid']
exec(sys.stdin.read())
np.save('logits.npy', logits)
assert not {'flax', 'input_pipeline'} & set(sys.modules)
"""


def test_the_lines_of_the_readme_run_where_this_package_is_not(exported, digits, tmp_path):
    out = shutil.copytree(exported.out, tmp_path / 'out')
    images, valid = digits['image'][:32], np.arange(32) % 7 > 1
    np.savez(out / 'given.npz', images=images, valid=valid)
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT],
        input=lines_of(out),
        cwd=out,
        env=os.environ | {'PYTHONPATH': ''},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    config, info = exported.setup.config, exported.setup.info
    trained = Trained(config, info, checkpoints.load_raw(exported.run))
    assert trained.told().fraction == 0.5  # of the training, for routers with a schedule
    near(np.load(out / 'logits.npy')[valid], evaluated(Case(trained, images, valid))[0])


@pytest.fixture(scope='module')
def in_bfloat16(data_dir):
    """A network for which a GPU would take cuDNN's attention."""
    changes = SMALL_VIT | {'model.dtype': 'bfloat16', 'model.moe.group_size': 32}
    changes['model.args'] = changes['model.args'] | {'width': 16}
    config = train_cases.make(data_dir, changes)
    info = input_pipeline.info(config.dataset)
    return Trained(config, info, drawn(config, info))


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_programs_of_other_platforms_call_no_kernels(platform, in_bfloat16):
    with made_for('gpu', '9.0'):  # as on an H100, where the network itself takes cuDNN's attention
        made = program.make(in_bfloat16, platform, 'evaluation')
    assert made.platforms == (platform,)
    called = set(re.findall(r'custom_call @([\w.$]+)', made.mlir_module()))
    assert called <= {'shape_assertion', 'stablehlo.dynamic_top_k'}


def test_what_was_exported_is_loaded_and_predicts_the_same(exported, digits, tmp_path):
    run, out = moe_vision.load(exported.run), moe_vision.load(exported.out)
    assert out.step == run.step == 6 and out.info == run.info
    ours, theirs = (m(digits['image'][:20]) for m in (run, out))
    train_cases.assert_same_bits(vars(ours), vars(theirs))
    train_cases.assert_same_bits(run.variables, out.variables)
    assert str(runs.read(exported.out).config) == str(out.config)
    read, theirs = (runs.read(folder).scored.params for folder in (exported.run, exported.out))
    train_cases.assert_same_bits(read, theirs)
    with pytest.raises(UserError, match='holds one set of weights; leave out --best'):
        moe_vision.load(exported.out, best=True)
    again = tmp_path / 'again'
    arguments = f'--workdir={exported.out}', f'--out={again}', '--platforms=none'
    assert export.main(arguments) == 0
    first, second = (card_of(folder) for folder in (exported.out, again))
    assert list(second['files']) == ['model.safetensors']
    assert {**first, 'files': 0} == {**second, 'files': 0}
    assert 'deserialize' not in (again / 'README.md').read_text()


def test_the_command_predicts_with_it(exported, digits, tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(encode_png(digits['image'][0]))
    told = []
    for folder in (exported.run, exported.out):
        assert predict.main([f'--workdir={folder}', '--json', f'{tmp_path}/a.png']) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and 'probability' in told[0]


def card_of(out):
    with open(f'{out}/model.json') as file:
        return json.load(file)


def test_the_card_says_what_is_in_the_folder(exported):
    out, info = exported.out, exported.setup.info
    card = card_of(out)
    assert set(os.listdir(out)) == {'README.md', 'model.json', *card['files']}
    assert len(card['files']) == 3  # weights, and a program of each rule of capacity
    for name, file in card['files'].items():
        with open(f'{out}/{name}', 'rb') as opened:
            data = opened.read()
        assert file['sha256'] == hashlib.sha256(data).hexdigest() and file['bytes'] == len(data)
    assert card['inputs']['images'] == {'type': 'uint8', 'shape': ['16*g', 8, 8, 1]}
    assert card['outputs'] == {'logits': {'type': 'float32', 'shape': ['16*g', 10]}}
    assert card['dataset']['digest'] == info.digest and len(info.digest) == 64
    assert card['classes'] == list(info.class_names)
    assert card['preprocessing']['mean'] == [0.3054] and card['preprocessing']['resize'] == [8, 8]
    assert card['versions']['jax'] and card['config']['dataset']['data_dir'] == ''
    assert card['config']['model']['moe']['group_size'] == 16 and card['metrics'] is None
    arrays = safetensors.read(f'{out}/model.safetensors')
    own = train_cases.named(exported.state.variables(averaged=True))
    assert arrays.keys() == own.keys()
    for name, x in own.items():
        np.testing.assert_array_equal(arrays[name], x)


def test_metrics_and_license_are_those_of_the_run(exported, tmp_path):
    run = shutil.copytree(exported.run, tmp_path / 'run')
    (run / 'result.json').write_text('{"test_accuracy": 0.875, "steps": 6}')
    args = f'--workdir={run}', '--platforms=none', '--license=CC-BY-4.0'
    assert export.main([*args, f'--out={tmp_path}/out']) == 0
    card, readme = card_of(tmp_path / 'out'), (tmp_path / 'out/README.md').read_text()
    assert card['metrics']['test_accuracy'] == 0.875 and card['license'] == 'CC-BY-4.0'
    assert 'Test accuracy: 87.50%.' in readme and 'License of the weights: CC-BY-4.0' in readme
    (run / 'result.json').write_text('{"test_accuracy": 0.875, "steps": 7}')  # of other weights
    assert export.main([*args, f'--out={tmp_path}/other']) == 0
    assert 'was not measured' in (tmp_path / 'other/README.md').read_text()


def test_what_a_folder_says_of_its_weights_holds_for_its_copy(exported, tmp_path):
    run = shutil.copytree(exported.run, tmp_path / 'run')
    (run / 'result.json').write_text('{"test_accuracy": 0.5, "test_accuracy_selected": 0.875}')
    with checkpoints.Checkpoints(str(run), 1) as saves:
        saves.save_best(3, dataclasses.replace(exported.state, step=exported.state.step - 3))
    args = '--best', '--license=CC-BY-4.0'
    for source, out, more in (('run', 'out', args), ('out', 'again', ())):
        folders = f'--workdir={tmp_path}/{source}', f'--out={tmp_path}/{out}'
        assert export.main([*folders, '--platforms=none', *more]) == 0
    card = card_of(tmp_path / 'out')
    assert (card['license'], card['weights'], card['step']) == (
        'CC-BY-4.0',
        'best on validation',
        3,
    )
    assert card_of(tmp_path / 'again') == card
    readme = (tmp_path / 'again' / 'README.md').read_text()
    assert 'Test accuracy: 87.50%.' in readme and readme == (tmp_path / 'out/README.md').read_text()


def test_one_program_is_written_where_nothing_is_dropped(data_dir, tmp_path):
    config = train_cases.make(data_dir, CASES['dense twin'][0])
    train_cases.saved(config, tmp_path / 'run')
    args = f'--workdir={tmp_path}/run', f'--out={tmp_path}/out', '--platforms=cpu'
    assert export.main(args) == 0
    card, readme = card_of(tmp_path / 'out'), (tmp_path / 'out/README.md').read_text()
    assert list(card['files']) == ['model.safetensors', 'evaluation.cpu.jax_export']
    assert card['capacities']['evaluation'] == 'nothing is dropped'
    assert '`: bool `[b]`, True for every image.' in readme


def test_gpu_is_another_name_of_cuda(tmp_path):
    args = f'--workdir={tmp_path}', f'--out={tmp_path}-out', '--platforms=gpu,cpu'
    assert options.parse(args, None).platforms == ('cpu', 'cuda')


def mistake(capsys, *arguments):
    """The line of an error."""
    code = export.main(arguments)
    out, error = capsys.readouterr()
    assert code == 2 and out == '' and error.startswith('error: ') and error.count('\n') == 1
    return error


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--workdir={run}'], '--out'),
        (['--workdir={run}', '--out={tmp}/x', '--platform=cpu'], "Did you mean '--platforms'?"),
        (
            ['--workdir={run}', '--out={tmp}/x', '--platforms=cpu,cudo'],
            "unknown platform 'cudo'. Did you mean 'cuda'? Allowed: cpu, cuda, tpu.",
        ),
        (
            ['--workdir={run}', '--out={tmp}/x', '--capacity=unbound'],
            "unknown capacity 'unbound'. Did you mean 'unbounded'?",
        ),
        (['--workdir={tmp}/gone', '--out={tmp}/x'], "no run to read in workdir '{tmp}/gone'"),
        (['--workdir={run}', '--out={run}/x'], 'inside the folder of the run'),
        (['--workdir={run}', '--out={tmp}/full'], 'is not empty; give a new or an empty folder'),
        (['--workdir={run}', '--out={tmp}/full/file'], 'is no folder; give a new one'),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    arguments, message, exported, tmp_path, capsys
):
    run = exported.run
    capsys.readouterr()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').touch()
    places = {'run': run, 'tmp': tmp_path}
    assert message.format(**places) in mistake(capsys, *(a.format(**places) for a in arguments))
    assert os.listdir(tmp_path) == ['full'] and not os.path.exists(f'{run}/x')


def test_a_place_where_a_disk_is_mounted_is_told(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os.path, 'ismount', lambda path: path == str(tmp_path))
    capsys.readouterr()
    told = mistake(capsys, f'--workdir={exported.run}', f'--out={tmp_path}')
    assert 'where a disk is mounted; give a folder in it' in told


def test_a_run_without_a_checkpoint_is_told(exported, tmp_path, capsys):
    run = shutil.copytree(exported.run, tmp_path / 'run')
    capsys.readouterr()
    best = mistake(capsys, f'--workdir={run}', f'--out={tmp_path}/out', '--best')
    assert 'there is no best checkpoint' in best
    shutil.rmtree(run / 'checkpoints')
    none = mistake(capsys, f'--workdir={run}', f'--out={tmp_path}/out')
    assert 'there is no checkpoint in' in none and os.listdir(tmp_path) == ['run']


def test_weights_that_no_program_holds_are_told(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, '_MOST', 1000)
    arguments = f'--workdir={exported.run}', f'--out={tmp_path}/out'
    capsys.readouterr()
    assert 'a program holds at most 1,000' in mistake(capsys, *arguments)
    assert export.main([*arguments, '--platforms=none']) == 0


def test_a_method_that_needs_a_fixed_number_of_images_is_told(
    exported, tmp_path, monkeypatch, capsys
):
    forward = lambda variables, images, step: (images[: len(images)], {})  # noqa: E731
    monkeypatch.setattr(program, 'forward_fn', lambda *_: forward)
    capsys.readouterr()
    told = mistake(capsys, f'--workdir={exported.run}', f'--out={tmp_path}/out')
    assert 'cannot be traced for any number of images' in told and not os.listdir(tmp_path)


def test_the_folder_appears_whole_or_not_at_all(exported, tmp_path, monkeypatch, capsys):
    arguments = f'--workdir={exported.run}', f'--out={tmp_path}/out', '--platforms=cpu'

    def full(*_):
        assert os.listdir(tmp_path) != ['out']  # the weights are there, under another name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'x')

    monkeypatch.setattr(program, 'make', full)
    assert export.main(arguments) == 3
    assert 'No space left' in capsys.readouterr().err and not os.listdir(tmp_path)
    (tmp_path / 'out').mkdir()  # an empty folder is filled
    assert export.main([*arguments, '--platforms=none']) == 0
    assert os.listdir(tmp_path) == ['out']


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported.out, tmp_path / 'out')


def flipped(out):
    data = bytearray((out / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (out / 'model.safetensors').write_bytes(data)


def changed(key, value):
    def change(out):
        card = json.loads((out / 'model.json').read_text())
        *parents, last = key.split('.')
        holder = card
        for name in parents:
            holder = holder[name]
        holder[last] = value
        (out / 'model.json').write_text(json.dumps(card))

    return change


@pytest.mark.parametrize(
    'damage',
    [
        flipped,
        lambda out: (out / 'model.safetensors').unlink(),
        lambda out: (out / 'model.json').write_bytes(b'{'),
        changed('seed_key', [1]),
        changed('seed_key', 'key'),
        changed('step', None),
        changed('files', []),
        changed('dataset.class_names', ['a']),
        changed('config.model.moe.num_experts', 9),
        changed('config.model.moe.router', 'os:system'),
    ],
)
def test_a_damaged_folder_is_one_line(damage, copy):
    damage(copy)
    with pytest.raises(UserError) as e:
        moe_vision.load(str(copy))
    assert '\n' not in str(e.value) and len(str(e.value)) < 600


def test_programs_are_not_read_by_load(copy):
    """They are code; a stranger's folder is only data to `moe_vision.load`."""
    for name in copy.glob('*.jax_export'):
        name.unlink()
        os.mkfifo(name)
    (copy / 'checkpoints').mkdir()  # as a command leaves it that looks for a run here
    assert moe_vision.load(str(copy)).step == 6
