"""Execution traces in CWM's format: `records.py` says what they are, `tracer.py` records them, `text.py` writes and reads them."""
