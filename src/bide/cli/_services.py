"""The service that a command uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, TypeAlias

from bide import DashScope, Dieyuyun

if TYPE_CHECKING:
    from bide import Provider

ServiceName: TypeAlias = Literal["dieyuyun", "dashscope"]

EXAMPLES = {
    ("dieyuyun", "image"): "gpt-image-2",
    ("dashscope", "image"): "wan2.5-t2i-preview",
    ("dashscope", "video"): "wan2.6-t2v",
}
"""Models that the documents of the services name."""


class NoKeyError(ValueError):
    """No API key is set."""


def choose_provider(name: ServiceName | None) -> Provider:
    """The service of that *name*; None is the one whose key is in the environment.

    Raises:
        NoKeyError: no key is set.
        ValueError: keys of both services are set, and *name* is None.
    """
    known: dict[str, Provider] = {"dieyuyun": Dieyuyun(), "dashscope": DashScope()}
    with_key = [each for each, provider in known.items() if any(map(os.environ.get, provider.key_variables))]
    if name is None and len(with_key) > 1:
        raise ValueError("keys of both services are set: choose --provider dieyuyun or --provider dashscope")
    chosen = name or (with_key[0] if with_key else None)
    if chosen is None or chosen not in with_key:
        missing = known.values() if chosen is None else [known[chosen]]
        variables = " or ".join(f"${provider.key_variables[0]}" for provider in missing)
        raise NoKeyError(f"no API key: set {variables}")
    return known[chosen]


def require_model(model: str | None, provider: Provider, kind: str) -> str:
    """*model*, which the user has to name.

    Raises:
        ValueError: it is None.
    """
    if model is not None:
        return model
    example = EXAMPLES.get((provider.name, kind), "NAME, as the documents of the service give it")
    raise ValueError(f"name the model, since it sets the price: --model {example}")
