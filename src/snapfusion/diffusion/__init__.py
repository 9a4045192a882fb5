"""The formulas of diffusion: noise levels, conversions, guidance, samplers and the seed's noise.

Formulas only: no networks, no files, no torch. What takes an `Array` serves NumPy arrays and torch tensors alike.
"""
