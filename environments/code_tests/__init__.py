"""Candidate code against tests: what a test is, and the boxes that run it. `runner.py` is the entrance.

Expected values and comparisons never enter the process of the candidate. What comes back from it is data: strict tagged JSON
(`values.py`), whatever the candidate did to its process.
"""
