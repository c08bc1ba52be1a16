"""Plain HTTP callers of the emulator: they know the documents and nothing of bide."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from bide.emulator import Emulator

IMAGES = "/services/aigc/text2image/image-synthesis"
IMAGES_26 = "/services/aigc/image-generation/generation"
VIDEOS = "/services/aigc/video-generation/video-synthesis"


class Caller(httpx.AsyncClient):
    """An HTTP client with a key, which follows the emulator's virtual time without a timeout of its own."""

    def __init__(self, base_url: str, key: str | None = "sk-one", **headers: str) -> None:
        auth = {} if key is None else {"Authorization": f"Bearer {key}"}
        super().__init__(base_url=base_url, headers={**auth, **headers}, timeout=None, trust_env=False)


class DieyuyunCaller(Caller):
    def __init__(self, emulator: Emulator, key: str | None = "sk-one") -> None:
        super().__init__(emulator.dieyuyun_url, key)

    async def create(self, prompt: str = "a cat", *, kind: str = "images", **fields: Any) -> httpx.Response:
        body = {"model": "gpt-image-2", "prompt": prompt, "async": True, **fields}
        return await self.post(f"/v1/{kind}/generations", json=body)

    async def created(self, prompt: str = "a cat", **fields: Any) -> str:
        return str((await self.create(prompt, **fields)).json()["id"])

    async def task(self, task_id: str) -> dict[str, Any]:
        return dict((await self.get(f"/v1/tasks/{task_id}")).json())

    async def cancel(self, task_id: str) -> httpx.Response:
        return await self.post(f"/v1/tasks/{task_id}/cancel")


class DashScopeCaller(Caller):
    def __init__(self, emulator: Emulator, key: str | None = "sk-one") -> None:
        super().__init__(emulator.dashscope_url, key, **{"X-DashScope-Async": "enable"})

    async def create(self, prompt: str = "a cat", *, path: str = IMAGES, **parameters: Any) -> httpx.Response:
        given: dict[str, Any] = {"prompt": prompt}
        if path == IMAGES_26:
            given = {"messages": [{"role": "user", "content": [{"text": prompt}]}]}
        body = {"model": "wan2.2-t2i-flash", "input": given, "parameters": parameters}
        return await self.post(path, json=body)

    async def created(self, prompt: str = "a cat", **parameters: Any) -> str:
        return str((await self.create(prompt, **parameters)).json()["output"]["task_id"])

    async def task(self, task_id: str) -> dict[str, Any]:
        return dict((await self.get(f"/tasks/{task_id}")).json())

    async def output(self, task_id: str) -> dict[str, Any]:
        return dict((await self.task(task_id))["output"])

    async def cancel(self, task_id: str) -> httpx.Response:
        return await self.post(f"/tasks/{task_id}/cancel")


async def until(moment: float) -> None:
    """Sleep until the loop's clock shows *moment*."""
    await asyncio.sleep(moment - asyncio.get_running_loop().time())
