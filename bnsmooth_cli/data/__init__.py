"""Image data sets: the built-in shapes, torchvision's, and a folder of the user's."""
