"""From the options of `bide emulator` to the limits of its services."""

from __future__ import annotations

from bide.cli._emulator import limits_by_service


def test_the_documented_limits_hold_by_default() -> None:
    limits = limits_by_service(documented=True, images=None, videos=None, queries_per_second=None)

    dashscope, dieyuyun = limits["dashscope_limits"], limits["dieyuyun_limits"]
    assert (dashscope.in_flight("video"), dashscope.creates("image"), dashscope.queries_per_second) == (
        3,
        30,
        20,
    )
    assert (dieyuyun.in_flight("video"), dieyuyun.creates("image"), dieyuyun.queries_per_second) == (
        None,
        None,
        None,
    )


def test_they_can_be_lifted() -> None:
    limits = limits_by_service(documented=False, images=None, videos=None, queries_per_second=None)

    assert limits["dashscope_limits"].in_flight("video") is None
    assert limits["dashscope_limits"].queries_per_second is None


def test_a_figure_holds_on_both_services_and_leaves_the_others_alone() -> None:
    limits = limits_by_service(documented=True, images=2, videos=None, queries_per_second=5)

    assert [each.in_flight("image") for each in limits.values()] == [2, 2]
    assert [each.in_flight("video") for each in limits.values()] == [None, 3]
    assert [each.queries_per_second for each in limits.values()] == [5, 5]
