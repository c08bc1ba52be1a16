"""The remote service as one client may use it.

What enters: a record to create, or the id of a task to query, to cancel or to find in the list. What leaves: one call
that the adapter has made, sent with the key of the task and within the account's query rate. The caller gets the
adapter's outcome.
"""
