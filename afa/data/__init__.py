"""Images and image-level labels from disk to batches. This room knows no model."""
