"""Other clients at the same work: each as its documentation tells its users to use it, with its own defaults.

A module for each; `stubs` holds the services that they ask, `race` runs them beside each other.
"""
