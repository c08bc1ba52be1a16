"""Other clients at the same work: each as its documentation recommends. Most run with their own defaults.

There is a module for each. `stubs` holds the services that they call, `race` runs them beside each other.
"""
