"""What is watched around a loop of the user's: the signals, and what the loop's names hold.

What may live here:

- what looks at the process or at the frame of a loop. Nothing here knows a run or its folder.
- it says what it saw; what follows from that is decided by who asked.
"""
