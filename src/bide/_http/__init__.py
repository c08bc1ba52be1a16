"""Everything that speaks HTTP: calls to the API, and files from wherever they are kept."""
