"""Hostile, damaged or missing names, files and numbers do not break the page."""

import base64
import re

import pytest
from report_page import Parsed

from moe_vision import report

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
    first, second, third = maker.evaluation['samples']
    first['image_png'] += ');background:url(x:evil'
    second['image_png'] = base64.b64encode(b'GIF89a' + bytes(10) + 2 * b'\0\0\0\x08').decode()
    third['image_png'] = 'AAAA'
    text = page(maker)
    assert 'evil' not in text
    assert text.count('unreadable image') == 3


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
    maker.evaluation['class_names'] = junk
    maker.config['preflight'] = {k: junk for k in maker.config['preflight']}
    assert 'Training report' in page(maker)
