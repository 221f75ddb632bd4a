"""Analyses over several images: a model and scenes in, tidy tables and tested statements out."""

LEAST_IMAGES = 10
"""With fewer images no statement is decided: a bootstrap over a handful knows no spread."""

SILENT = 0.1
"""Below this top-1 probability nothing is recognised, in Figure 1 and section 8.1 of the paper."""
