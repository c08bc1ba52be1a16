"""Other clients at the same work: each as its documentation recommends, with its own defaults.

There is a module for each. `stubs` holds the services that they call, `race` runs them beside each other.
"""
