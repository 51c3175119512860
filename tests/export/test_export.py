"""An exported network computes what its run's evaluation does, with this package and without it."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import train_cases
from jax import export as jax_export

import input_pipeline
import moe_vision
from moe_vision import models
from moe_vision.common import safetensors
from moe_vision.common.errors import UserError
from moe_vision.config.places import with_eval_capacity
from moe_vision.export import __main__ as export
from moe_vision.export import program
from moe_vision.layers import Step
from moe_vision.run_folder import checkpoints
from moe_vision.training.evaluate import STREAM
from moe_vision.training.step import normalize_images
from moe_vision.training.trained import Trained

SMALL_VIT = train_cases.VIT | {
    'model.args': {'width': 8, 'depth': 1, 'heads': 2, 'patch_size': 4},
    'model.moe.eval_capacity_factor': 0.75,
}
CHOICE = {'model.moe.router': 'expert_choice', 'model.moe.router_args': {}, 'model.moe.losses': {}}
CONV = {'model.args': {'widths': (8,), 'depth': 1}, 'model.moe.eval_capacity_factor': 0.75}
CASES = {  # changes of the config, and the images of a group
    'conv': (CONV, 16),
    'patches': (SMALL_VIT | {'model.moe.group_size': 32}, 8),
    'expert choice': (CHOICE | {'model.args': CONV['model.args']}, 16),
    'dense twin': (CONV | {'model.twin': 'same_width'}, 1),
}


def moved(state):
    """A state in the middle of its training, with an average that differs from its weights."""
    ema = jax.tree.map(lambda x: 2 * x + 0.05, state.params)
    return dataclasses.replace(state, step=state.step + 6, ema=ema)


@dataclasses.dataclass(frozen=True)
class Case:
    unit: int
    run: str
    out: str
    setup: object
    state: object
    images: np.ndarray
    valid: np.ndarray

    def program(self, capacity, platform='cpu'):
        with open(f'{self.out}/{capacity}.{platform}.jax_export', 'rb') as file:
            return jax_export.deserialize(bytearray(file.read()))

    @property
    def trained(self):
        return Trained(self.setup.config, self.setup.info, checkpoints.load_raw(self.run))


@pytest.fixture(scope='module')
def digits(data_dir):
    with input_pipeline.evaluation_batches(
        train_cases.make(data_dir).dataset, split='test', batch_size=360, rows=range(360)
    ) as batches:
        return next(batches)['image']


@pytest.fixture(scope='module')
def cases(data_dir, digits, tmp_path_factory):
    """Each case's run and what was exported of it, made when it is first asked for."""
    made = {}

    def of(name):
        if name not in made:
            changes, unit = CASES[name]
            folder = tmp_path_factory.mktemp('export')
            config = train_cases.make(data_dir, changes)
            setup, state = train_cases.saved(config, folder / 'run', moved)
            arguments = f'--workdir={folder}/run', f'--out={folder}/out', '--platforms=cpu'
            assert export.main(arguments) == 0
            images = digits[: 3 * unit if unit > 1 else 30]
            valid = np.arange(len(images)) < len(images) - 5
            made[name] = Case(unit, f'{folder}/run', f'{folder}/out', setup, state, images, valid)
        return made[name]

    return of


def evaluated(case, factor=None):
    """The network's logits, and the experts that each routed layer chose, by flax alone."""
    config, info = case.setup.config, case.setup.info
    model = config.model if factor is None else with_eval_capacity(config.model, factor)
    key = jax.random.fold_in(jax.random.wrap_key_data(case.state.seed_key), STREAM)

    @jax.jit
    def run(variables):
        images = normalize_images(case.images, *input_pipeline.mean_std(config.dataset))
        step = Step(valid=case.valid, key=key, fraction=0.5)
        return models.build(model, info.num_classes).apply(variables, images, step)

    logits, infos = run(case.state.variables(averaged=True))
    return np.asarray(logits), [np.asarray(i['choices']['expert']) for i in infos.values()]


@pytest.mark.parametrize('name', CASES)
def test_a_program_computes_what_the_evaluation_does(name, cases):
    """Over several groups, the last one filled up, at both rules of capacity."""
    case = cases(name)
    logits, experts = evaluated(case)
    for chosen in experts:
        real = case.valid.repeat(len(chosen) // len(case.valid))
        assert len(np.unique(chosen[real])) == 4
    own = case.program('evaluation').call(case.images, case.valid)
    np.testing.assert_allclose(own[case.valid], logits[case.valid], rtol=0, atol=1e-5)
    drops = name in ('conv', 'patches')
    assert os.path.exists(f'{case.out}/unbounded.cpu.jax_export') == drops
    if drops:
        unbounded, _ = evaluated(case, float('inf'))
        own = case.program('unbounded').call(case.images, case.valid)
        np.testing.assert_allclose(own[case.valid], unbounded[case.valid], rtol=0, atol=1e-5)
        assert np.abs(unbounded - logits)[case.valid].max() > 1e-3  # so something was dropped


def test_the_losses_of_the_evaluator_follow_from_the_logits(cases):
    case = cases('conv')
    batch, run = next(iter(case.setup.evaluator.outputs(case.state, 'test', 0.5)))
    whole = len(batch['label']) // case.unit * case.unit
    for factor, capacity in ((None, 'evaluation'), (float('inf'), 'unbounded')):
        scored = jax.device_get(run(factor=factor))
        logits = case.program(capacity).call(batch['image'][:whole], batch['valid'][:whole])
        log_p = jax.nn.log_softmax(logits)
        losses = -np.take_along_axis(np.asarray(log_p), batch['label'][:whole, None], 1)[:, 0]
        np.testing.assert_allclose(losses, scored['loss'][:whole], rtol=0, atol=1e-5)


def test_groups_do_not_touch_each_other_and_must_be_whole(cases):
    case = cases('conv')
    called = case.program('evaluation').call
    together = called(case.images, case.valid)
    last = slice(2 * case.unit, None)
    alone = called(case.images[last], case.valid[last])
    np.testing.assert_allclose(alone, together[last], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='16'):
        called(case.images[1:], case.valid[1:])


def lines_of(out):
    """The lines of a folder's README that run a program."""
    with open(f'{out}/README.md') as file:
        (lines,) = [b for b in file.read().split('```')[1::2] if 'deserialize' in b]
    lines = lines.removeprefix('python\n')
    assert lines.count('\n') == 3
    return lines


WITHOUT = """
import json, os, sys
import numpy as np
try:
    import moe_vision
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('moe_vision is here')
for out, lines in json.load(sys.stdin).items():
    os.chdir(out)
    data = np.load('given.npz')
    images, valid = data['images'], data['valid']
    exec(lines)
    np.save('logits.npy', logits)
assert not {'flax', 'input_pipeline'} & set(sys.modules)
"""


def test_the_lines_of_the_readme_run_where_this_package_is_not(cases, tmp_path):
    run = [cases(name) for name in ('conv', 'patches')]
    for case in run:
        np.savez(f'{case.out}/given.npz', images=case.images, valid=case.valid)
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT],
        input=json.dumps({case.out: lines_of(case.out) for case in run}),
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': ''},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    for case in run:
        logits = np.load(f'{case.out}/logits.npy')
        want = case.program('evaluation').call(case.images, case.valid)
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def in_bfloat16(data_dir):
    """A network for which a GPU would take cuDNN's attention."""
    changes = SMALL_VIT | {'model.dtype': 'bfloat16', 'model.moe.group_size': 32}
    changes['model.args'] = changes['model.args'] | {'width': 16}
    setup = train_cases.Setup(train_cases.make(data_dir, changes))
    return Trained(setup.config, setup.info, vars(setup.fresh_state()))


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_programs_of_other_platforms_call_no_kernels(platform, in_bfloat16):
    made = program.make(in_bfloat16, platform, 'evaluation')
    assert made.platforms == (platform,)
    called = set(re.findall(r'custom_call @([\w.$]+)', made.mlir_module()))
    assert called <= {'shape_assertion', 'stablehlo.dynamic_top_k'}


def test_what_was_exported_is_loaded_and_predicts_the_same(cases, digits, capsys):
    case = cases('conv')
    run, out = moe_vision.load(case.run), moe_vision.load(case.out)
    assert out.step == run.step == 6 and out.info == run.info
    ours, theirs = (m(digits[:20]) for m in (run, out))
    train_cases.assert_same_bits(vars(ours), vars(theirs))
    train_cases.assert_same_bits(run.variables, out.variables)
    with pytest.raises(UserError, match='holds one set of weights; leave out --best'):
        moe_vision.load(case.out, best=True)
    again = f'{case.out}_again'
    assert export.main([f'--workdir={case.out}', f'--out={again}', '--platforms=none']) == 0
    first, second = (card_of(folder) for folder in (case.out, again))
    assert list(second['files']) == ['model.safetensors']
    assert {**first, 'files': 0} == {**second, 'files': 0}
    assert 'deserialize' not in open(f'{again}/README.md').read()


def card_of(out):
    with open(f'{out}/model.json') as file:
        return json.load(file)


def test_the_card_says_what_is_in_the_folder(cases):
    case = cases('patches')
    card, info = card_of(case.out), case.setup.info
    assert set(os.listdir(case.out)) - {'given.npz', 'logits.npy'} == {
        'README.md',
        'model.json',
        *card['files'],
    }
    for name, file in card['files'].items():
        with open(f'{case.out}/{name}', 'rb') as opened:
            data = opened.read()
        assert file['sha256'] == hashlib.sha256(data).hexdigest() and file['bytes'] == len(data)
    assert card['inputs']['images'] == {'type': 'uint8', 'shape': ['8*g', 8, 8, 1]}
    assert card['outputs'] == {'logits': {'type': 'float32', 'shape': ['8*g', 10]}}
    assert card['dataset']['digest'] == info.digest and len(info.digest) == 64
    assert card['classes'] == list(info.class_names)
    assert card['preprocessing']['mean'] == [0.3054] and card['preprocessing']['resize'] == [8, 8]
    assert card['versions']['jax'] and card['config']['dataset']['data_dir'] == ''
    assert card['config']['model']['moe']['group_size'] == 32 and card['metrics'] is None
    arrays = safetensors.read(f'{case.out}/model.safetensors')
    for name, x in train_cases.named(case.trained.variables).items():
        np.testing.assert_array_equal(arrays[name], x)


def test_metrics_and_license_are_those_of_the_run(cases, tmp_path):
    case = cases('dense twin')
    run = shutil.copytree(case.run, tmp_path / 'run')
    (run / 'result.json').write_text('{"test_accuracy": 0.875, "steps": 6}')
    args = f'--workdir={run}', '--platforms=none', '--license=CC-BY-4.0'
    assert export.main([*args, f'--out={tmp_path}/out']) == 0
    card, readme = card_of(tmp_path / 'out'), (tmp_path / 'out/README.md').read_text()
    assert card['metrics']['test_accuracy'] == 0.875 and card['license'] == 'CC-BY-4.0'
    assert 'Accuracy: 87.50%.' in readme and 'License of the weights: CC-BY-4.0' in readme
    (run / 'result.json').write_text('{"test_accuracy": 0.875, "steps": 7}')  # of other weights
    assert export.main([*args, f'--out={tmp_path}/other']) == 0
    assert 'was not measured' in (tmp_path / 'other/README.md').read_text()


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
def test_a_mistake_is_told_before_anything_is_written(arguments, message, cases, tmp_path, capsys):
    run = cases('dense twin').run
    capsys.readouterr()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').touch()
    places = {'run': run, 'tmp': tmp_path}
    assert message.format(**places) in mistake(capsys, *(a.format(**places) for a in arguments))
    assert os.listdir(tmp_path) == ['full'] and not os.path.exists(f'{run}/x')


def test_a_run_without_a_checkpoint_is_told(cases, tmp_path, capsys):
    run = shutil.copytree(cases('dense twin').run, tmp_path / 'run')
    capsys.readouterr()
    best = mistake(capsys, f'--workdir={run}', f'--out={tmp_path}/out', '--best')
    assert 'there is no best checkpoint' in best
    shutil.rmtree(run / 'checkpoints')
    none = mistake(capsys, f'--workdir={run}', f'--out={tmp_path}/out')
    assert 'there is no checkpoint in' in none and os.listdir(tmp_path) == ['run']


def test_weights_that_no_program_holds_are_told(cases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, '_MOST', 1000)
    arguments = f'--workdir={cases("dense twin").run}', f'--out={tmp_path}/out'
    capsys.readouterr()
    assert 'a program holds at most 1,000' in mistake(capsys, *arguments)
    assert export.main([*arguments, '--platforms=none']) == 0


def test_the_folder_appears_whole_or_not_at_all(cases, tmp_path, monkeypatch, capsys):
    arguments = f'--workdir={cases("dense twin").run}', f'--out={tmp_path}/out', '--platforms=cpu'

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
def copy(cases, tmp_path):
    return shutil.copytree(cases('conv').out, tmp_path / 'out')


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
    assert moe_vision.load(str(copy)).step == 6
