"""Plain English: the words of tools/words.toml stand neither in the package nor in what is written about it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
WORDS: dict[str, str] = tomllib.loads((ROOT / "tools" / "words.toml").read_text("utf-8"))["words"]
PATTERNS = {
    # A name such as `_told_all` or `Told` has the word too: only letters make it another one.
    re.compile(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", re.IGNORECASE): replacement
    for word, replacement in WORDS.items()
}
FILES = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
NOT_LIKE_THIS = "- not: "
"""How a line of CONTRIBUTING.md starts that shows what not to write."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_reader_decodes_no_words(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word!r}: write {replacement}"
        for number, line in lines_to_check(path)
        for word, replacement in words_to_decode(line)
    ]

    assert not found, "\n" + "\n".join(found)


def lines_to_check(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file by their numbers."""
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if path.name == "CHANGELOG.md":
            yield number, re.sub(r"`[^`]*`", "", line)  # the changelog names what was renamed
        elif not (path.name == "CONTRIBUTING.md" and line.startswith(NOT_LIKE_THIS)):
            yield number, line


def words_to_decode(line: str) -> Iterator[tuple[str, str]]:
    """The listed words in *line*, each with what to write in its place."""
    for pattern, replacement in PATTERNS.items():
        for match in pattern.finditer(line):
            yield match[0], replacement


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Whoever waits is told", ["Whoever", "told"]),
        ("def _told_all(): ...", ["told"]),
        ("class Turnstile:", ["Turnstile"]),
        ("look_at, looked, LOOKS", ["look", "looked", "LOOKS"]),
        ("look up, look_up, look-up, lookup, LookupError, looks like, looking for", []),
        ("there, here, bestow, retold, tell, interest, outlook, overlooked", []),
        ("for good reasons", []),
    ],
)
def test_the_words_are_found_where_they_stand_alone(line: str, words: list[str]) -> None:
    assert sorted(word for word, _ in words_to_decode(line)) == sorted(words)
