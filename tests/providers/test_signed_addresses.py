"""When the signature in a result's URL expires, in the forms of the storage services' documents."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bide.providers._replies import file_output, signature_end

SIGNED, ENDS = datetime(2026, 7, 22, 9, 40, tzinfo=UTC), datetime(2026, 7, 22, 10, 40, tzinfo=UTC)
EPOCH = int(ENDS.timestamp())
WRITTEN = "20260722T094000Z"
PAST = datetime(2009, 2, 10, tzinfo=UTC)

SIGNED_QUERIES = {
    "OSS, S3, OBS": f"OSSAccessKeyId=a&Expires={EPOCH}&Signature=s%3D",
    "CloudFront": f"Expires={EPOCH}&Signature=s~&Key-Pair-Id=K",
    "GCS, second version": f"GoogleAccessId=a%40b&Expires={EPOCH}&Signature=s",
    "OSS": f"x-oss-credential=a%2Fb&x-oss-date={WRITTEN}&x-oss-expires=3600&x-oss-signature=s",
    "S3": f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={WRITTEN}&X-Amz-Expires=3600&X-Amz-Signature=s",
    "GCS": f"X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Date={WRITTEN}&X-Goog-Expires=3600&X-Goog-Signature=s",
    "TOS": f"X-Tos-Algorithm=TOS4-HMAC-SHA256&X-Tos-Date={WRITTEN}&X-Tos-Expires=3600&X-Tos-Signature=s",
    "COS": f"q-sign-algorithm=sha1&q-sign-time=1784709600;{EPOCH}&q-key-time=1784709600;{EPOCH}&q-signature=s",
    "COS, quoted": f"q-sign-time=1784709600%3B{EPOCH}",
    "COS, the key": f"q-key-time=1784709600;{EPOCH}",
    "Azure": "sv=2022-11-02&st=2026-07-22T09%3A40%3A00Z&se=2026-07-22T10%3A40%3A00Z&sr=b&sp=r&sig=s%3D",
    "Azure, minutes": "se=2026-07-22T10:40Z&sig=s",
    "Azure, a zone": "se=2026-07-22T18%3A40%3A00%2B08%3A00&sig=s",
    "Azure, fractions": "se=2026-07-22T10%3A40%3A00.0000000Z&sig=s",
    "Kodo": f"e={EPOCH}&token=ak:s%3D",
    "in any case": f"EXPIRES={EPOCH}",
    "in any case, dated": f"x-tos-DATE={WRITTEN}&X-TOS-EXPIRES=3600",
    "in any case, counted": f"Q-Sign-Time=1;{EPOCH}",
    "in any case, written": "SE=2026-07-22T10:40Z&SIG=s",
    "the first of two": f"Expires={EPOCH + 60}&X-Amz-Date={WRITTEN}&X-Amz-Expires=3600",
    "the first of two, the other way": f"Expires={EPOCH}&X-Amz-Date={WRITTEN}&X-Amz-Expires=3601",
    "the key ends before the signature": f"q-sign-time=1;{EPOCH + 60}&q-key-time=1;{EPOCH}",
    "one that makes sense": f"Expires=never&X-Goog-Date=never&X-Goog-Expires=1&e={EPOCH}&token=t&q-sign-time=;",
}


@pytest.mark.parametrize("query", SIGNED_QUERIES.values(), ids=SIGNED_QUERIES)
def test_a_signature_says_when_it_expires(query: str) -> None:
    assert signature_end(f"https://h/a.png?{query}") == ENDS


@pytest.mark.parametrize(
    "query",
    [
        f"Expires={int(PAST.timestamp())}",
        "X-Tos-Date=20090209T000000Z&X-Tos-Expires=86400",
        f"q-sign-time=1;{int(PAST.timestamp())}",
        "st=2009-02-09&se=2009-02-10&sig=s",
        f"e={int(PAST.timestamp())}&token=t",
    ],
)
def test_a_time_in_the_past_is_returned(query: str) -> None:
    assert signature_end(f"https://h/a.png?{query}") == PAST


@pytest.mark.parametrize(
    "query",
    [
        "",
        "a=1&b",
        "Expires=",
        "Expires=-1",
        "Expires=1e400",
        "Expires=3600",
        "X-Amz-Expires=3600",
        f"X-Amz-Date={WRITTEN}",
        f"X-Amz-Date={WRITTEN}&X-Goog-Expires=3600",
        f"X-Tos-Date={WRITTEN}&X-Tos-Expires=-1",
        f"X-Tos-Date={WRITTEN}&X-Tos-Expires=1e300",
        "X-Oss-Date=20269999T999999Z&X-Oss-Expires=60",
        f"q-sign-time={EPOCH}",
        f"q-sign-time={EPOCH};",
        f"q-sign-time=1;{EPOCH};{EPOCH}",
        f"q-sign-time=1;{WRITTEN}",
        f"e={EPOCH}",
        f"token={EPOCH}",
        "e=2026-07-22&token=t",
        "se=2026-07-22T10:40Z",
        f"se={EPOCH}&sig=s",
        "se=tomorrow&sig=s",
        "sig=s",
    ],
)
def test_what_is_no_signature_has_no_end(query: str) -> None:
    assert signature_end(f"https://h/a.png?{query}") is None


def test_the_signature_counts_before_what_the_service_says() -> None:
    url = f"https://h/a.png?e={EPOCH}&token=t"

    assert file_output(url, "image", expires_at=SIGNED).expires_at == ENDS
    assert file_output("https://h/a.png", "image", expires_at=SIGNED).expires_at == SIGNED


NAMES = st.sampled_from(
    ["Expires", "se", "sig", "e", "token", "q-sign-time", "Q-KEY-TIME"]
    + [f"X-{family}-{word}" for family in ("Oss", "Amz", "goog", "TOS") for word in ("Date", "Expires")]
)
VALUES = st.one_of(
    st.sampled_from(
        ["", ";", WRITTEN, str(EPOCH), f"1;{EPOCH}", "nan", "-inf", "1e308", "0001-01-01", "9" * 400]
    ),
    st.integers().map(str),
    st.datetimes().map(str),
    st.text(max_size=20),
)


@pytest.mark.no_cover  # tracing slows it, and other tests run the same lines
@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=6), st.text(max_size=10))
@example([("X-Amz-Date", "9999-12-31T23:59:59Z", False), ("X-Amz-Expires", "86400", False)], "")
@example([("se", "0001-01-01T00:00:00+23:59", True), ("sig", "", False)], "")
def test_no_url_makes_it_raise(fields: list[tuple[str, str, bool]], rest: str) -> None:
    query = "&".join(f"{name}={quote(value) if quoted else value}" for name, value, quoted in fields)

    found = [
        signature_end(f"https://h/a?{query}{rest}"),
        signature_end(f"{rest}?{query}"),
        signature_end(rest),
    ]

    assert all(each is None or (each.tzinfo is UTC and 2000 <= each.year <= 2200) for each in found)


@pytest.mark.parametrize(
    "url", ["https://[", "https://[::1", "//[x]?Expires=1", "", "?", "\0", "https://h:99999/?e=1"]
)
def test_what_is_no_url_has_no_end(url: str) -> None:
    assert signature_end(url) is None
