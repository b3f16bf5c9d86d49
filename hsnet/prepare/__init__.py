"""Downloads, masks and their verification: `python -m hsnet.prepare`."""
