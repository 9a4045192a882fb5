"""Holds models against real pictures and each other, every figure with its protocol (paper sections 5.1 and 6).

Reads bundles or checkpoints, and a built sticker set or captions with their pictures; writes each model's pictures and
figures, and a report of all of them, for machines (report.json) and for people (report.html, pairs.html). It is the
only place that knows judge B.
"""
