"""`bide demo`: 18 tasks from submission to saved file, on this machine, at no cost.

A folder and a speed enter (`command.run`). `measure` runs the tasks at an emulator of its own and returns figures, from
the emulator's own counters. Files, a table on standard output and an exit status leave.
"""
