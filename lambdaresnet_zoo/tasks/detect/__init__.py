"""Detection on COCO-format data: train, validate, predict."""
