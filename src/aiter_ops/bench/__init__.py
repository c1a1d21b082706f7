"""Timing of implementations side by side, as shares of what the machine's memory can do."""
