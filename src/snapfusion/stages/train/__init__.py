"""Trains the stickers base from captioned pictures: autoencoder, cached latents, UNet (paper section 6.1, Eq. 6).

Reads a built sticker set; writes a checkpoint in the diffusers layout. Everything else in the package starts from a
checkpoint and does not care that this one was made here.
"""
