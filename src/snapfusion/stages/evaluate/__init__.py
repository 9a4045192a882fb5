"""Holds a model against real pictures and writes every figure with its protocol (paper sections 5.1 and 6).

Reads a bundle or a checkpoint, and a built sticker set; writes the pictures it drew and result.json. It is the only
place that knows judge B.
"""
