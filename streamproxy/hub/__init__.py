"""Streams: one generation's ordered frames, between the producer that writes them and the subscribers that follow.

    Stream.append / fail / finish     the producer's side
    Stream.subscribe -> Subscriber    a reader's side

The caller who asked is the first subscriber, from position 0. A frame is appended whole, its bytes are shared, and what
every subscriber has passed is let go of.
"""

from __future__ import annotations

from streamproxy.hub.stream import Opening, Stream, Subscriber

__all__ = ["Opening", "Stream", "Subscriber"]
