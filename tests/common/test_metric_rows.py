"""Lines of metrics that are not rows are left out and named; the others are read as they are."""

import json
import os

import pytest

from moe_vision.common import metric_rows

TRAIN = {
    'step': 3,
    'epoch': 0.1,
    'split': 'train',
    'loss': None,
    'accuracy': 0.5,
    'bad_images': 0,
    'losses': {'switch': 0.1},
    'timing': {'images_per_second': 10.0},
    'layers': {'head': {'load': [0.5, None], 'dead_experts': 1}},
}
VALIDATION = {
    'step': 4,
    'epoch': 0.2,
    'split': 'validation',
    'loss': 2.0,
    'accuracy': 0.25,
    'images': 7,
    'layers': {},
    'probe': {'head': [0, 3, -1]},
}
LINES = {
    'a byte': b'{"step": 5, "split": "train\xff"}',
    'half': b'{"step": 5, "spl',
    'a list': b'[]',
    'null': b'null',
    'zeros': bytes(9),
    'deep': b'{"step": ' + b'[' * 10_000 + b']' * 10_000 + b'}',
}
CHANGES = {
    'step': [{}, '3', None, -1, 3.0, True, 10**400, [3], float('nan')],
    'split': ['test', None, [], {}, 5],
    'loss': ['2.0', [], {}, 10**400, True],
    'accuracy': ['0.5', [0.5]],
    'layers': [None, [], 3, {'head': 3}, {'head': {'load': '1'}}, {'head': {'load': [1, '1']}}],
    'timing': [5, [], {'images_per_second': '10'}],
    'losses': [1.0, {'switch': 'x'}],
    'skipped_in_a_row': [None, 0.5, -1],
    'anything': ['text', ['text'], {'text': 'text'}],
}
WRONG = [
    json.dumps(TRAIN | {key: value}).encode() for key, values in CHANGES.items() for value in values
]
WRONG += [
    json.dumps(VALIDATION | change).encode()
    for change in (
        {'accuracy': None},
        {'accuracy': float('nan')},
        {'accuracy': 1.5},
        {'accuracy': -0.1},
        {'probe': {'head': [0.5]}},
        {'probe': {'head': 3}},
        {'probe': [1]},
    )
]
DEEP = json.dumps(TRAIN | {'layers': {'head': {'load': json.loads('[' * 50 + ']' * 50)}}}).encode()


def wanted():
    return [TRAIN, VALIDATION]


@pytest.mark.parametrize(
    'line', [*LINES.values(), *WRONG, DEEP], ids=lambda line: line[:60].decode(errors='replace')
)
def test_a_line_that_is_no_row_is_left_out_and_named(line, tmp_path):
    rows = [json.dumps(row).encode() for row in wanted()]
    (tmp_path / 'a.jsonl').write_bytes(b'\n'.join([rows[0], line, b'', rows[1]]) + b'\n')
    found, (damaged,) = metric_rows.read(tmp_path)
    assert found == wanted()
    assert (damaged.file, damaged.line, damaged.data) == ('a.jsonl', 2, line)
    (said,) = metric_rows.in_words([damaged])
    assert said.startswith('a.jsonl, line 2: ') and '\n' not in said and len(said) < 200


def test_numbers_that_are_not_finite_are_none(tmp_path):
    line = json.dumps(TRAIN | {'loss': float('nan'), 'accuracy': float('-inf')})
    (tmp_path / 'a.jsonl').write_text(line)
    assert metric_rows.read(tmp_path) == ([TRAIN | {'loss': None, 'accuracy': None}], [])


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path):
    (tmp_path / 'a.jsonl').write_text(json.dumps(TRAIN))
    (tmp_path / 'b.jsonl').mkdir()
    os.mkfifo(tmp_path / 'c.jsonl')
    found, damaged = metric_rows.read(tmp_path)
    assert found == [TRAIN]
    assert metric_rows.in_words(damaged) == ['b.jsonl: not a file', 'c.jsonl: not a file']
    assert metric_rows.read(tmp_path / 'gone') == ([], [])


def test_many_damaged_lines_of_a_file_are_one_line_of_words(tmp_path):
    (tmp_path / 'a.jsonl').write_text('[]\n' * 4_000)
    _, damaged = metric_rows.read(tmp_path)
    assert len(damaged) == 4_000
    assert metric_rows.in_words(damaged) == ['a.jsonl, line 1: not an object, and 3999 more lines']
