"""`bide demo`: 18 tasks from submission to saved file, on this machine, at no cost.

`command.run` receives a folder and a speed. It saves files, prints a table on standard output and returns an exit
status. `measure` runs the tasks at an emulator of its own, and returns figures from the emulator's counters.
"""
