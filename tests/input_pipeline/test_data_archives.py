"""Hostile or damaged archives are refused, and the error names the member."""

import gzip
import stat
import tarfile
import zipfile

import pytest
from image_fakes import rewrite, tar_bytes

from input_pipeline import DataError, archives
from input_pipeline.prepare import main


def special(name, kind, target=''):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return name, member


HOSTILE = {
    'parent': ('a/../../evil', b'x'),
    'absolute': ('/evil', b'x'),
    'windows': ('..\\evil', b'x'),
    'drive': ('C:\\evil', b'x'),
    'symlink': special('evil', tarfile.SYMTYPE, '/etc/passwd'),
    'hardlink': special('evil', tarfile.LNKTYPE, 'first'),
    'device': special('evil', tarfile.CHRTYPE),
    'block': special('evil', tarfile.BLKTYPE),
    'fifo': special('evil', tarfile.FIFOTYPE),
}


@pytest.mark.parametrize('hostile', HOSTILE)
@pytest.mark.parametrize('mode', ['w', 'w:gz'])
def test_hostile_tar_member(tmp_path, hostile, mode):
    path = rewrite(tmp_path / 'x.tar', tar_bytes([('first', b'1'), HOSTILE[hostile]], mode))
    with pytest.raises(DataError, match='is refused: member .*evil'):
        list(archives.tar_files(path))
    assert [p.name for p in tmp_path.iterdir()] == ['x.tar']


@pytest.mark.parametrize('name', ['../evil', '/evil', 'a/../../evil'])
def test_hostile_zip_member(tmp_path, name):
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('first', '1')
        archive.writestr(zipfile.ZipInfo(name), 'x')
    with pytest.raises(DataError, match='is refused: member .*evil'):
        archives.zip_names(path)


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFCHR])
def test_zip_with_a_link_or_device(tmp_path, kind):
    path, member = tmp_path / 'x.zip', zipfile.ZipInfo('evil')
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(member, '/etc/passwd')
    with pytest.raises(DataError, match="is refused: member 'evil' is a link"):
        archives.zip_names(path)


@pytest.mark.parametrize('hostile', HOSTILE)
def test_prepare_refuses_a_hostile_archive(tmp_path, capsys, hostile):
    files = [('cifar-10-batches-bin/data_batch_1.bin', bytes(3073)), HOSTILE[hostile]]
    source = rewrite(tmp_path / 'in/cifar-10-binary.tar.gz', tar_bytes(files, 'w:gz'))
    data = tmp_path / 'out'
    assert main(['--dataset=cifar10', f'--data_dir={data}', f'--source={source}']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'is refused' in error
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*')} == {
        *('in', 'in/cifar-10-binary.tar.gz', 'out', 'out/cifar10', 'out/cifar10/.lock')
    }


def test_plain_tar_in_order(tmp_path):
    files = [('d/one', b'1' * 1000), ('two', b''), ('x' * 300, b'3')]  # the last has a long header
    path = rewrite(tmp_path / 'x.tar', tar_bytes(files))
    assert list(archives.tar_files(path)) == files
    places = archives.tar_places(path)
    assert list(archives.tar_read(path, places[::-1])) == files[::-1]


def test_tar_inside_a_tar(tmp_path):
    inner = tar_bytes([('a', b'aa'), ('b', b'bb')])
    path = rewrite(tmp_path / 'x.tar', tar_bytes([('0', b'0'), ('in.tar', inner)]))
    _, start, size = archives.tar_places(path)[1]
    assert list(archives.tar_files(path, start, size)) == [('a', b'aa'), ('b', b'bb')]


@pytest.mark.parametrize('cut', [512 + 700, 512 + 1024, 512 + 1024 + 100])
def test_cut_tar_names_the_member(tmp_path, cut):
    """Member 'one' is a header of 512 bytes and 1,024 bytes of data; 'two' follows."""
    whole = tar_bytes([('one', b'1' * 1024), ('two', b'2')])
    path = rewrite(tmp_path / 'x.tar', whole[:cut])
    with pytest.raises(DataError, match="is damaged at member 'one'"):
        list(archives.tar_files(path))


def test_half_an_image_is_never_handed_out(tmp_path):
    path = rewrite(tmp_path / 'x.tar', tar_bytes([('one', b'1' * 1024)])[: 512 + 700])
    with pytest.raises(DataError, match="at member 'one' .it ends early"):
        next(archives.tar_files(path))


def test_broken_header_is_not_the_end(tmp_path):
    whole = bytearray(tar_bytes([('one', b'1' * 512), ('two', b'2'), ('three', b'3')]))
    whole[1024:1034] = b'\xff' * 10  # the header of 'two'
    with pytest.raises(DataError, match="is damaged at member 'one'"):
        archives.tar_places(rewrite(tmp_path / 'x.tar', bytes(whole)))


def test_damaged_gzip_and_zip(tmp_path):
    data = tar_bytes([('one', bytes(range(256)) * 400)])
    path = rewrite(tmp_path / 'x.tar.gz', gzip.compress(data)[:-200])
    with pytest.raises(DataError, match='is damaged'):
        list(archives.tar_files(path))
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('one', 'hello world')
    path.write_bytes(path.read_bytes().replace(b'hello', b'jello'))
    with pytest.raises(DataError, match="is damaged at member 'one'"):
        list(archives.zip_read(path, ['one']))
    with pytest.raises(DataError, match='is damaged at its start'):
        archives.zip_names(rewrite(tmp_path / 'y.zip', b'no zip'))
    with pytest.raises(DataError, match='is damaged at its start'):
        archives.tar_places(rewrite(tmp_path / 'y.tar', b'no tar' * 200))


def test_member_too_large_to_be_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'MAX_MEMBER', 10)
    path = rewrite(tmp_path / 'x.tar', tar_bytes([('one', b'1' * 11)]))
    with pytest.raises(DataError, match="'one' has 11 bytes; at most 10 are allowed"):
        list(archives.tar_files(path))
