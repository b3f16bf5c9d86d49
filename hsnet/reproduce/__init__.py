"""The paper's tables: `python -m hsnet.reproduce`."""
