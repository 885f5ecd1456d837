"""Programs that run inside containers: plain Python 3.8 and its standard library, nothing of this project imported."""
