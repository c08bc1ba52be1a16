"""The remote service, as one client may use it: its calls, and the account's query rate."""
