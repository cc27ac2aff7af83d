"""Other systems, each in a process of its own, to be timed beside this library."""
