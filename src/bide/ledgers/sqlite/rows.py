"""Records as rows of the table `records`, and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
from attrs import evolve

from bide import _outside
from bide.ledgers._records import Record
from bide.models import Billing, SavedFile, Task, TaskStatus

if TYPE_CHECKING:
    from bide.models import Request

DAY_SECONDS = 24 * 3600.0
LONGEST_RAW_CHARACTERS = 64 * 1024
"""A longer answer of a service (one with inline files) is not stored beside its results."""

PLAIN_COLUMNS = (
    *("sequence", "ticket", "version", "origin", "kind", "digest"),
    *("owner", "admitted", "slot_for", "slot_until", "cancel_taken", "attempt"),
)
FLAG_COLUMNS = ("cancelling", "followed", "guessed")
COLUMNS = (
    *PLAIN_COLUMNS,
    *FLAG_COLUMNS,
    *(
        "lane",
        "keys",
        "wanted_by",
        "added_at",
        "sent_at",
        "files",
        "status",
        "model",
        "task_id",
        "is_open",
        "held",
        "task",
    ),
)
LOSS_COLUMNS = ("first_loss", "last_loss")
SELECT = f"SELECT {', '.join(COLUMNS)} FROM records"  # noqa: S608 - our own names
_WAITING = "status = 'waiting' AND owner IS NOT NULL AND origin = ? AND kind = ?"
_FILE = tuple(each.name for each in attrs.fields(SavedFile))


def oldest_waiting(select: str) -> str:
    """The query for the oldest waiting record of each owner and set of keys. Its parameters: origin and kind, three
    times.

    Args:
        select: what to return of the records, as "SELECT ... FROM records".
    """
    # As many steps in the index as there are owners and sets, however long the queue is.
    first = f"SELECT sequence FROM records WHERE {_WAITING}"  # noqa: S608 - our own names
    return f"""
        WITH RECURSIVE heads (sequence) AS (
            SELECT ({first} ORDER BY keys, owner, sequence LIMIT 1)
            UNION ALL
            SELECT coalesce(
                ({first} AND keys = last.keys AND owner > last.owner ORDER BY owner, sequence LIMIT 1),
                ({first} AND keys > last.keys ORDER BY keys, owner, sequence LIMIT 1)
            )
            FROM heads JOIN records AS last ON last.sequence = heads.sequence
        )
        {select} WHERE sequence IN (SELECT sequence FROM heads)
    """  # noqa: S608 - our own names


def row_of(record: Record, now: float, *, prompts: bool) -> dict[str, Any]:
    """The whole row of a new record."""
    row = {name: getattr(record, name) for name in PLAIN_COLUMNS}
    row["sequence"] = record.sequence or None
    row |= {name: 1 if getattr(record, name) else None for name in FLAG_COLUMNS}
    row["lane"] = record.key  # the column keeps the name that it had before
    row["keys"] = ",".join(sorted(record.keys))
    row["wanted_by"] = ",".join(record.wanted_by)
    row["added_at"], row["sent_at"] = text_of(record.added_at), text_of(record.sent_at)
    row["files"] = _files_text(record)
    row["status"], row["model"], row["task_id"] = (
        record.task.status.value,
        record.task.model,
        record.task.task_id,
    )
    row["is_open"], row["held"] = _is_open(record), _is_held(record, now)
    row["task"] = task_text(record, prompts=prompts)
    return row | losses(record)


def changed_columns(before: Record, after: Record, now: float, *, prompts: bool) -> dict[str, Any]:
    """The columns that have changed. A record's ticket, service, kind and request never change."""
    changed = {
        name: value
        for name in ("owner", "admitted", "slot_for", "slot_until", "cancel_taken", "version")
        if (value := getattr(after, name)) != getattr(before, name)
    }
    if after.key != before.key:
        changed["lane"] = after.key
    if after.sent_at is not before.sent_at:
        changed["sent_at"] = text_of(after.sent_at)
    if after.keys != before.keys:
        changed["keys"] = ",".join(sorted(after.keys))
    if after.wanted_by != before.wanted_by:
        changed["wanted_by"] = ",".join(after.wanted_by)
    if after.files is not before.files:
        changed["files"] = _files_text(after)
    for name in FLAG_COLUMNS:
        if getattr(after, name) != getattr(before, name):
            changed[name] = 1 if getattr(after, name) else None
    if after.task is not before.task:
        changed |= _task_changes(before, after, now)
        if not (_is_plain(before.task) and _is_plain(after.task)):
            changed["task"] = task_text(after, prompts=prompts)
    if "files" in changed or "status" in changed:
        changed |= losses(after)
    return changed


def _task_changes(before: Record, after: Record, now: float) -> dict[str, Any]:
    old, new = before.task, after.task
    changed: dict[str, Any] = {}
    for name in ("model", "task_id"):
        if getattr(new, name) != getattr(old, name):
            changed[name] = getattr(new, name)
    if new.status is not old.status:
        changed["status"] = new.status.value
        changed["held"] = _is_held(after, now)
        if new.status.is_final is not old.status.is_final:
            changed["is_open"] = _is_open(after)
            # A record whose outcome is unknown is kept at least while it uses its slot.
            hold = max(0.0, after.slot_until - now) if new.status is TaskStatus.UNKNOWN else 0.0
            changed["clean_at"] = expiry(new) + hold if new.status.is_final else None
            changed["blanked"] = None
    return changed


def task_text(record: Record, *, prompts: bool) -> str | None:
    """The snapshot as JSON; None if the columns hold all of it. Without *prompts*, it leaves out what echoes them."""
    task = record.task
    if _is_plain(task):
        return None
    plain = task.to_dict()
    raw = plain.pop("raw")
    if not prompts:
        for output in plain["outputs"]:
            output["revised_prompt"] = None
        # A refusal can quote the prompt.
        prompt = getattr(record.request, "prompt", None)
        for error in filter(None, [plain["error"], *(output["error"] for output in plain["outputs"])]):
            for name in ("message", "text"):
                error[name] = error[name].replace(prompt, "…") if prompt and error[name] else error[name]
    del plain["ticket"], plain["status"], plain["eta"]  # an eta is true for a moment only
    text = json.dumps({name: value for name, value in plain.items() if value not in (None, ())})
    if raw is not None and prompts:
        raw_text = json.dumps(raw)
        if len(raw_text) <= LONGEST_RAW_CHARACTERS:
            text = f'{text[:-1]}, "raw": {raw_text}}}'
    return text


def record_of(row: tuple[Any, ...], request: Request | None) -> Record:
    """The record of a row, whose columns are `COLUMNS`."""
    values = dict(zip(COLUMNS, row, strict=True))
    ticket, status = values["ticket"], TaskStatus(values["status"])
    if values["task"] is None:
        task = Task(ticket=ticket, status=status, model=values["model"], billing=Billing.NONE)
    else:
        task = Task.from_dict({**json.loads(values["task"]), "ticket": ticket, "status": status})
    return Record(
        **{name: values[name] for name in PLAIN_COLUMNS},
        request=request,
        key=values["lane"],
        keys=frozenset(filter(None, values["keys"].split(","))),
        wanted_by=tuple(filter(None, values["wanted_by"].split(","))),
        task=task,
        added_at=_moment(values["added_at"]),
        sent_at=_moment(values["sent_at"]),
        cancelling=bool(values["cancelling"]),
        followed=bool(values["followed"]),
        guessed=bool(values["guessed"]),
        files=tuple(_file_of(each) for each in json.loads(values["files"] or "[]")),
    )


def _file_of(plain: dict[str, Any]) -> SavedFile:
    """The file that *plain* describes. Keys of later versions are ignored."""
    return SavedFile(**{name: plain[name] for name in _FILE if name in plain})


def losses(record: Record) -> dict[str, float | None]:
    """The columns with the moments at which unsaved results are lost."""
    moments = record.losses
    return dict(zip(LOSS_COLUMNS, (min(moments, default=None), max(moments, default=None)), strict=True))


def without_addresses(record: Record) -> Record:
    """*record* without addresses, which have expired, and without the raw answer that holds them too."""
    task = record.task
    outputs = tuple(evolve(each, url=None) for each in task.outputs)
    return evolve(record, task=evolve(task, outputs=outputs, raw=None))


def expiry(task: Task) -> float:
    """When the last of its addresses expires, by the wall clock; a day from now if the service does not say."""
    moments = [
        _outside.wall_time() + DAY_SECONDS if output.expires_at is None else output.expires_at.timestamp()
        for output in task.outputs
        if output.url is not None or output.expires_at is not None
    ]
    return max(moments, default=_outside.wall_time() + DAY_SECONDS)


def _is_plain(task: Task) -> bool:
    """Whether the columns hold all that is known of the task."""
    return task.status in (TaskStatus.WAITING, TaskStatus.SUBMITTING) and task.billing is Billing.NONE


def _is_open(record: Record) -> int | None:
    return None if record.task.status.is_final else 1


def _is_held(record: Record, now: float) -> int | None:
    """Whether it can use a slot; if so, it does until its `slot_until`."""
    held = record.key is not None and (not record.task.status.is_final or record.slot_until > now)
    return 1 if held else None


def _files_text(record: Record) -> str | None:
    return json.dumps([attrs.asdict(each) for each in record.files]) if record.files else None


def text_of(moment: datetime | None) -> str | None:
    """*moment* as the text of a column."""
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)
