"""Images with their masks: read once, checked once, kept at the network's size.

``base`` holds what all datasets share; a dataset's own file says only where its pictures lie and how they are split.
"""
