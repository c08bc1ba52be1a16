"""A deterministic simulation of clients, ledgers and a service, with misfortunes at every step: `make storm`.

Each host is a process of its own to the others: it has an event loop, a client and a ledger. One scheduler steps all
of them in one thread and in virtual time, so that one host can be stopped while the others go on. A seed names a
history, and replays exactly.
"""
