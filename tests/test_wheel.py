"""The wheel, in an environment that holds jax, flax and what these need, and nothing else.

The wheel is built from a clean copy of the files that git tracks and unpacked outside the
repository. The packages that jax and flax require are linked beside it.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow  # it is built, and each test starts Python in it
QUICK = ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'XLA_FLAGS')  # of conftest.py: how to compile


def required(*names: str) -> dict[str, importlib.metadata.Distribution]:
    """These packages and all that they require, by name."""
    closure: dict[str, importlib.metadata.Distribution] = {}
    todo = list(names)
    while todo:
        name = re.sub('[-_.]+', '-', todo.pop()).lower()
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        if name not in closure:
            closure[name] = found
            todo += [
                re.match(r'[\w.-]+', r)[0] for r in found.requires or () if 'extra ==' not in r
            ]
    return closure


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without the network by the pinned setuptools."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    tracked = subprocess.run(
        [
            'git',
            'ls-files',
            '-z',
            'moe_vision',
            'input_pipeline',
            'configs',
            'README.md',
            'LICENSE',
            'pyproject.toml',
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split('\0')
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '-w',
            str(out),
            str(source),
        ],
        check=True,
    )
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def run(wheel, tmp_path_factory):
    """Runs Python where only the wheel, jax, flax and what these need can be imported."""
    site = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for package in required('jax', 'flax', 'numpy').values():
        for file in package.files or ():
            top = file.parts[0]
            if top != '..' and not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    elsewhere = tmp_path_factory.mktemp('elsewhere')

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, '-S', *arguments],
            cwd=elsewhere,
            text=True,
            capture_output=True,
            timeout=120,
            env={n: os.environ[n] for n in QUICK if n in os.environ}
            | {
                'PYTHONPATH': str(site),
                'HOME': str(elsewhere),
                'PATH': '',
                'JAX_PLATFORMS': 'cpu',
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python


def test_it_holds_both_packages_whole_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n}
    tracked = subprocess.run(
        ['git', 'ls-files', 'moe_vision', 'input_pipeline'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert names == {n for n in tracked if (ROOT / n).exists()}


def test_the_layer_of_the_readme_runs(run):
    readme = (ROOT / 'README.md').read_text()
    code = readme.split('<!-- own model -->')[1].split('```python\n')[1].split('```')[0]
    assert run('-c', code + '\nprint(y.shape)') == '(256, 64)\n'


def test_the_layers_import_what_jax_and_flax_need_and_nothing_more(run):
    code = """
import json, sys
before = set(sys.modules)
import moe_vision.layers
new = [n for n in set(sys.modules) - before if getattr(sys.modules[n], '__file__', None)]
print(json.dumps(sorted({n.partition('.')[0] for n in new})))
"""
    tops = set(json.loads(run('-c', code))) - set(sys.stdlib_module_names)
    theirs = {
        file.parts[0].partition('.')[0]
        for package in required('jax', 'flax').values()
        for file in package.files or ()
    }
    assert {'jax', 'flax', 'moe_vision'} <= tops
    assert {n for n in tops if not n.startswith('_')} <= theirs | {'moe_vision', 'input_pipeline'}


def test_commands_help_and_the_data_layer_imports(run):
    assert '--target_rho' in run('-m', 'moe_vision.leverage', '--help')
    assert run('-c', 'import input_pipeline; print(*input_pipeline.DATASETS)').startswith('digits ')


def test_what_is_missing_is_named_with_what_brings_it(run):
    code = (
        'import sys; from moe_vision.leverage.__main__ import main; '
        "sys.stderr = sys.stdout; open('c.py', 'w').write('def get_config(): pass'); "
        "print(main(['--config=c.py']))"
    )
    assert run('-c', code) == (
        "error: this command needs the package 'ml_collections'; run "
        "pip install '.[train]' in the folder of moe_vision's source.\n2\n"
    )


def test_an_example_ships_in_it(wheel):
    """Its file is the one of that name in `configs`, so that the two cannot differ."""
    archive = zipfile.ZipFile(wheel)
    shipped = [n for n in archive.namelist() if n.startswith('moe_vision/config/examples/')]
    names = {Path(n).name for n in shipped} - {'__init__.py'}
    assert 'digits_k2.py' in names
    for name in names:
        ours = archive.read(f'moe_vision/config/examples/{name}')
        assert ours == (ROOT / 'configs' / name).read_bytes()


def test_requirements_pin_what_training_needs():
    """The two-command set-up installs what `pip install '.[train]'` would."""
    import tomllib

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for file, groups in (('requirements.txt', ['train']), ('requirements-dev.txt', ['dev'])):
        pinned = {line.partition('==')[0] for line in (ROOT / file).read_text().splitlines()}
        wanted = [
            *project['dependencies'],
            *(r for g in groups for r in project['optional-dependencies'][g]),
        ]
        names = {re.match(r'[\w-]+', r)[0].lower().replace('_', '-') for r in wanted}
        assert names <= pinned, names - pinned
