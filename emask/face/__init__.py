"""Finding faces and moving pixels between a photo and its aligned crops."""
