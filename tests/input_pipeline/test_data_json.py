"""Odd JSON is one line, in the parser and in each file that describes a prepared set."""

import json
import os
import shutil

import pytest
from image_fakes import config

import input_pipeline as ip
from input_pipeline import json_data

SET = 'image_fakes:Numbered'
ODD = {
    'nothing': (b'', 'Expecting value'),
    'half': (b'{"a": [1', 'Expecting'),
    'no UTF-8': (b'"\xff"', "can't decode byte 0xff"),
    'a number of 4,001 digits': (b'[' + b'1' * 4001 + b']', 'has 4001 digits; at most 4000 are'),
    'depth': (b'[' * 10_000 + b']' * 10_000, 'nested over 100 levels deep'),
    'a little depth': (b'{"a":' * 101 + b'1' + b'}' * 101, 'nested over 100 levels deep'),
    'a key twice': (b'{"a": 1, "b": 2, "a": 1}', "an object holds the key 'a' twice"),
    'half a character': (b'["\\ud800"]', 'half of a surrogate pair'),
    'half a character in a key': (b'{"\\uD83D": 1}', 'half of a surrogate pair'),
}


@pytest.mark.parametrize('kind', ODD)
def test_odd_json_is_one_line(kind):
    data, reason = ODD[kind]
    with pytest.raises(ValueError, match=reason) as error:
        json_data.parse(data)
    assert '\n' not in str(error.value) and len(str(error.value)) < 200


def test_what_json_writes_is_read():
    values = {'a': [1, -2.5, None, True, 'x'], 'b': {'c': float('inf')}, 'd': 10**3999, '': '😀\n'}
    assert json_data.parse(json.dumps(values).encode()) == values
    assert json_data.parse(b'[' * 100 + b']' * 100)  # as deep as is allowed
    nan = json_data.parse(b'NaN')
    assert nan != nan


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('set')
    ip.require(config(SET, folder))
    return folder / 'numbered'


def odd_values(tree, path=()):
    """(path, value) for every place in a JSON tree, with values that do not belong there."""
    numbers = -1, 2**62, 10**400, 1e400, float('nan'), True
    for value in (*numbers, None, [], {}, 'x', '../x', 'x' * 300, [[]], {'x': None}):
        yield path, value
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from odd_values(tree[key], (*path, key))


def changed(tree, path, value):
    if not path:
        return value
    out = tree.copy()
    out[path[0]] = changed(tree[path[0]], path[1:], value)
    return out


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', 'prepared.json'])
def test_each_file_of_a_set_is_read_or_named(prepared, tmp_path, name):
    """The set as it was, described otherwise, or one line; whatever stands in the file."""
    shutil.copytree(prepared, tmp_path / 'numbered')
    file, cfg = tmp_path / 'numbered/1.0.0' / name, config(SET, tmp_path)
    good = json.loads(file.read_text())
    damages = [data for data, _ in ODD.values()]
    damages += [json.dumps(changed(good, *odd)).encode() for odd in odd_values(good)]
    refused = 0
    for data in damages:
        file.write_bytes(data)
        try:
            info = ip.info(cfg)
        except ip.DataError as error:
            refused += 1
            assert '\n' not in str(error) and 'numbered' in str(error).lower()
        else:
            assert info.num_classes == 3 and info.image_shape == (4, 4, 1)
            assert sum(info.split_sizes.values()) < 1000 and isinstance(info.digest, str)
    assert refused > len(ODD)


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', 'prepared.json'])
def test_each_file_of_a_set_may_be_a_fifo(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / 'numbered')
    file, cfg = tmp_path / 'numbered/1.0.0' / name, config(SET, tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ip.DataError, match='it is a FIFO'):
        ip.info(cfg)


def test_values_that_only_tfds_reads_change_nothing(prepared, tmp_path):
    """Such as the template of file names, which could name files elsewhere."""
    shutil.copytree(prepared, tmp_path / 'numbered')
    file, cfg = tmp_path / 'numbered/1.0.0/dataset_info.json', config(SET, tmp_path)
    described = json.loads(file.read_text())
    for split in described['splits']:
        split['filepathTemplate'] = '../../elsewhere-{SHARD_X_OF_Y}'
    file.write_text(json.dumps(described | {'version': [1], 'unknown': {}}))
    with ip.evaluation_batches(cfg, split='test', batch_size=2, rows=[0, 1]) as batches:
        assert (
            sum(int(batch['valid'].sum()) for batch in batches) == ip.info(cfg).split_sizes['test']
        )


def test_an_odd_note_of_an_interrupted_preparation_counts_as_none(tmp_path):
    from input_pipeline.shards import Unfinished

    unfinished = Unfinished(tmp_path / 'unfinished', 'same')
    (tmp_path / 'unfinished/x').write_text('ten bytes.')
    note = {'images': 1, 'bytes': 10, 'digest': 'd', 'unreadable': ['a']}
    unfinished.note('x', note)
    assert unfinished.kept('x').unreadable == ('a',)
    for odd in (None, 3, [], {'images': 1}, note | {'unreadable': 3}, note | {'more': 1}):
        unfinished.note('x', odd)
        assert unfinished.kept('x') is None
