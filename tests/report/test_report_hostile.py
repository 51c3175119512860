"""Hostile, damaged or missing names, files and numbers do not break the page."""

import base64
import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from etils import epath
from report_page import Parsed

from moe_vision import report
from moe_vision.common.errors import NotWritten

ROOT = pathlib.Path(report.__file__).parents[2]
pytestmark = pytest.mark.usefixtures('remembered')
TAGS = set(
    'html head meta title style body header main footer section nav a p h1 h2 h3 h4 ul li div span '
    'i b s strong code figure figcaption table thead tbody tr th td details summary svg g defs '
    'path clippath use text tspan rect image pattern'.split()
)
HOSTILE = (
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "' onload='x",
    '</style>',
    '</title>',
    '&lt;b&gt;',
    '$\\frac{x}$',
    ']]><svg onload=x>',
    'url(https:)',
    '日本語',
)


def test_hostile_names_stay_text(make, page):
    maker = make(layers=HOSTILE[:4], samples=10)
    maker.names[:] = HOSTILE
    for block in maker.config['preflight']['blocks']:
        block['kind'] = HOSTILE[1]
    maker.config['config_file'] = '<script>"x".py'
    maker.config['config'][HOSTILE[0]] = HOSTILE[1]
    maker.config['dataset']['name'] = HOSTILE[2]
    maker.config['git_commit'] = HOSTILE[0]
    maker.config['versions'] = {HOSTILE[1]: HOSTILE[3]}
    for row in maker.rows:
        row['losses'] = {HOSTILE[0]: 0.1, HOSTILE[1]: 0.2}
    maker.result['seed'] = HOSTILE[0]
    maker.config['config']['model']['moe']['router_args'] = {'noise': HOSTILE[1]}
    maker.config['config']['model']['moe']['eval_capacity_factor'] = HOSTILE[0]
    for mistake, name in zip(maker.evaluation['mistakes'], HOSTILE, strict=False):
        mistake['file'] = name
    parsed = Parsed(page(maker))
    assert {tag for tag, _ in parsed.tags} <= TAGS
    assert not [k for _, a in parsed.tags for k in a if k.startswith('on')]
    text, labels = parsed.text(), [a.get('title') for _, a in parsed.tags]
    for name in HOSTILE:
        assert name in text and name in labels, name


def test_names_in_charts_are_text_not_formulas(make, page):
    words = Parsed(page(make(layers=('$x_1$', '<$y$>')))).words
    assert ('text', '$x_1$') in words and ('text', '<$y$>') in words


def test_unprintable_names_are_made_printable(make, page):
    maker = make(classes=4, samples=4)
    maker.names[:] = ['a\x00b', '\ud800', '\u202edlrow', 'x' * 5000]
    text = page(maker)
    assert not set('\x00\ud800\u202e') & set(text)
    assert 'x' * 301 not in text


def test_hostile_image_does_not_reach_the_style(make, page):
    maker = make(samples=3)
    maker.evaluation['mistakes'] = [dict(m) for m in maker.evaluation['samples']]
    for images in (maker.evaluation['samples'], maker.evaluation['mistakes']):
        spoil(images)
    text = page(maker)
    assert 'evil' not in text
    assert text.count('unreadable image') == 6


def spoil(images):
    first, second, third = images
    first['image_png'] += ');background:url(x:evil'
    second['image_png'] = base64.b64encode(b'GIF89a' + bytes(10) + 2 * b'\0\0\0\x08').decode()
    third['image_png'] = 'AAAA'


def test_half_written_files_are_reported(make, tmp_path):
    folder = make(rows=6).save(tmp_path / 'run')
    whole = (folder / 'metrics' / '0.jsonl').read_text()
    (folder / 'metrics' / '0.jsonl').write_text(whole[:-40] + '\n[1]\n{"step": "x"}\n')
    (folder / 'evaluation.json').write_text('{"layers": ')
    text = report.write(folder).read_text()
    assert '3 metric line(s) could not be read' in text
    assert 'evaluation.json cannot be read' in text


def test_nan_and_null_are_gaps_not_numbers(make, page):
    maker = make(rows=24)
    for row in maker.rows[10:]:
        row['loss'] = row['task_loss'] = float('nan')
        row['layers']['blocks_1'] = dict.fromkeys(row['layers']['blocks_1'])
        row['layers']['head']['load'][0] = None
        row['grad_norm'] = None
    for name in maker.result:
        maker.result[name] = None
    for values in maker.evaluation['layers'].values():
        values.update(dict.fromkeys(['load', 'drop_rate', 'gate_entropy']))
        values['expert_by_class'][0] = [None] * 10
    maker.evaluation['confusion'][0] = [float('nan')] * 10
    for sample in maker.evaluation['samples']:
        sample['layers']['head']['gates'] = [[None, float('nan')]]
        sample['prediction'] = None
    text = Parsed(page(maker)).text()
    assert not re.search(r'\b(nan|none|inf)\b', text, re.I)
    assert 'loss is not a finite number' in text
    assert 'task loss' not in text.lower() or 'not finite' in text


@pytest.mark.parametrize('key', ['layers', 'losses', 'timing', 'accuracy'])
@pytest.mark.parametrize('junk', [None, [], 'text', {'head': 3}, {'head': {'load': 'x'}}, 10**400])
def test_rows_of_the_wrong_shape_do_not_stop_the_report(key, junk, make, page):
    maker = make(rows=2, samples=1, layers=('head',))
    for row in maker.rows:
        row[key] = junk
    assert 'Training report' in page(maker)


@pytest.mark.parametrize('junk', [None, [], 'text', {'head': 3}, [[1], [1, 2]], [[]], [3], -1])
def test_evaluations_of_the_wrong_shape_do_not_stop_the_report(junk, make, page):
    maker = make(rows=1, samples=3)
    layers = maker.evaluation['layers']
    layers['blocks_1'], layers['blocks_2'] = {k: junk for k in layers['head']}, junk
    maker.evaluation['confusion'] = junk
    maker.evaluation['samples'][0] = junk
    maker.evaluation['samples'][1] = {k: junk for k in maker.evaluation['samples'][1]}
    maker.evaluation['samples'][2]['layers'] = {
        'head': dict.fromkeys(['grid', 'experts', 'gates', 'kept'], junk),
        'blocks_1': junk,
    }
    maker.evaluation['mistakes'][0] = junk
    maker.evaluation['mistakes'][1] = {k: junk for k in maker.evaluation['mistakes'][1]}
    maker.evaluation['class_names'] = junk
    maker.config['preflight'] = {k: junk for k in maker.config['preflight']}
    assert 'Training report' in page(maker)


def folder_instead(file):
    file.unlink()
    file.mkdir()


def pipe_instead(file):
    file.unlink()
    os.mkfifo(file)


def holds(data):
    return lambda file: file.write_bytes(data)


def every(kinds, value):
    """Puts a value in place of everything of these types."""

    def changed(tree):
        if isinstance(tree, dict):
            return {key: changed(item) for key, item in tree.items()}
        if isinstance(tree, list):
            return [changed(item) for item in tree]
        return value if type(tree) in kinds else tree

    def damage(file):
        lines = file.read_text().splitlines() if file.suffix == '.jsonl' else [file.read_text()]
        file.write_text('\n'.join(json.dumps(changed(json.loads(line))) for line in lines))

    return damage


def numbers(value):
    return every((int, float), value)


DAMAGES = {
    'byte': lambda file: file.write_bytes(file.read_bytes().replace(b'"', b'"\xff', 1)),
    'half': lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    'empty': holds(b''),
    'zeros': holds(bytes(99)),
    'list': holds(b'[]'),
    'null': holds(b'null'),
    'number': holds(b'5'),
    'deep': holds(b'[' * 10_000 + b']' * 10_000),
    'deep objects': holds(b'{"config":' * 500 + b'1' + b'}' * 500),
    'digits': holds(b'{"steps": ' + b'9' * 5_000 + b'}'),
    'folder': folder_instead,
    'pipe': pipe_instead,
    '10^400': numbers(10**400),
    '1e308': numbers(1e308),
    '-1e308': numbers(-1e308),
    'least': numbers(5e-324),
    '-1': numbers(-1),
    '2^64': numbers(2**64),
    'inf': numbers(1e400),
    'numbers as text': numbers('3'),
    'text as numbers': every((str,), 3),
    'text as objects': every((str,), {}),
}


FILES = ('config.json', 'result.json', 'evaluation.json', 'metrics/0.jsonl')
# Each damage to two of the files, because every page takes half a second.
DAMAGED = [
    (file, damage)
    for n, damage in enumerate(DAMAGES)
    for file in (FILES[n % 4], FILES[(n + 1 + n // 4 % 3) % 4])
]


@pytest.mark.tables
@pytest.mark.parametrize('name, damage', DAMAGED)
def test_any_damaged_file_leaves_a_report_of_the_others(name, damage, make, tmp_path):
    folder = make(rows=6, samples=2, layers=('head',), grid=(2, 2)).save(tmp_path / 'run')
    DAMAGES[damage](folder / name)
    text = Parsed(report.write(folder).read_text()).text()
    assert 'Training report' in text and not re.search(r'\b(nan|inf)\b', text)
    if damage in ('byte', 'half', 'empty', 'zeros', 'list', 'null', 'deep', 'folder', 'pipe'):
        about = 'metric line(s) could not be read' if 'metrics' in name else name
        assert about in text or (damage == 'empty' and 'metrics' in name)


def test_a_folder_in_which_all_is_damaged_is_an_error_of_one_line(make, tmp_path):
    folder = make(rows=2, samples=1).save(tmp_path / 'run')
    for file in folder.rglob('*.json*'):
        file.write_bytes(b'\xff')
    done = subprocess.run(
        [sys.executable, '-m', 'moe_vision.report', f'--workdir={folder}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1
    assert 'holds no run' in done.stderr


def test_a_report_is_written_whole_or_not_at_all(make, tmp_path, monkeypatch):
    folder = make(rows=2, samples=1).save(tmp_path / 'run')
    (folder / 'report.html').write_text('before')
    write = pathlib.Path.write_bytes

    def half(path, data):
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, 'write_bytes', half)
    monkeypatch.setattr(epath.Path(folder).__class__, 'write_bytes', half)
    with pytest.raises(NotWritten, match="report.html' cannot be written: No space left") as e:
        report.write(folder)
    assert '\n' not in str(e.value)
    assert (folder / 'report.html').read_text() == 'before'
    assert not list(folder.glob('.*'))


def test_a_page_that_cannot_be_written_ends_with_its_own_code(make, tmp_path):
    folder = make(rows=2, samples=1).save(tmp_path / 'run')
    (folder / 'report.html').mkdir()
    done = subprocess.run(
        [sys.executable, '-m', 'moe_vision.report', f'--workdir={folder}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and done.stdout == '' and done.stderr.count('\n') == 1
    assert "report.html' cannot be written: " in done.stderr
