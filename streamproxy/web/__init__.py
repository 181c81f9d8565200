"""HTTP towards callers: the only Starlette code besides app.py."""
