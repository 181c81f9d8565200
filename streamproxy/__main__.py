"""`python -m streamproxy`: the same as the command `streamproxy`."""

from __future__ import annotations

from streamproxy.cli import main

if __name__ == "__main__":
    main()
