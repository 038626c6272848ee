"""Where models come from: sources, libraries, weights, images and labels."""
