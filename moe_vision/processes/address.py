"""Where process 0 listens: checks its coordinator's port, and finds the address of the watch.

Imports no jax: all of it happens before the runtime starts, or beside it.
"""

import errno
import ipaddress
import os
import socket

from moe_vision.common.errors import UserError

_BIND = 'JAX_COORDINATOR_BIND_ADDRESS'  # where jax listens instead of at the coordinator's address
_ANY = [(socket.AF_INET6, '::'), (socket.AF_INET, '0.0.0.0')]
_OUTSIDE = '198.51.100.1'  # an address of no machine (RFC 5737): only the way to it is asked for


def split(text: str, name: str = '--coordinator') -> tuple[str, int]:
    """(host, port) of HOST:PORT; the brackets of an IPv6 address are taken off.

    Raises:
      UserError: `text`, the value of `name`, is not HOST:PORT.
    """
    host, _, port = text.rpartition(':')
    bracketed = host.startswith('[') and host.endswith(']')
    host = host[1:-1] if bracketed else host
    if (
        not host
        or (':' in host) != bracketed
        or not (port.isascii() and port.isdecimal())
        or len(port) > 5
        or not 0 < int(port) < 65536
    ):
        raise UserError(
            f"{name} is '{text}'; give the host of process 0 and a free port there, "
            'such as 10.0.0.1:8476 or [fd00::1]:8476.'
        )
    return host, int(port)


def check_coordinator(coordinator: str) -> None:
    """Checks that process 0 can serve as the coordinator, before the runtime tries it.

    The runtime listens at the port on all addresses of the machine. If the port is taken, it ends
    in a segmentation fault; if another run has it, both listen and take each other's processes.

    Raises:
      UserError: the host is not this machine, or the port is taken.
    """
    given, (host, port) = f"--coordinator is '{coordinator}'", split(coordinator)
    bind = os.environ.get(_BIND)
    if bind:
        given, (host, port) = f"{_BIND} is '{bind}'", split(bind, _BIND)
    try:
        known = _known(host)
    except (OSError, UnicodeError) as e:  # UnicodeError: a name that DNS cannot hold
        raise UserError(
            f"{given}, but no address of '{host}' is known on this machine ({e}); "
            f'process 0 runs here: give {_such_as()}.'
        ) from e
    if not any(_error(family, ip, 0) is None for family, ip in known):
        raise UserError(
            f"{given}, but '{host}' is not an address of this machine, on which "
            f'process 0 runs; start process 0 on that machine, or give all processes '
            f'{_such_as()}.'
        )
    for family, ip in known if bind else _ANY:
        error = _error(family, ip, port)
        if error and error.errno == errno.EADDRINUSE:
            raise UserError(
                f'{given}, but port {port} is in use on this machine, by another run '
                'or program; end that, or give all processes another port.'
            )
        if error and error.errno == errno.EACCES:
            raise UserError(
                f'{given}, but this user may not listen at port {port}; give all '
                'processes a port from 1024 to 65535.'
            )


def listen(host: str) -> socket.socket:
    """A socket at a free port of the address at which the other processes reach this machine.

    Args:
      host: the coordinator's host, as this machine knows it, which runs process 0. Only a host that
        is named as the loopback is taken for it: many systems give their own name a loopback
        address, which is not what other machines reach.

    Raises:
      OSError: this machine has no such address.
    """
    try:
        # IPv4 first: a machine may know an IPv6 address of itself that others do not reach.
        known = sorted(_known(host), key=lambda k: k[0] != socket.AF_INET)
    except UnicodeError as e:
        raise OSError(str(e)) from e
    if not _loopback(host):
        known = (
            [(f, ip) for f, ip in known if not _loopback(ip) and ip not in ('0.0.0.0', '::')]
            or _outward()
            or [(socket.AF_INET, '127.0.0.1')]
        )
    for family, ip in known:
        if _error(family, ip, 0) is None:
            return socket.create_server((ip, 0), family=family, backlog=128)
    raise OSError(f"'{host}' is not an address of this machine")


def _known(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of a host. Raises OSError or UnicodeError if there are none."""
    return [
        (family, str(address[0]))
        for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    ]


def _error(family: int, ip: str, port: int) -> OSError | None:
    """Why no socket can be bound there, or None. Binds as the runtime does, and closes at once."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind((ip, port))
    except OSError as e:
        return e
    return None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return 'localhost' in host


def _outward() -> list[tuple[socket.AddressFamily, str]]:
    """The address from which this machine reaches others, if it does. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((_OUTSIDE, 9))
            return [(socket.AF_INET, s.getsockname()[0])]
    except OSError:
        return []


def _such_as() -> str:
    return ' or '.join(
        ['127.0.0.1 (if all processes run on this machine)', *(ip for _, ip in _outward())]
    )
