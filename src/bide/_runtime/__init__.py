"""What works behind a client.

What enters: records of requests, the wishes of callers, and news of the ledger. What leaves: steps of the ledger, and
new snapshots and errors for the submissions. The submitter sends, the poller (`_polling`) watches, the canceller ends,
the saver (`_downloads`) saves, the wishes withdraw what no caller wants any more, and the takeover continues what other
clients have left.
"""
