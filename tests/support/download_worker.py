"""A process that saves one result: the one of a ticket on a ledger, because it is asked to or by itself."""

from __future__ import annotations

import asyncio
import json
import sys

from bide import Client, DashScope
from bide.ledgers import SQLiteLedger


async def main(url: str, key: str, database: str, folder: str, ticket: str, how: str) -> None:
    save_to = folder if how == "by itself" else None
    async with Client(
        DashScope(base_url=url), api_key=key, ledger=SQLiteLedger(database), save_to=save_to
    ) as client:
        if how == "asked":
            handle = await client.attach(ticket=ticket)
            await handle.save(folder)
        else:
            await asyncio.sleep(0.2)  # it looks for what others have left as soon as it begins
    async with SQLiteLedger(database) as ledger:
        record = await ledger.get(ticket)
    assert record is not None
    print(json.dumps([[file.path, file.size, file.sha256] for file in record.files]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
