"""Evolves a smaller UNet under a budget (paper sections 3.1-3.2, Eq. 4-5, Algorithm 1, Table 3).

Reads a checkpoint, a latency table and a built sticker set; writes a checkpoint for every budget, the history of the
search round by round, and the path of quality against milliseconds.
"""
