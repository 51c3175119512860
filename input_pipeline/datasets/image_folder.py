"""Reads a user's own images: train/<class>/*.jpg, with test/<class>/ or val/<class>/ beside it."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from input_pipeline.builder import Builder, Contents, Example, Shard
from input_pipeline.decode import readable
from input_pipeline.files import MAX_IMAGE_FILE, irregular, printable, read
from input_pipeline.other_formats import as_png
from input_pipeline.types import DataError, listed, nearest
from input_pipeline.walk import files_below, hidden, named_as_image

_SHARD = 4096  # images
_SPLITS = {  # in upper or lower case; the names that Hugging Face's `datasets` takes, too
    'train': ('train', 'training'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
    'validation': ('val', 'valid', 'validation', 'dev'),
}
_NO_IMAGE = 'not an image that can be decoded'
LeaveOut = Callable[[Path, str], None]  # of a path, and why


class ImageFolder(Builder):
    """A user's own images, one folder per class."""

    name = 'image_folder'
    encoding = 'jpeg'
    wants = 'a folder with train/<class>/*.jpg (or png, webp, bmp, tif) and test/ or val/ beside'

    def open(self, source: Path) -> Contents:
        """Lists the images below each class folder, at any depth.

        The classes are the folders of train/ in alphabetical order. A file that has the ending of
        an image is one; a file of another name is one if it can be decoded. What is left out is
        listed by the reason.
        """
        left_out: dict[str, list[str]] = collections.defaultdict(list)

        def leave_out(path: Path, why: str) -> None:
            name = printable(path.relative_to(source))
            left_out[why].append(name + '/' * path.is_dir())

        folders = _split_folders(source, self.wants, leave_out)
        class_folders = {s: _class_folders(folder, leave_out) for s, folder in folders.items()}
        classes = list(class_folders['train'])
        if not classes:
            raise DataError(f'{folders["train"]} has no class folders; wanted: {self.wants}.')
        if unprintable := [c for c in classes if not c.isprintable()]:
            raise DataError(
                f'{folders["train"]}: the name of class folder {unprintable[0]!r} is not '
                'printable; rename it.'
            )
        labels = {name: i for i, name in enumerate(classes)}
        splits: dict[str, Sequence[Shard]] = {}
        files: list[Path] = []
        for split, of_class in class_folders.items():
            images: list[tuple[Path, int]] = []
            for name, below in of_class.items():
                if name not in labels:
                    raise DataError(
                        f'{printable(below)}: {folders["train"].name}/ has no class of this name.'
                        f'{nearest(name, labels)}'
                    )
                found = _images(below, leave_out)
                if not found and split == 'train':
                    inside = printable(below.relative_to(source)) + '/'
                    others = [n for names in left_out.values() for n in names if inside in n]
                    but = f' (but {listed(others)})' if others else ''
                    raise DataError(f'{printable(below)} holds no images that can be read{but}.')
                images += [(path, labels[name]) for path in found]
            parts = [images[i : i + _SHARD] for i in range(0, len(images), _SHARD)]
            files += [path for path, _ in images]
            if parts:
                splits[split] = [functools.partial(_shard, source, part) for part in parts]
        return Contents(tuple(classes), splits, files, left_out)


def _split_folders(source: Path, wants: str, leave_out: LeaveOut) -> dict[str, Path]:
    """The folder of each split that `source` has, train first."""
    folders: dict[str, list[Path]] = {split: [] for split in _SPLITS}
    others = []
    if not source.is_dir():
        raise DataError(f'{source} is no folder; wanted: {wants}.')
    for path in _visible(source):
        split = next((s for s, names in _SPLITS.items() if path.name.lower() in names), None)
        if split and path.is_dir():
            folders[split].append(path)
        else:
            others.append(path)
    if not folders['train']:
        has = listed([printable(p.name) for p in others if p.is_dir()])
        raise DataError(
            f'{source} has no folder train/{f" (it has: {has})" if has else ""}; wanted: {wants}.'
        )
    for split, same in folders.items():
        if len(same) > 1:
            raise DataError(
                f'{source} has both {same[0].name}/ and {same[1].name}/ for {split}; move one of '
                'them away, or put their images together.'
            )
    for path in others:
        leave_out(path, 'not named like a split (train, test, val, or a usual variant)')
    return {split: same[0] for split, same in folders.items() if same}


def _class_folders(folder: Path, leave_out: LeaveOut) -> dict[str, Path]:
    """The folders in the folder of a split by their names, in alphabetical order.

    Raises:
        DataError: a link that may have been the folder of a class leads nowhere.
    """
    classes = {}
    for path in _visible(folder):
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            leave_out(path, 'it is a link to a folder above')
        elif path.is_dir():
            classes[path.name] = path
        elif named_as_image(path.name) or not (reason := irregular(path)):
            leave_out(path, 'not in the folder of a class')
        else:
            raise DataError(f'{printable(path)}: {reason}; repair it, or remove it.')
    return classes


def _images(folder: Path, leave_out: LeaveOut) -> list[Path]:
    """The images below the folder of a class."""
    images = []
    for name in files_below(str(folder), lambda at, why: leave_out(Path(at), why)):
        path = Path(name)
        if reason := irregular(path):
            leave_out(path, reason)
        elif named_as_image(name) or _readable(path):
            images.append(path)
        else:
            leave_out(path, _NO_IMAGE)
    return images


def _readable(path: Path) -> bool:
    try:
        data = read(path, MAX_IMAGE_FILE)
        return readable(data) or as_png(data) is not None
    except OSError:
        return False


def _shard(source: Path, images: list[tuple[Path, int]]) -> Iterator[Example]:
    for path, label in images:
        try:
            data = read(path, MAX_IMAGE_FILE)
        except OSError as error:
            raise DataError(f'{printable(path)} cannot be read: {error.strerror}.') from error
        yield printable(path.relative_to(source)), as_png(data) or data, label


def _visible(folder: Path) -> list[Path]:
    """What a folder shows, in alphabetical order."""
    try:
        return sorted(p for p in folder.iterdir() if not hidden(p.name))
    except OSError as error:
        raise DataError(f'{printable(folder)} cannot be read: {error.strerror}.') from error
