"""checkpoint, prompts -> a checkpoint with a narrow decoder (section 3.3).

Reads a checkpoint and prompts; writes `checkpoint/`, the same with another image decoder, and `latents/`, which the
UNet drew from the prompts and on which the new decoder learns to draw what the old one draws.
"""
