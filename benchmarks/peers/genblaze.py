"""`genblaze-core`: `Pipeline.abatch_run` with `max_concurrency`, which keeps so many jobs under way and no more.

The caller has to know how many. The package brings no provider whose address can be set; the one here is written as
its documents ask: submit, poll, fetch, and for each fault the code that decides whether it is tried again. It polls
every second, the default. Its other settings are the most patient ones, so what is refused is repeated after
`Retry-After`. Where the service keeps idempotency keys the provider sends them, and a submit without an answer is
repeated with the same key. Where it does not, such a submit is not repeated, since that could make a second task.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx

from peers.race import Entry
from peers.stubs import RunwayTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from peers.stubs import Terms

PATIENCE = 600.0
"""Seconds that one job may take."""
TRIES = 1000
"""So many times it tries a call, and a job, at most: the time is what limits it."""


@asynccontextmanager
async def batched(terms: Terms) -> AsyncIterator[Entry]:
    """Its own way to run many and wait."""
    from genblaze_core import Modality, Pipeline

    logging.getLogger("genblaze").setLevel(logging.CRITICAL)
    async with RunwayTasks(terms) as stub:
        with httpx.Client(base_url=stub.origin, trust_env=False) as http:
            pipeline = Pipeline("bench").step(
                _provider(http, keys=terms.keeps_keys), model="gen4.5", prompt="", modality=Modality.VIDEO
            )

            async def make_all(prompts: list[str], finished: Callable[[], None]) -> None:
                await pipeline.abatch_run(
                    prompts,
                    max_concurrency=terms.slots,
                    max_retries=TRIES,
                    timeout=PATIENCE,
                    raise_on_failure=False,
                    on_progress=lambda _: None,  # or it draws on the terminal
                    on_step_complete=lambda event: finished() if event.step.status == "succeeded" else None,
                )

            async def make(prompt: str) -> None:
                await make_all([prompt], lambda: None)

            yield Entry(make, stub.counts, make_all)


def _provider(http: httpx.Client, *, keys: bool) -> Any:
    """A provider for Runway's protocol. Made here, because its base class is imported only when it is asked for."""
    from genblaze_core.exceptions import ProviderError
    from genblaze_core.models.asset import Asset
    from genblaze_core.models.enums import ProviderErrorCode as Code
    from genblaze_core.providers import BaseProvider, RetryPolicy
    from genblaze_core.providers.retry import PRE_RESPONSE_EXCEPTIONS, retry_after_from_response

    def ask(method: str, path: str, *, repeats: bool, **options: Any) -> dict[str, Any]:
        """The answer's JSON. *repeats* says whether a call without an answer may be made again."""
        try:
            answer = http.request(method, path, **options)
        except httpx.TransportError as fault:
            if method == "POST" and isinstance(fault, PRE_RESPONSE_EXCEPTIONS):
                raise  # the package repeats these
            code = Code.SERVER_ERROR if repeats else Code.UNKNOWN
            raise ProviderError(f"no answer: {fault!r}", error_code=code) from fault
        if answer.status_code == 429:
            pause = retry_after_from_response(answer)
            raise ProviderError("refused", error_code=Code.RATE_LIMIT, retry_after=pause)
        if answer.status_code >= 500:
            raise ProviderError("later", error_code=Code.SERVER_ERROR if repeats else Code.UNKNOWN)
        body: dict[str, Any] = answer.raise_for_status().json()
        return body

    class Provider(BaseProvider):
        name = "bench"
        IDEMPOTENCY_HEADER_NAME = "Idempotency-Key" if keys else None

        def submit(self, step: Any, config: Any = None) -> str:  # noqa: ARG002 - the package's signature
            request = {"model": step.model, "promptText": step.prompt, "ratio": "1280:720", "duration": 5}
            headers = self._inject_idempotency_header({}, step)
            made = ask("POST", "/v1/text_to_video", repeats=keys, json=request, headers=headers)
            return str(made["id"])

        def poll(self, prediction_id: Any, config: Any = None) -> bool:  # noqa: ARG002 - the package's signature
            task = ask("GET", f"/v1/tasks/{prediction_id}", repeats=True)
            self._cache_poll_result(prediction_id, task)
            return bool(task["status"] == "SUCCEEDED")

        def fetch_output(self, prediction_id: Any, step: Any) -> Any:
            task = self._get_cached_poll_result(prediction_id)
            if task is None:
                task = ask("GET", f"/v1/tasks/{prediction_id}", repeats=True)
            step.assets = [Asset(url=url, media_type="video/mp4") for url in task["output"]]
            return step

    return Provider(retry_policy=RetryPolicy(max_attempts=TRIES, max_backoff_sec=5.0))
