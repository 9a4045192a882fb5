"""Distils N steps of DDIM into N/2 without losing guidance (paper section 4, Eq. 6-11, Figs. 4, 6, 7).

Reads a student's checkpoint, a teacher's of the same text encoder and latents, and a built sticker set; writes the
student's checkpoint for half of the teacher's steps. Checkpoints that predict noise are first turned to velocity
(`to_velocity.py`).
"""
