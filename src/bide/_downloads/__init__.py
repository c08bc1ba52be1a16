"""Results on disk: which, when, and each whole or not at all."""
