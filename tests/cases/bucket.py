"""Fakes a bucket in memory: `gs://` for epath (through fsspec) and for tensorstore (through HTTP).

It is as strict as Google Cloud Storage where it matters: objects are not appended to or renamed,
they appear when they are whole, and folders exist only as parts of objects' names.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Stands in for gcsfs. `written` lists the name of each object whenever it is written."""

    protocol = ('gs', 'gcs')
    store: dict = {}
    pseudo_dirs: list = ['']
    written: list = []

    @classmethod
    def _strip_protocol(cls, path):
        return '/' + str(path).removeprefix('gs://').removeprefix('gcs://').strip('/')

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        pass

    def _open(self, path, mode='rb', **kwargs):
        path = self._strip_protocol(path)
        if mode not in ('rb', 'wb'):
            raise NotImplementedError(f'{mode}: objects are read, or written whole')
        if mode == 'rb':
            if path not in self.store:
                raise FileNotFoundError(path)
            return MemoryFile(None, None, self.store[path].getvalue())
        return Upload(self, path)

    def mv(self, path1, path2, **kwargs):
        raise NotImplementedError('objects are not renamed')

    rename = mv

    def put_object(self, path, data: bytes) -> None:
        self.written.append(path)
        self.store[path] = MemoryFile(self, path, data)


class Upload(MemoryFile):
    """An object that appears when it is closed."""

    def __init__(self, bucket: Bucket, path: str):
        super().__init__(None, None)
        self._bucket, self._path = bucket, path

    def close(self):
        if self._bucket:
            self._bucket.put_object(self._path, self.getvalue())
        self._bucket = None

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()


class _Requests(BaseHTTPRequestHandler):
    """The part of the JSON API that tensorstore uses."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def _answer(self, code: int, body: bytes = b'', **headers: str) -> None:
        self.send_response(code)
        for name, value in {'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body)

    def _request(self) -> tuple[str, str, dict[str, str]]:
        """(bucket, object, options) that the request names."""
        url = urlsplit(self.path)
        options = {k: v[0] for k, v in parse_qs(url.query).items()}
        bucket, _, name = url.path.partition('/b/')[2].partition('/o')
        return bucket, unquote(name.lstrip('/')) or options.get('name', ''), options

    def do_GET(self):
        bucket, name, options = self._request()
        if not name:
            prefix = f'/{bucket}/'
            begin, end = options.get('startOffset', ''), options.get('endOffset')
            names = sorted(
                p.removeprefix(prefix)
                for p in list(Bucket.store)
                if p.startswith(prefix + options.get('prefix', ''))
            )
            items = [
                _about(f'{prefix}{n}', n) for n in names if n >= begin and (end is None or n < end)
            ]
            self._answer(200, json.dumps({'items': items}).encode())
            return
        path = f'/{bucket}/{name}'
        if path not in Bucket.store:
            self._answer(404)
            return
        data = Bucket.store[path].getvalue()
        generation = str(_generation(path))
        if options.get('alt') != 'media':
            self._answer(200, json.dumps(_about(path, name)).encode())
        elif options.get('ifGenerationNotMatch') == generation:
            self._answer(304)
        elif 'Range' in self.headers:
            first, _, last = self.headers['Range'].removeprefix('bytes=').partition('-')
            part = (
                data[int(first) : int(last) + 1 if last else None] if first else data[-int(last) :]
            )
            begin = int(first) if first else len(data) - len(part)
            self._answer(
                206,
                part,
                x_goog_generation=generation,
                Content_Range=f'bytes {begin}-{begin + len(part) - 1}/{len(data)}',
            )
        else:
            self._answer(200, data, x_goog_generation=generation)

    def do_POST(self):
        bucket, name, options = self._request()
        data = self.rfile.read(int(self.headers['Content-Length']))
        path = f'/{bucket}/{name}'
        wanted = options.get('ifGenerationMatch')
        if wanted is not None and int(wanted) != _generation(path):
            self._answer(412)
            return
        Bucket().put_object(path, data)
        self._answer(200, json.dumps(_about(path, name)).encode())

    def do_DELETE(self):
        bucket, name, _ = self._request()
        removed = Bucket.store.pop(f'/{bucket}/{name}', None)
        self._answer(204 if removed else 404)


def _generation(path: str) -> int:
    """How often an object was written; 0 if it does not exist."""
    return Bucket.written.count(path) if path in Bucket.store else 0


def _about(path: str, name: str) -> dict[str, str]:
    return {
        'name': name,
        'generation': str(_generation(path)),
        'metageneration': '1',
        'size': str(len(Bucket.store[path].getvalue())),
        'timeCreated': '2026-01-01T00:00:00Z',
        'updated': '2026-01-01T00:00:00Z',
    }


def serve() -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(('127.0.0.1', 0), _Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
