"""When tasks are polled, and what the answers mean.

In comes each accepted task of the client (`Poller.watch`). Out go status queries and lists, within the account's query
rate; new states to the ledger, new snapshots and errors to the submissions, and durations of ended tasks to the ledger.
"""
