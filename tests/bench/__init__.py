"""What the proxy costs per byte and per stream, beside nginx, HAProxy and a tutorial's relay in the same run.

`python -m tests.bench` measures; see `__main__` for its flags. The provider and every peer are processes of their own,
the callers are in the main one. `python -m tests.bench.viewers` measures what readers of retained streams cost, on each
store. Linux only: CPU time and memory of other processes are read from the kernel.
"""
