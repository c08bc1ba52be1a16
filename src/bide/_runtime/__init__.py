"""What works behind a client.

In come records of requests, and news of the ledger about them. The submitter sends, the poller (`_polling`) watches,
the canceller ends, the saver (`_downloads`) saves, and the takeover goes on with what other clients have left. Out go
steps of the ledger, and new snapshots and errors to the submissions.
"""
