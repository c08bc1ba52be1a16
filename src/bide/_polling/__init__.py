"""When tasks are polled, and what the answers mean.

What enters: each accepted task of the client (`Poller.watch`). What leaves: status queries and lists, within the
account's query rate; new states and the durations of ended tasks, for the ledger; new snapshots and errors, for the
submissions.
"""
