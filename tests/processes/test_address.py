"""Process 0 refuses a coordinator that it cannot serve, and opens the watch's port where the others
reach it and nowhere else."""

import contextlib
import socket

import pytest
from pair import free_port

from moe_vision.common.errors import UserError
from moe_vision.processes import address, peers

OUTWARD = address._outward()


def server(ip: str, **options) -> socket.socket:
    family = socket.AF_INET6 if ':' in ip else socket.AF_INET
    try:
        return socket.create_server((ip, 0), family=family, **options)
    except OSError:
        pytest.skip(f'this machine has no {ip}')


@pytest.mark.parametrize(
    ('ip', 'options'),
    [
        ('127.0.0.1', {}),
        ('0.0.0.0', {}),
        ('127.0.0.2', {}),
        ('::1', {}),
        ('::', {}),
        ('::', {'dualstack_ipv6': True, 'reuse_port': True}),  # the coordinator of another run
        ('0.0.0.0', {'reuse_port': True}),
    ],
)
def test_a_port_that_is_taken_at_any_address_is_an_error_of_one_line(ip, options):
    """The runtime itself ends in a segmentation fault, or shares the port with another run."""
    with server(ip, **options) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as e:
            peers.start(peers.Given(f'127.0.0.1:{port}', 2, 0))
    assert str(e.value) == (
        f"--coordinator is '127.0.0.1:{port}', but port {port} is in use on this machine, by "
        'another run or program; end that, or give all processes another port.'
    )


@pytest.mark.parametrize(
    'host', ['127.0.0.1', 'localhost', '0.0.0.0', '[::1]', *(ip for _, ip in OUTWARD)]
)
def test_a_free_port_passes_and_stays_free(host):
    if host == '[::1]':
        server('::1').close()
    port = free_port()
    address.check_coordinator(f'{host}:{port}')
    address.check_coordinator(f'{host}:{port}')
    socket.create_server(('0.0.0.0', port)).close()


def test_a_port_that_a_run_has_just_left_is_free():
    """Its connections linger for a minute after their end."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(('127.0.0.1', port)) as client:
            listener.accept()[0].close()  # who closes first, lingers
            client.recv(1)
    address.check_coordinator(f'127.0.0.1:{port}')


@pytest.mark.parametrize('host', ['203.0.113.7', '[2001:db8::7]'])
def test_process_0_must_run_on_the_machine_of_the_coordinator(host):
    with pytest.raises(UserError, match='is not an address of this machine') as e:
        address.check_coordinator(f'{host}:{free_port()}')
    assert '\n' not in str(e.value) and '127.0.0.1 (if all' in str(e.value)
    assert all(ip in str(e.value) for _, ip in OUTWARD)


@pytest.mark.parametrize('host', ['a..b', 'nosuch'])
def test_a_host_without_an_address_is_named(host, monkeypatch):
    def fails(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    if host == 'nosuch':
        monkeypatch.setattr(socket, 'getaddrinfo', fails)
    with pytest.raises(UserError, match=f"no address of '{host}' is known") as e:
        address.check_coordinator(f'{host}:8476')
    assert '\n' not in str(e.value)


def test_where_jax_is_told_to_listen_is_what_is_checked(monkeypatch):
    """Behind a router the machine does not have the address that the others use."""
    port = free_port()
    monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', f'127.0.0.1:{port}')
    address.check_coordinator('203.0.113.7:8476')
    with (
        socket.create_server(('127.0.0.1', port)),
        pytest.raises(
            UserError, match=f"JAX_COORDINATOR_BIND_ADDRESS is '127.0.0.1:{port}', but port"
        ),
    ):
        address.check_coordinator('203.0.113.7:8476')
    monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', 'here')
    with pytest.raises(UserError, match="JAX_COORDINATOR_BIND_ADDRESS is 'here'; give"):
        address.check_coordinator('127.0.0.1:8476')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('a:1', ('a', 1)), ('10.0.0.1:65535', ('10.0.0.1', 65535)), ('[fd00::1]:80', ('fd00::1', 80))],
)
def test_a_coordinator_is_split(text, expected):
    assert address.split(text) == expected


@pytest.mark.parametrize(
    'text',
    [
        '',
        ':',
        'a',
        ':1',
        'a:',
        'a:0',
        'a:65536',
        'a:-1',
        'a:1.0',
        'a:²',
        'a:' + '1' * 9999,
        '::1:80',
        '[::1:80',
        '[]:80',
        'a:b:80',
    ],
)
def test_what_is_not_host_and_port_is_refused(text):
    with pytest.raises(UserError, match='--coordinator is '):
        address.split(text)


@pytest.mark.parametrize('host', ['127.0.0.1', '127.0.0.2', 'localhost', '::1'])
def test_the_watch_of_a_run_on_one_machine_cannot_be_reached_from_others(host):
    if host == '::1':
        server('::1').close()
    with address.listen(host) as listener:
        assert address._loopback(listener.getsockname()[0])


@pytest.mark.skipif(not OUTWARD, reason='this machine reaches no other')
@pytest.mark.parametrize('known', ['127.0.1.1', '0.0.0.0', OUTWARD and OUTWARD[0][1]])
def test_the_watch_is_not_hidden_because_a_machine_calls_itself_loopback(known, monkeypatch):
    """Debian writes `127.0.1.1 NAME` into /etc/hosts; the others know NAME by its real address."""
    monkeypatch.setattr(address, '_known', lambda host: [(socket.AF_INET, known)])
    with address.listen('node1') as listener:
        assert listener.getsockname()[0] == OUTWARD[0][1]


def test_a_machine_without_a_network_watches_at_its_loopback(monkeypatch):
    monkeypatch.setattr(address, '_known', lambda host: [(socket.AF_INET, '127.0.1.1')])
    monkeypatch.setattr(address, '_outward', list)
    with address.listen('node1') as listener:
        assert listener.getsockname()[0] == '127.0.0.1'


@pytest.mark.parametrize('host', ['203.0.113.7', 'a..b'])
def test_the_watch_listens_nowhere_if_not_there(host):
    with pytest.raises(OSError), contextlib.closing(address.listen(host)):
        pass
