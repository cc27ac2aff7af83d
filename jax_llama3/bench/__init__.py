"""Timing, against the limits of the machine and beside other systems."""
