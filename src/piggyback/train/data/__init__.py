"""Images and what they are labelled with: read, split, augmented, served in batches.

Reading order: sets.py, folder.py, segmentation.py, size.py, batches.py.
"""
