"""What the tests share: a clock, emulated and hostile services, other processes, and short names.

Each module says in its first line what it is about. Nothing here is a test.
"""
