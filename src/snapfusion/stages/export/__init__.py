"""export: a checkpoint -> a bundle, proved part by part and picture by picture against torch.

Reads a folder in diffusers' layout, writes a sealed bundle. The paper does not say how its networks reach the phone.
"""
