"""Heat maps that say which pixels make two images look alike; one file a family of methods."""
