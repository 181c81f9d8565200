"""What the proxy costs: per byte and per stream, beside nginx, HAProxy and a tutorial's relay in the same run; and per
viewer of a retained stream, on each store.

`python -m tests.bench` measures; see `__main__` for its flags. The provider and every peer are processes of their own,
the callers are in the main one, and so is the viewers' provider. Linux only: CPU time and memory of other processes are
read from the kernel.
"""
