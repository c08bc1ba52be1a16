"""The remote service as one client may use it.

In come a record to create, or the id of a task to query, cancel or find in the list. Out goes one call by the adapter,
with the key that made the task and within the account's query rate; back comes the adapter's outcome.
"""
