"""Saves result files to disk, each complete or not at all.

What enters: snapshots of succeeded tasks and the addresses of their outputs, from `Client.save`, from `TaskHandle.save`
and from the engine (`Client(save_to=...)`). What leaves: `SavedFile` values, their entries in the ledger's records, and
the events saving, saved and unsaved. `saver` decides which results are saved and when, `downloader` limits how many at
once, `download` fetches one file, `part_file` keeps its bytes across cuts and crashes.
"""
