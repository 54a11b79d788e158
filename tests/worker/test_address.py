"""Where webhooks may go."""

import socket
from ipaddress import ip_address

import pytest

from worker.address import check_url, is_permitted, locate, parse_networks
from worker.errors import AddressRefused

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "2606:4700:4700::1111",
    "2002:808:808::1",
    "64:ff9b::808:808",
    "::ffff:8.8.8.8",
]
NOT_PUBLIC = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "240.0.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "203.0.113.9",
    "::",
    "::1",
    "ff02::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd12:3456::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "5f00::1",
    "64:ff9b:1::1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:0:7f00:1:8000:63bf:f7f7:f7f7",
]


def answers(*addresses: str):
    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_permitted(text: str) -> None:
    assert is_permitted(ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_no_address_of_an_inner_network_is_permitted(text: str) -> None:
    assert not is_permitted(ip_address(text))


@pytest.mark.parametrize("text", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"])
def test_an_allowed_network_is_permitted_in_every_disguise(text: str) -> None:
    allowed = parse_networks(["127.0.0.0/8"])
    assert is_permitted(ip_address(text), allowed)
    assert not is_permitted(ip_address("10.0.0.1"), allowed)


@pytest.mark.parametrize("host", ["0x7f.1", "127.1", "2130706433", "017700000001", "[::1]", "localhost"])
def test_every_spelling_of_loopback_is_refused_by_the_real_resolver(host: str) -> None:
    with pytest.raises(AddressRefused, match="not a public address"):
        locate(f"https://{host}/hook", allow_http=False)


def test_one_bad_address_among_good_ones_refuses_the_host() -> None:
    with pytest.raises(AddressRefused, match=r"hook\.example.*10\.0\.0\.7"):
        locate("https://hook.example/", allow_http=False, resolver=answers("8.8.8.8", "10.0.0.7"))


def test_a_host_without_an_address_is_refused() -> None:
    def unknown(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(AddressRefused, match="has no address"):
        locate("https://nowhere.example/", allow_http=False, resolver=unknown)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hook.example/", "must use https"),
        ("ftp://hook.example/", "must use https"),
        ("file:///etc/passwd", "must use https"),
        ("hook.example/x", "must use https"),
        ("https://user:pass@hook.example/", "user name or password"),
        ("https://hook.example:22/", "port 22"),
        ("https://hook.example:80/", "port 80"),
        ("https:///path", "names no host"),
        ("https://hook.example/\r\nX: 1", "not a URL"),
        ("https://[::1/", "not a URL"),
    ],
)
def test_urls_of_the_wrong_form_are_refused(url: str, reason: str) -> None:
    with pytest.raises(AddressRefused, match=reason):
        check_url(url, allow_http=False)


def test_a_host_in_any_script_is_resolved_in_its_ascii_form() -> None:
    target = locate("https://bücher.example:8443/é#part", allow_http=False, resolver=answers("8.8.8.8"))
    assert (target.host, target.port, target.addresses) == ("xn--bcher-kva.example", 8443, ("8.8.8.8",))
    assert target.url == "https://xn--bcher-kva.example:8443/%C3%A9"


def test_http_needs_the_operators_word() -> None:
    assert locate("http://hook.example/", allow_http=True, resolver=answers("8.8.8.8")).port == 80


def test_a_network_may_be_named_by_any_of_its_addresses() -> None:
    assert [str(each) for each in parse_networks(["10.1.2.3/8", "fd00::1/8"])] == ["10.0.0.0/8", "fd00::/8"]


def test_a_network_that_is_none_is_named() -> None:
    with pytest.raises(AddressRefused, match="nonsense"):
        parse_networks(["nonsense"])
