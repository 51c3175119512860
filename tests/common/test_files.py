"""Files are whole or not there, and reading one that is damaged ends in one line."""

import errno
import json
import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from input_pipeline import cores, json_data
from moe_vision.common import files, json_values, metric_rows
from moe_vision.common.errors import NotWritten, UserError
from moe_vision.config.check import CARD
from moe_vision.run_folder import exported


@pytest.fixture(params=['write_bytes', 'replace'])
def full(request, monkeypatch):
    """A disk that is full: half of a file is written, or all of it but its name."""
    real = getattr(pathlib.Path, request.param)

    def fails(path, argument):
        if request.param == 'write_bytes':
            real(path, argument[: len(argument) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(pathlib.Path, request.param, fails)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(full, tmp_path):
    (tmp_path / 'a.json').write_text('before')
    with pytest.raises(OSError, match='No space left'):
        files.write(tmp_path / 'a.json', b'after, and longer')
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']
    assert (tmp_path / 'a.json').read_text() == 'before'


@pytest.mark.parametrize('error', [NotWritten, UserError])
def test_json_that_cannot_be_written_is_an_error_of_one_line(error, full, tmp_path):
    with pytest.raises(error, match="a.json' cannot be written: No space left on device; ") as e:
        files.write_json(tmp_path / 'a.json', {}, error)
    assert type(e.value) is error and '\n' not in str(e.value)


DAMAGED = {
    'empty': b'',
    'half': b'{"a": [1, 2',
    'byte': b'{"a": "\xff"}',
    'zeros': bytes(20),
    'deep': b'[' * 10_000 + b']' * 10_000,
    'quite deep': b'[' * 200 + b']' * 200,
    'digits': b'1' * 5_000,
}


@pytest.mark.parametrize('data', DAMAGED.values(), ids=DAMAGED)
def test_damaged_json_is_an_error_of_one_line(data, tmp_path):
    (tmp_path / 'a.json').write_bytes(data)
    with pytest.raises(ValueError, match='not JSON|nested more than 100') as e:
        files.read_json(tmp_path / 'a.json')
    assert '\n' not in str(e.value)


def test_whole_json_is_read(tmp_path):
    value = {'a': [1, None, {'b': 'ä'}], 'deep': json.loads('[' * 90 + ']' * 90)}
    files.write_json(tmp_path / 'a.json', value)
    assert files.read_json(str(tmp_path / 'a.json')) == value
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / 'b.json')


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    for name in ('pipe', 'folder'):
        with pytest.raises(ValueError, match='not a file'):
            files.read_json(tmp_path / name)


@pytest.mark.parametrize('kind', ['link', 'pipe'])
def test_a_write_follows_no_link_and_waits_for_no_pipe(kind, tmp_path, monkeypatch):
    """The folder may be a stranger's, who may even know our temporary name."""
    (tmp_path / 'precious').write_text('mine')
    monkeypatch.setattr(files.os, 'urandom', lambda count: next(drawn))
    drawn = iter((b'known', b'other'))
    for name in ('a.json', f'.a.json.{b"known".hex()}.part'):
        if kind == 'link':
            (tmp_path / name).symlink_to(tmp_path / 'precious')
        else:
            os.mkfifo(tmp_path / name)
    with pytest.raises(FileExistsError):
        files.write(tmp_path / 'a.json', b'{}')
    files.write(tmp_path / 'a.json', b'{}')
    assert (tmp_path / 'a.json').read_bytes() == b'{}' and not (tmp_path / 'a.json').is_symlink()
    assert (tmp_path / 'precious').read_text() == 'mine'


def test_a_file_that_claims_more_than_memory_holds_is_not_read(tmp_path):
    with open(tmp_path / 'a.json', 'wb') as f:
        f.truncate(2**40)
    for read in (files.read, files.read_json):
        with pytest.raises(ValueError, match='has 1,099,511,627,776 bytes; at most'):
            read(tmp_path / 'a.json')


@pytest.mark.parametrize('module', [json_values, json_data, metric_rows])
def test_a_value_that_would_fill_the_memory_is_not_parsed(module):
    parse = metric_rows._row if module is metric_rows else module.parse
    with pytest.raises(ValueError, match=r'has 67,108,\d+ bytes; at most 67,108,864'):
        parse(b'[' + b' ' * 2**26 + b']')


def test_arrays_may_take_what_the_container_may_take(tmp_path, monkeypatch):
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(cores, '_LIMITS', (str(limit),))
    files.check_memory(10_000)  # the machine has more
    limit.write_text('9999\n')
    with pytest.raises(ValueError, match='would take 10,000 bytes; there are 9,999 of memory here'):
        files.check_memory(10_000)
    limit.write_text('max\n')
    files.check_memory(10_000)


def test_exported_weights_may_be_as_large_as_the_memory_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, '_LIMITS', (str(tmp_path / 'memory.max'),))
    (tmp_path / CARD).write_text('{}')
    (tmp_path / exported.WEIGHTS).write_bytes(bytes(10))
    (tmp_path / 'memory.max').write_text('9')
    with pytest.raises(UserError, match='it has 10 bytes; at most 9 are read'):
        exported.read(str(tmp_path))


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, values = tmp_path / 'a.json', [bytes([n]) * 100_000 for n in range(8)]

    def write(value):
        for _ in range(20):
            files.write(path, value)
            assert len(set(path.read_bytes())) == 1  # whole, whoever wrote it

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, values))
    assert os.listdir(tmp_path) == ['a.json']


@pytest.mark.parametrize('age, stays', [(3600, False), (0, True)])
def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, age, stays):
    """Unless it is so new that another process may be writing it."""
    left = tmp_path / '.a.json.12345678.part'
    left.write_bytes(b'half')
    then = time.time() - age
    os.utime(left, (then, then))
    files.write(tmp_path / 'a.json', b'{}')
    assert left.exists() == stays
    assert sorted(p.name for p in tmp_path.iterdir()) == [left.name] * stays + ['a.json']
