"""A folder of a stranger may hold FIFOs, devices and dangling links: they are named, not opened."""

import os
import signal
import socket

import pytest
from image_fakes import encoded, picture, rewrite

from input_pipeline import files
from input_pipeline.datasets.fashion_mnist import _FILES
from input_pipeline.prepare import main


@pytest.fixture(autouse=True)
def no_blocking():
    """Opening a FIFO for reading waits for a writer; here it raises after some seconds."""

    def blocked(number, frame):
        raise TimeoutError('something was opened that blocks')

    before = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def bind_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has at most 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


ODD = {
    'FIFO': (os.mkfifo, 'it is a FIFO'),
    'socket': (bind_socket, 'it is a socket'),
    'device': (lambda path: path.symlink_to('/dev/zero'), 'it is a device'),
    'dangling': (lambda path: path.symlink_to('gone'), 'it is a link to a file that does not'),
    'loop': (lambda path: path.symlink_to(path.name), 'Too many levels of symbolic links'),
    'directory': (os.mkdir, 'it is a directory'),
}


def refused(capsys, *args):
    """The one line with which a preparation ends."""
    assert main([*args]) == 2
    out, error = capsys.readouterr()
    assert out == '' and error.startswith('error: ') and error.count('\n') == 1, error
    return error


@pytest.mark.parametrize('kind', ODD)
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind):
    make, reason = ODD[kind]
    make(tmp_path / 'odd')
    assert reason in files.irregular(tmp_path / 'odd')
    with pytest.raises(OSError) as error:
        files.read(tmp_path / 'odd', 10)
    assert reason in error.value.strerror


def test_regular_files_and_links_to_them_are_read_up_to_a_limit(tmp_path):
    rewrite(tmp_path / 'file', b'ten bytes.')
    (tmp_path / 'link').symlink_to('file')
    assert files.read(tmp_path / 'link', 10) == b'ten bytes.'
    with pytest.raises(OSError, match='it has 10 bytes; at most 9 are read'):
        files.read(tmp_path / 'file', 9)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / 'gone', 9)
    assert files.irregular('a\0b')


@pytest.mark.parametrize('kind', ODD)
@pytest.mark.parametrize('at', ['cat/b.jpg', 'cat/below/b.jpg', 'cat/b'])
def test_an_image_that_is_no_regular_file_is_left_out_and_named(tmp_path, capsys, at, kind):
    rewrite(tmp_path / 'in/train/cat/a.jpg', encoded(picture(1)))
    rewrite(tmp_path / 'in/train/cat/below/a.jpg', encoded(picture(1)))
    ODD[kind][0](tmp_path / 'in/train' / at)
    args = f'--data_dir={tmp_path}/out', f'--source={tmp_path}/in'
    assert main(['--dataset=image_folder', *args]) == 0
    line = capsys.readouterr().out
    assert 'train 2,' in line
    if kind != 'directory' or at.endswith('.jpg'):  # another empty folder holds nothing to lose
        assert f'is left out, {ODD[kind][1]}' in line and f': train/{at}' in line


def test_a_class_folder_that_is_a_dangling_link_is_named(tmp_path, capsys):
    rewrite(tmp_path / 'in/train/cat/a.jpg', encoded(picture(1)))
    (tmp_path / 'in/train/dog').symlink_to('gone')
    error = refused(
        capsys, '--dataset=image_folder', f'--data_dir={tmp_path}/out', f'--source={tmp_path}/in'
    )
    assert f'{tmp_path}/in/train/dog: it is a link to a file that does not exist' in error


def test_a_file_too_large_to_be_an_image_is_named(tmp_path, capsys):
    with rewrite(tmp_path / 'in/train/cat/a.jpg', b'').open('wb') as file:
        file.truncate(files.MAX_IMAGE_FILE + 1)  # takes no room on the disk
    error = refused(
        capsys, '--dataset=image_folder', f'--data_dir={tmp_path}/out', f'--source={tmp_path}/in'
    )
    assert 'a.jpg cannot be read: it has 1,073,741,825 bytes; at most 1,073,741,824' in error


@pytest.mark.parametrize('kind', [k for k in ODD if k != 'directory'])
@pytest.mark.parametrize(
    ('name', 'file'),
    [
        ('cifar10', 'cifar-10-binary.tar.gz'),
        ('cifar100', 'cifar-100-binary.tar.gz'),
        ('tiny_imagenet', 'tiny-imagenet-200.zip'),
        ('imagenet2012', 'ILSVRC2012_img_train.tar'),
        ('fashion_mnist', f'{_FILES["train"][0]}.gz'),
    ],
)
def test_an_archive_that_is_no_regular_file_is_named(tmp_path, capsys, name, file, kind):
    (tmp_path / 'in').mkdir()
    ODD[kind][0](tmp_path / 'in' / file)
    args = f'--dataset={name}', f'--data_dir={tmp_path}/out'
    assert f'{file} cannot be read: {ODD[kind][1]}' in refused(
        capsys, *args, f'--source={tmp_path}/in'
    )
    if name in ('cifar10', 'tiny_imagenet') and kind in ('FIFO', 'socket', 'device'):
        assert f'{file} cannot be read: {ODD[kind][1]}' in refused(
            capsys, *args, f'--source={tmp_path}/in/{file}'
        )
