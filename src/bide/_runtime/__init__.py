"""What works behind a client.

These parts receive the records of requests, and the ledger's news about them. The submitter sends requests. The poller
(`_polling`) polls tasks. The canceller cancels them. The saver (`_downloads`) saves their files. The takeover continues
what other clients have left. The parts call the ledger, and pass new snapshots and errors to the submissions.
"""
