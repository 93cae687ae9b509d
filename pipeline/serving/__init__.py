"""From a trained checkpoint to recommendations: in Python, as a folder that runs without this project, and over HTTP."""
