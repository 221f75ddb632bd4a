"""Analyses over several images: a model and scenes in, tidy tables and tested statements out."""
