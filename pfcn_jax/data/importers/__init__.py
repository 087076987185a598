"""Importers: labels of other tools become COCO-panoptic."""
