"""When the environment's proxy is asked for: before servers that it stands before, and only then."""

import pytest

from llamero.kube.client import is_proxied


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_without_a_proxy_the_environment_is_not_asked() -> None:
    assert not is_proxied("https://api.example.org:6443")


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("https://api.example.org:6443", True),
        ("https://api.inside.example:6443", False),
        ("https://127.0.0.1:6443", False),
        ("http://api.example.org", False),
    ],
)
def test_a_proxy_is_asked_for_its_scheme_and_not_for_hosts_left_out(
    monkeypatch: pytest.MonkeyPatch, server: str, expected: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,inside.example")
    assert is_proxied(server) is expected
