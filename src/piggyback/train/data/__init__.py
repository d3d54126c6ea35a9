"""Images and what they are labelled with: read, split, augmented, served in batches.

Reading order: image_files.py, sets.py, label_maps.py, splits.py, folder.py, segmentation.py, augment.py, batches.py.
"""
