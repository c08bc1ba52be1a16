"""What works behind a client.

What enters: records of requests, the wishes of callers, and news of the ledger. What leaves: steps of the ledger, and
new snapshots and errors for the submissions. The submitter sends requests, the poller (`_polling`) polls their tasks,
the canceller cancels them, and the saver (`_downloads`) saves results. The wishes withdraw requests that no caller
wants any more. The takeover continues the submissions that other clients have left.
"""
