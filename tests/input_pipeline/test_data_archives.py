"""Hostile or damaged archives are refused, and the error names the member."""

import gzip
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
from image_fakes import rewrite, tar_bytes

from input_pipeline import DataError, archives
from input_pipeline.datasets.fashion_mnist import read_idx
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


# headers that lie


def header(name, kind=tarfile.REGTYPE, size=0, change=None):
    """One block of a tar: the header of a member that declares `size` bytes."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (
        (b'%011o\0' % size) if size < 8**11 else (b'\x80' + size.to_bytes(11, 'big'))
    )  # GNU writes large numbers so
    for at, data in (change or {}).items():
        block[at : at + len(data)] = data
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


def pax(record):
    return header('pax', tarfile.XHDTYPE, len(record)) + record + bytes(-len(record) % 512)


def sparse(number):
    """The parts of a sparse file in the header of GNU tar, with more of them in the next blocks."""
    return header('odd', tarfile.GNUTYPE_SPARSE, 0, {386: number * 2, 482: b'\1'})


GIB = 2**30
SPARSE = b'22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n'
END = bytes(1024)
LIES = {
    'a size of 2^62 bytes': header('odd', size=2**62) + END,
    'a size of 2^87 bytes': header('odd', size=2**87) + END,
    'a negative size': header('odd', change={124: b'\xff' * 12}) + END,
    'a length of 26 digits': pax(b'9' * 26 + b' path=odd\n') + header('odd') + END,
    'a length of 5,000 digits': pax(b'9' * 5000 + b' path=odd\n') + header('odd') + END,
    'a pax size of 26 digits': pax(b'36 size=' + b'9' * 26 + b'\n\n') + header('odd') + END,
    'half a name in pax': pax(b'12 path=\xff\xfe\n') + header('odd') + END,
    'a name of 2 GiB': header('long', tarfile.GNUTYPE_LONGNAME, 2 * GIB),
    'a link name of 2 GiB': header('long', tarfile.GNUTYPE_LONGLINK, 2 * GIB),
    'a pax header of 2 GiB': header('pax', tarfile.XHDTYPE, 2 * GIB),
    'a global pax header of 2 GiB': header('pax', tarfile.XGLTYPE, 2 * GIB),
    'pax headers in each other': pax(b'11 path=od\n') * 2000 + header('odd') + END,
    'an odd sparse map': sparse(b'\x80' + b'\xff' * 11) + bytes([255]) * 512 + END,
    'a sparse map without end': sparse(b'00000000001\0') + (bytes(504) + b'\1' + bytes(7)),
    'a sparse map in pax': pax(SPARSE) + header('odd') + b'no map',
    'a sparse map with a count of 26 digits': pax(SPARSE) + header('odd') + b'9' * 26 + b'\n' + END,
}
REPEATS = {
    'a sparse map without end': 512,
    'a name of 2 GiB': 1,
    'a link name of 2 GiB': 1,
    'a pax header of 2 GiB': 1,
    'a global pax header of 2 GiB': 1,
}


class Endless(gzip.GzipFile):
    """A gzip file that goes on with the last of its blocks, as a small bomb does."""

    def __init__(self, path, repeat):
        super().__init__(path)
        self._repeat = repeat

    def read(self, size=-1):
        data = super().read(size)
        while 0 <= len(data) < size <= GIB:
            data += self._repeat[: size - len(data)]
        return data if size <= GIB else pytest.fail(f'{size} bytes are read at once')


def memory(call):
    """The most bytes of memory that a call takes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('lie', LIES)
def test_a_tar_header_that_lies_is_one_line_and_no_memory(tmp_path, monkeypatch, lie):
    path = rewrite(
        tmp_path / 'x.tar', gzip.compress(tar_bytes([('first', b'1')])[:1024] + LIES[lie])
    )
    if lie in REPEATS:
        repeat = LIES[lie][-512:] if REPEATS[lie] == 512 else bytes(2**20)
        monkeypatch.setattr(archives, 'open_tar', lambda path: Endless(path, repeat))

    def read():
        with pytest.raises(DataError) as error:
            list(archives.tar_files(path)) if lie not in REPEATS else archives.tar_places(path)
        text = str(error.value)
        assert '\n' not in text and len(text) < 500 and str(path) in text
        assert text.encode()

    assert memory(read) < 2**22


def test_a_tar_of_very_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, '_MAX_MEMBERS', 3)
    path = rewrite(tmp_path / 'x.tar', tar_bytes([(str(i), b'') for i in range(3)]))
    assert len(archives.tar_places(path)) == 3
    rewrite(path, tar_bytes([(str(i), b'') for i in range(4)]))
    with pytest.raises(DataError, match='over 3 members'):
        archives.tar_places(path)


def zip_that_lies(path, packing=zipfile.ZIP_DEFLATED, **claims):
    """A zip whose member 'one' holds 64 MiB of zeros, with other numbers in the directory."""
    with zipfile.ZipFile(path, 'w', packing) as archive:
        archive.writestr('one', bytes(2**26))
    data = bytearray(path.read_bytes())
    central = data.rindex(b'PK\1\2')
    for field, value in claims.items():
        at, form = {
            'method': (10, '<H'),
            'crc': (16, '<I'),
            'packed': (20, '<I'),
            'size': (24, '<I'),
            'offset': (42, '<I'),
        }[field]
        struct.pack_into(form, data, central + at, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    'claims',
    [
        {'size': 10},
        {'size': 10, 'crc': zlib.crc32(bytes(10))},
        {'size': 2**26 + 1},
        {'size': 2**32 - 2},
        {'packed': 3},
        {'offset': 2**31},
        {'method': 99},
    ],
)
def test_a_zip_entry_that_lies_about_itself(tmp_path, claims):
    path = zip_that_lies(tmp_path / 'x.zip', **claims)

    def read():
        try:
            found = list(archives.zip_read(path, archives.zip_names(path)))
        except DataError as error:
            assert '\n' not in str(error) and "'one'" in str(error)
        else:  # as much as it declares, and that much is right
            assert found == [('one', bytes(claims['size']))] and 'crc' in claims

    assert memory(read) < 2**21


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_not_unpacked_by_what_has_no_limit(tmp_path, method):
    path = zip_that_lies(tmp_path / 'x.zip', method)
    with pytest.raises(DataError, match="'one' .neither stored nor deflated"):
        list(archives.zip_read(path, ['one']))


def test_an_idx_file_that_unpacks_to_gigabytes(tmp_path):
    zeros = gzip.compress(bytes(2**24), 9)
    start = gzip.compress(b'\0\0\x08\x03' + struct.pack('>3I', 2**18, 128, 128))
    path = rewrite(tmp_path / 'x.gz', start + zeros * 256)  # 4 GiB in 4 MB

    def read():
        with pytest.raises(DataError, match='holds more than 134,217,728 bytes') as error:
            read_idx(path)
        assert '\n' not in str(error.value)

    assert memory(read) < 2**29
    rewrite(path, b'\0\0\x08\x03' + struct.pack('>3I', 0, 2**32 - 1, 2**32 - 1))
    with pytest.raises(DataError, match='is damaged: its header gives the shape'):
        read_idx(path)
