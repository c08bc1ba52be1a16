"""Where the adapters call: regions, environment variables, and what no base URL or path may be."""

from __future__ import annotations

from typing import Any

import pytest

from bide.providers import DashScope, Dieyuyun


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DASHSCOPE_BASE_URL", "DASHSCOPE_HTTP_BASE_URL", "DIEYUYUN_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("region", "base_url"),
    [
        ("beijing", "https://dashscope.aliyuncs.com/api/v1"),
        ("cn-beijing", "https://dashscope.aliyuncs.com/api/v1"),
        ("singapore", "https://dashscope-intl.aliyuncs.com/api/v1"),
        ("intl", "https://dashscope-intl.aliyuncs.com/api/v1"),
        ("virginia", "https://dashscope-us.aliyuncs.com/api/v1"),
        ("us", "https://dashscope-us.aliyuncs.com/api/v1"),
    ],
)
def test_a_region_has_its_host(region: str, base_url: str) -> None:
    assert DashScope(region).base_url == base_url


def test_the_error_for_an_unknown_region_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown region 'mars'; known are beijing, singapore, virginia"):
        DashScope("mars")


def test_a_workspace_may_have_its_own_host() -> None:
    provider = DashScope("singapore", workspace="llm-abc", workspace_host=True)

    assert provider.base_url == "https://llm-abc.ap-southeast-1.maas.aliyuncs.com/api/v1"
    assert (
        DashScope("singapore", workspace="llm-abc").base_url == "https://dashscope-intl.aliyuncs.com/api/v1"
    )


@pytest.mark.parametrize("workspace", [None, "", "evil.example/x", "a.b"])
def test_a_workspaces_host_needs_its_id(workspace: str | None) -> None:
    with pytest.raises(ValueError, match="workspace_host needs workspace="):
        DashScope(workspace=workspace, workspace_host=True)


def test_the_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", "http://127.0.0.1:2/api/v1")
    assert DashScope("us").base_url == "http://127.0.0.1:2/api/v1"

    monkeypatch.setenv("DASHSCOPE_BASE_URL", "http://127.0.0.1:1/api/v1/")
    assert DashScope("us").base_url == "http://127.0.0.1:1/api/v1"

    monkeypatch.setenv("DASHSCOPE_BASE_URL", "  ")
    assert DashScope("us").base_url == "http://127.0.0.1:2/api/v1"
    assert DashScope(base_url="http://127.0.0.1:3").base_url == "http://127.0.0.1:3"

    monkeypatch.setenv("DIEYUYUN_BASE_URL", "http://127.0.0.1:4/")
    assert Dieyuyun().base_url == "http://127.0.0.1:4"
    assert Dieyuyun("http://127.0.0.1:5//").base_url == "http://127.0.0.1:5"


def test_the_environment_is_read_when_the_provider_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Dieyuyun()

    monkeypatch.setenv("DIEYUYUN_BASE_URL", "http://127.0.0.1:4")

    assert provider.base_url == "https://open.dieyuyun.com"


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "https://",
        "https:///v1",
        "https://example.com/v1?x=1",
        "https://example.com/v1#x",
        "https://example.com/v 1",
        "https://example.com\\@evil.example",
        "https://example.com/\n",
        "https://example.com:99999",
        "https://example.com:0",
        "https://[broken",
    ],
)
def test_what_is_no_base_url_is_refused(base_url: str) -> None:
    for make in (DashScope, Dieyuyun):
        with pytest.raises(ValueError, match="base_url must"):
            make(base_url=base_url)


def test_a_password_in_a_base_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="must not hold a user or password") as caught:
        Dieyuyun("https://user:hunter2@example.com")

    assert "hunter2" not in str(caught.value)


def test_a_bad_base_url_of_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_BASE_URL", "nonsense")

    with pytest.raises(ValueError, match=r"\$DASHSCOPE_BASE_URL must be a URL"):
        DashScope()


def test_a_base_url_is_text() -> None:
    with pytest.raises(TypeError, match="base_url must be a str, not int"):
        Dieyuyun(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "paths",
    [
        {"query_path": "/tasks"},
        {"query_path": "tasks/{id}"},
        {"query_path": "/tasks/{id}/{id}"},
        {"cancel_path": "/tasks/cancel"},
        {"query_path": 7},
        {"query_path": "//evil.example/{id}"},
        {"query_path": "/../tasks/{id}"},
        {"query_path": "/tasks/{id}#x"},
        {"cancel_path": "/tasks/%2e%2e/{id}"},
    ],
)
def test_a_path_for_a_task_has_its_place_for_the_id(paths: dict[str, Any]) -> None:
    for make in (DashScope, Dieyuyun):
        with pytest.raises(ValueError, match="must be a path that has"):
            make(**paths)


def test_a_path_for_all_tasks_has_none() -> None:
    with pytest.raises(ValueError, match='list_path must be a path, like "/tasks", not'):
        DashScope(list_path="/tasks/{id}")
    with pytest.raises(ValueError, match="image_path must be a path"):
        Dieyuyun(image_path="v1/images")


@pytest.mark.parametrize("make", [DashScope, Dieyuyun])
def test_a_provider_is_a_frozen_value(make: type[DashScope | Dieyuyun]) -> None:
    provider = make()

    assert provider == make()
    assert hash(provider) == hash(make())
    with pytest.raises(AttributeError):
        provider.base_url = "http://elsewhere"  # type: ignore[misc]
