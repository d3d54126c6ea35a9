"""One reader of images for training, serving and client."""
