"""A segmentation network trained on pixel labels or maps of any stage, or on true masks."""
